"""What a source is searched for, images or texts: how columns, files and sentences call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ModalityName = Literal["images", "texts"]
Held = Literal["image", "bytes", "text", "classes", "scalar", "other"]  # what a column of a table holds

LABEL_COLUMN = "label"
USUAL_LABEL_COLUMNS = (
    *("label", "labels", "class", "target", "category", "y"),
    *("class_name", "class_label", "classname", "label_name", "species", "sentiment", "topic"),
)


@dataclass(frozen=True)
class Modality:
    """One kind of content.

    Attributes:
        one, an_item, plural, a_folder: in a sentence: "image", "an image", "images", "an image folder".
        content: what an item is made of: "image" or "text".
        key: the key of the `data` section that names its column.
        column: its column in a .csv, .tsv or JSON lines file.
        listed_columns: its usual names in a .csv, .tsv or JSON lines file, `column` among them.
        usual_columns: its usual names in parquet files and Hugging Face data sets.
        held_as: what such a column holds, the surest first.
        suffixes: of its files in folders, in lower case.
        accepted: what --data takes, for a sentence.
        otherwise: what to do when a source is of the other kind, for the end of a sentence.
    """

    one: str
    an_item: str
    plural: str
    a_folder: str
    content: str
    key: Literal["image_key", "text_key"]
    column: str
    listed_columns: Sequence[str]
    usual_columns: Sequence[str]
    held_as: Sequence[Held]
    suffixes: frozenset[str]
    accepted: str
    otherwise: str


def listed(names: Sequence[str], most: int | None = 10) -> str:
    """Names for a sentence, at most so many."""
    return ", ".join(map(repr, names[:most])) or "none"


def counted(what: str, names: Sequence[str]) -> str:
    """A sentence about some names: what they are, how many, and which is the first."""
    return f"{what}: {len(names):,} (the first: {names[0]})."


def first_listed(names: Sequence[str]) -> str:
    """The first three names for a sentence, and how many more there are."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


_PICTURES = ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "gif", "tif", "tiff", "webp")
_MORE_PICTURES = ("ppm", "pgm", "pbm", "pnm", "avif", "jp2")
_FILE_COLUMNS = (
    *("file_name", "filename", "file", "files", "file_path", "filepath", "path"),
    *("image", "img", "images", "image_name", "image_file", "image_path", "img_path", "picture", "photo"),
)
_TEXT_COLUMNS = (
    *("text", "texts", "sentence", "sentences", "document", "documents", "content", "contents"),
    *("review", "comment", "message", "tweet", "abstract", "description", "utterance", "query", "question"),
)

IMAGES = Modality(
    one="image",
    an_item="an image",
    plural="images",
    a_folder="an image folder",
    content="image",
    key="image_key",
    column="file_name",
    listed_columns=_FILE_COLUMNS,
    usual_columns=("image", "img", "images", "jpg", "png"),
    held_as=("image", "bytes"),
    suffixes=frozenset(f".{suffix}" for suffix in (*_PICTURES, *_MORE_PICTURES)),
    accepted="an image folder, a .csv or .jsonl list, a parquet file or folder, tar shards, a saved Hugging Face data "
    "set, IDX files, an unpacked data set of the paper, or the id of a hub data set",
    otherwise="texts need a model of text: name a BERT or RoBERTa by --model, or take the bundled one by "
    "--preset text-demo",
)
TEXTS = Modality(
    one="document",
    an_item="a document",
    plural="documents",
    a_folder="a text folder",
    content="text",
    key="text_key",
    column="text",
    listed_columns=_TEXT_COLUMNS,
    usual_columns=("text", "sentence", "document", "content", "texts"),
    held_as=("text",),
    suffixes=frozenset((".txt",)),
    accepted="a .jsonl, .csv, .tsv, .txt or parquet file, a folder of them (train, dev, test) or of .txt files per "
    "class, tar shards, a saved Hugging Face data set, or the id of a hub data set",
    otherwise="images need a model of images, and this is one of text: name another by --model",
)


def other_than(modality: Modality) -> Modality:
    """Texts for images, images for texts."""
    return TEXTS if modality is IMAGES else IMAGES
