"""What a source is searched for, images or texts: how columns, files and sentences call them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Held = Literal["image", "bytes", "text", "classes", "scalar", "other"]  # what a column of a table holds


@dataclass(frozen=True)
class Modality:
    """One kind of content.

    Attributes:
        one, an_item, many, a_folder: in a sentence: "image", "an image", "images", "an image folder".
        content: what an item is made of: "image" or "text".
        key: the key of the `data` section that names its column.
        column: its column in a .csv, .tsv or JSON lines file.
        usual_columns: its usual names in parquet files and Hugging Face data sets.
        held_as: what such a column holds, the surest first.
        suffixes: of its files in folders, in lower case.
        accepted: what --data takes, for a sentence.
    """

    one: str
    an_item: str
    many: str
    a_folder: str
    content: str
    key: Literal["image_key", "text_key"]
    column: str
    usual_columns: Sequence[str]
    held_as: Sequence[Held]
    suffixes: frozenset[str]
    accepted: str


_PICTURES = ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "gif", "tif", "tiff", "webp")
_MORE_PICTURES = ("ppm", "pgm", "pbm", "pnm", "avif", "jp2")

IMAGES = Modality(
    one="image",
    an_item="an image",
    many="images",
    a_folder="an image folder",
    content="image",
    key="image_key",
    column="file_name",
    usual_columns=("image", "img", "images", "jpg", "png"),
    held_as=("image", "bytes"),
    suffixes=frozenset(f".{suffix}" for suffix in (*_PICTURES, *_MORE_PICTURES)),
    accepted="an image folder, a .csv list, a parquet file or folder, a saved Hugging Face data set, IDX files, "
    "an unpacked data set of the paper, or the id of a hub data set",
)
TEXTS = Modality(
    one="document",
    an_item="a document",
    many="documents",
    a_folder="a text folder",
    content="text",
    key="text_key",
    column="text",
    usual_columns=("text", "sentence", "document", "content", "texts"),
    held_as=("text",),
    suffixes=frozenset((".txt",)),
    accepted="a .jsonl, .csv, .tsv, .txt or parquet file, a folder of them (train, dev, test) or of .txt files per "
    "class, a saved Hugging Face data set, or the id of a hub data set",
)
