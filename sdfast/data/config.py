"""The `data` section of the configuration."""

from __future__ import annotations

import codecs
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sdfast.data.problem import REGRESSION, SEVERAL, ProblemType

_LONGEST_SIDE = 1 << 16
_MOST_CHANNELS = 1024
KEEP = "keep"  # as a background: the colours under the transparency, as stored
_OF_COLUMNS = (SEVERAL, REGRESSION)  # which have several columns of labels
SEPARATORS = {"comma": ",", "semicolon": ";", "bar": "|", "tab": "\t", "space": " "}  # as `label_separator`
NO_COLUMN = "none"  # as `label_key` or `split_key`: do without such a column


class DataConfig(BaseModel):
    """Where the images or texts come from, and how they become train and test rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | None = Field(
        default=None,
        min_length=1,
        description="image folder, .csv, .jsonl, parquet file or folder, tar shards (a file, a folder or a pattern as "
        "photos-{000..012}.tar), saved Hugging Face data set, IDX files or hub id; for text also .jsonl, .tsv, .txt "
        "and folders of these; bundled when not given",
    )
    unlabelled: tuple[str, ...] = Field(
        default=(),
        description="further sources, of any kind that `source` may be: all their rows join those of pretrain, distill "
        "and the bank without a label, and never those of finetune, val or test",
    )
    unlabelled_key: str | None = Field(
        default=None,
        description="column of the images or texts in tables of `unlabelled`; that of `image_key` or `text_key`, or a "
        "usual one, when not given",
    )
    image_size: int | tuple[int, int] | None = Field(
        default=None,
        description="height and width in pixels, one number for a square; the model's when not given",
        json_schema_extra={"of": "images"},
    )
    resize: Literal["squash", "pad", "crop"] | None = Field(
        default=None,
        description="how an image comes to that size: `squash` (what is done when not given) does not keep its aspect; "
        "`pad` does, and fills the rest evenly on both sides with `background` (with `keep`: black); `crop` does, and "
        "takes the centre",
        json_schema_extra={"of": "images"},
    )
    tile: int | tuple[int, int] | None = Field(
        default=None,
        description="an image larger than so many of its own pixels (height and width, one number for a square) is cut "
        "into tiles that cover it, each a row; evaluation averages their probabilities; no tiles when not given",
        json_schema_extra={"of": "images"},
    )
    channels: int | None = Field(
        default=None,
        ge=1,
        le=_MOST_CHANNELS,
        description="3 (RGB), 1 (grey), or as many bands as the images have; the model's when not given",
        json_schema_extra={"of": "images"},
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="training images or documents kept: those with a label first, stratified, seeded, and a smaller "
        "limit is a subset of a larger",
    )
    labelled_limit: int | None = Field(
        default=None,
        ge=1,
        description="labelled rows that finetune sees of those in `limit`: stratified, seeded, nested; pretrain and "
        "distill keep seeing the others",
    )
    limit_seed: int = Field(default=42, ge=0, description="seed of `limit` and `labelled_limit`")
    test_fraction: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="share of the labelled rows held out when the source has no test split; 0 holds out none",
    )
    split_seed: int = Field(default=42, ge=0, description="seed of the held-out rows")
    folds: int | None = Field(
        default=None,
        ge=2,
        le=1000,
        description="divide the labelled rows into so many folds, of which `fold` is the test split, instead of "
        "holding out `test_fraction`",
    )
    fold: int = Field(default=0, ge=0, validate_default=True, description="which of `folds` is tested, from 0")
    group: str | None = Field(
        default=None,
        min_length=1,
        description="whose row it is (patient, photographer, video): a column, or a regular expression with one "
        "capturing group that is looked for in the row's name; rows of one group are never on both sides of a split",
    )
    shared_groups: Literal["error", "drop", "keep"] = Field(
        default="error",
        description="groups of which the source has rows in train and in test or val: stop, drop those rows from "
        "train, or keep",
    )
    max_broken: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="share of the files that may be unreadable (documents: empty or not UTF-8); they are skipped and "
        "counted",
    )
    duplicates: Literal["error", "drop", "keep"] = Field(
        default="error",
        description="rows of train whose decoded pixels (texts: tokens) are also in test or val: stop, drop them from "
        "train, or keep; rows of `unlabelled` that are in train already are left out, but with keep",
    )
    image_key: str | None = Field(
        default=None,
        description="column of the images in a table, member of the image in a tar shard; found when not given",
        json_schema_extra={"of": "images"},
    )
    text_key: str | None = Field(
        default=None,
        description="column of the texts in a table, member or field of `json` in a tar shard; found when not given",
        json_schema_extra={"of": "texts"},
    )
    label_key: str | tuple[str, ...] | None = Field(
        default=None,
        description="column of the labels in a table, member or field of `json` in a tar shard; found when not given; "
        "`none` goes without labels; a list [A,B,...] of them: 0 or 1 for each class of a row, or with "
        "problem_type=regression a number in each",
    )
    problem_type: ProblemType | None = Field(
        default=None,
        description="what labels are: one class a row, several, or numbers; when not given lists, several columns and "
        "a `label_separator` are several classes, and all else is one class",
    )
    label_separator: str | None = Field(
        default=None,
        min_length=1,
        description="what parts the classes of a cell, where a row has several: comma, semicolon, bar, tab, space, or "
        "other characters",
    )
    na_labels: Literal["missing", "class"] = Field(
        default="missing",
        description="labels of a table that are written nan, NaN, NA, N/A, n/a, null, NULL, None, <NA>, ...: no label, "
        "or classes of these names; an empty cell is no label in any case",
    )
    split_key: str | None = Field(
        default=None,
        description="column that says train, val or test in a table; when not given a column split, set, subset, "
        "partition or fold that says so; `none` ignores it",
    )
    encoding: str = Field(
        default="utf-8",
        description="how the letters of .csv, .tsv, .jsonl and .txt files are written, as utf-8, cp1252 or utf-16-le; "
        "a byte order mark in a file goes before it, and where utf-8 fails cp1252 is taken if it fits, with a warning",
    )
    unseen: Literal["error", "drop"] = Field(
        default="error",
        description="rows of val or test of a class that train does not have (`eval --data`: that the model does not "
        "know): stop, or leave them out and say how many",
    )
    exif_rotation: Literal["ignore", "apply"] = Field(
        default="apply",
        description="turn photographs upright by their EXIF orientation tag, or not",
    )
    background: str = Field(
        default="white",
        description="what lies under transparent pixels (and beside an image, with `resize` pad): a colour (white, "
        "'#rrggbb', 'rgb(r, g, b)'), or `keep`: the colours that the file stores there",
        json_schema_extra={"of": "images"},
    )
    range: Literal["auto", "percentile"] | tuple[float, float] | tuple[tuple[float, float], ...] = Field(
        default="auto",
        description="samples of more than 8 bits that become black and white, [LOW, HIGH], or such a pair for each "
        "band; `auto` is from 0 to the least 2^k - 1 that holds every sample of the source, `percentile` for each band "
        "from the 1st to the 99th percentile of its samples",
        json_schema_extra={"of": "images"},
    )
    nan: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="sample that pixels which are not a number become; when not given, an image with such counts as "
        "broken",
        json_schema_extra={"of": "images"},
    )
    pixels: Literal["uint8", "uint16", "float16"] | None = Field(
        default=None,
        description="type of a pixel in the pack: 256 levels between black and white, 65,536, or floating point from "
        "0 to 1; when not given uint8, or uint16 where an image has more than 8 bits, but where the pack that is there "
        "is of another type",
        json_schema_extra={"of": "images"},
    )
    normalise: Literal["model", "dataset"] = Field(
        default="model",
        description="mean and standard deviation by which pixels are normalised: the model's, or each channel's over "
        "the train split, which then go into the trained model's preprocessor_config.json",
        json_schema_extra={"of": "images"},
    )
    max_pixels: int = Field(
        default=178_956_970, ge=1, description="an image of more pixels counts as broken and is never decoded"
    )

    max_length: int = Field(
        default=512,
        ge=4,
        le=1 << 20,
        description="tokens of a row, special tokens included; of a longer document fine-tuning and evaluation see the "
        "first ones, and pretrain and distill all (`data.chunk`)",
        json_schema_extra={"of": "texts"},
    )
    chunk: bool | None = Field(
        default=None,
        description="whether a document longer than `max_length` is several rows of pretrain, distill and the bank, "
        "each with its own special tokens; when not given it is, but where the pack that is there was made without",
        json_schema_extra={"of": "texts"},
    )
    chunk_stride: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="tokens that neighbouring chunks of a document share",
        json_schema_extra={"of": "texts"},
    )
    chunk_votes: bool = Field(
        default=False,
        description="fine-tuning trains on all chunks of a long document, each with its label, and what a classifier "
        "says of a document is the mean of what it says of its chunks; else both take its first `max_length` tokens",
        json_schema_extra={"of": "texts"},
    )
    pack_short: bool = Field(
        default=False,
        description="join documents that are not longer than `max_length` to rows of pretrain, distill and the bank, "
        "as many as fit, with the special tokens of an end after each",
        json_schema_extra={"of": "texts"},
    )
    add_tokens: str | tuple[str, ...] | None = Field(
        default=None,
        description="tokens that the model and its tokenizer get beside their own, each one word: a list, or a file "
        "with one a line; those that they have are left out",
        json_schema_extra={"of": "texts"},
    )
    vocabulary_multiple: int | None = Field(
        default=None,
        ge=1,
        le=1 << 16,
        description="words of the model are made a multiple of this (64 suits GPUs), by rows that no token has",
        json_schema_extra={"of": "texts"},
    )
    token_budget: int | None = Field(
        default=None,
        ge=1,
        description="text: a micro-batch holds at most so many tokens, padding included (a longer document is alone); "
        "it splits a batch, and never changes which documents are in it",
        json_schema_extra={"of": "texts"},
    )

    @field_validator("unlabelled", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        found = [value] if isinstance(value, str) else [] if value is None else value
        if isinstance(found, list | tuple) and not all(isinstance(each, str) and each for each in found):
            raise ValueError("must be the name of a source, or a list of such names")
        return found

    @field_validator("image_size", "tile")
    @classmethod
    def _positive_size(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if value is not None and min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError("must be at least 1 pixel")
        if value is not None and max(value if isinstance(value, tuple) else (value,)) > _LONGEST_SIDE:
            raise ValueError(f"must be at most {_LONGEST_SIDE} pixels")
        return value

    @field_validator("fold")
    @classmethod
    def _one_of_the_folds(cls, value: int, info: ValidationInfo) -> int:
        folds = info.data.get("folds")
        if value and not folds:
            raise ValueError("is one of data.folds; set these too, as data.folds=5")
        if folds and value >= folds:
            raise ValueError(f"must be 0 to {folds - 1}, as there are {folds} folds (data.folds)")
        return value

    @field_validator("label_key")
    @classmethod
    def _distinct_columns(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("must be the name of a column, or a list of different ones")
        return value

    @model_validator(mode="after")
    def _parts_classes(self) -> DataConfig:
        if self.label_separator is not None and self.problem_type not in (None, SEVERAL):
            raise ValueError(
                f"label_separator parts the classes of a row that has several; with problem_type={self.problem_type} "
                "leave it away"
            )
        if isinstance(self.label_key, tuple) and self.problem_type not in (None, *_OF_COLUMNS):
            raise ValueError(f"label_key is a list of columns, and with problem_type={self.problem_type} it is one")
        return self

    @field_validator("label_separator", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return SEPARATORS.get(value, value) if isinstance(value, str) else value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "\n".encode(value)
        except (LookupError, UnicodeError):
            raise ValueError(
                "is no encoding of text that Python knows; utf-8, cp1252, latin-1 and utf-16 are"
            ) from None
        return codecs.lookup(value).name

    @field_validator("background", mode="before")
    @classmethod
    def _colour(cls, value: Any) -> str:
        if not isinstance(value, str) or (value != KEEP and not _is_opaque(value)):
            raise ValueError("must be a colour (white, '#rrggbb' in quotes, 'rgb(r, g, b)') or keep")
        return value

    @field_validator("range", mode="before")
    @classmethod
    def _ascending(cls, value: Any) -> Any:
        several = isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_range, value))
        if value not in ("auto", "percentile") and not several and not _is_range(value):
            raise ValueError(
                "must be auto, percentile, two numbers, [LOW,HIGH], the lower first, or such a pair for each band"
            )
        return value


def _is_range(value: Any) -> bool:
    """Whether it is two finite numbers, the lower first."""
    pair = isinstance(value, list | tuple) and [isinstance(end, int | float) for end in value] == [True, True]
    return pair and math.isfinite(value[1] - value[0]) and value[0] < value[1]


DIVIDING = frozenset(("folds", "fold", "group", "shared_groups"))
UNDIVIDED = {"test_fraction": 0.0, "folds": None, "fold": 0, "group": None, "unlabelled": ()}  # of data for evaluation


def dividing(options: DataConfig) -> dict[str, Any]:
    """Those of `DIVIDING`, the options that later came to decide who is in which split, that say something."""
    of = {"folds": "folds", "fold": "folds", "group": "group", "shared_groups": "group"}
    return {key: getattr(options, key) for key, needs in of.items() if getattr(options, needs) is not None}


def _is_opaque(value: str) -> bool:
    """Whether it is an opaque colour that PIL's ImageColor knows."""
    from PIL import ImageColor

    try:
        colour = ImageColor.getrgb(value)
    except ValueError:
        return False
    return len(colour) == 3 and max(colour) <= 255
