"""Files that hold many documents: JSON lines, tables and plain lines, one file for each split, or TweetEval's two."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sdfast.data.columns import choose_names, column_notes, find_group_column, find_split_column
from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import SPLITS, Item, Raw, Source, cell_item, file_reader
from sdfast.data.lines import LONGEST_LINE, SAMPLE, UTF8, decoded, marked_encoding, read_lines, suffix_of, wide_encoding
from sdfast.data.modality import LABEL_COLUMN, TEXTS, Modality, listed, other_than
from sdfast.data.problem import SINGLE
from sdfast.data.records import Notes, Record, Rows, files_by_split, split_name, split_of_file
from sdfast.data.several import Cells
from sdfast.data.table import read_table
from sdfast.errors import UserError

TWEET_EVAL = {"train_text.txt", "train_labels.txt"}  # what marks its layout
_MOST_CLASSES = 100_000
_COMMON = ("json", "txt")  # suffixes that other files have too


def document_reader(path: Path, encoding: str) -> Callable[[], Raw]:
    """Reads the file of one document in UTF-8, by a link too, of at most 64 MiB; OSError otherwise.

    See `in_utf8` for the encoding.
    """

    return partial(in_utf8, file_reader(path, LONGEST_LINE), encoding, str(path))


def in_utf8(read: Callable[[], Raw], encoding: str, where: str) -> bytes:
    """What `read` gives, a document that is written in some encoding, in UTF-8; as it is where it is to be UTF-8.

    Args:
        read: gives the bytes.
        encoding: of a document without a byte order mark.
        where: it is, for errors.

    Raises:
        OSError: it is of another encoding.
    """
    content = bytes(read())
    written = marked_encoding(content) or encoding
    if written in (UTF8, "utf-8-sig"):
        if (wide := wide_encoding(content[:SAMPLE])) is not None:
            raise OSError(errno.EILSEQ, f"it looks like {wide}; set data.encoding={wide}", where)
        return content
    if (text := decoded(content, written)) is None:
        raise OSError(errno.EILSEQ, f"it is not {written} (data.encoding)", where)
    return text.encode()


def is_text_file(path: Path) -> bool:
    """Whether the suffix (before .gz) is one of a file that holds documents."""
    return suffix_of(path) in _READERS


def text_files(folder: Path) -> list[Path]:
    """The files of `folder` that hold many documents each; none when its .txt files are a document each.

    Files of one format that name splits (`train.jsonl`, `train-0.jsonl`) come first, or else all JSON lines and tables.
    A .json or .txt file has to be called as a split is, as there are others of this suffix.

    Raises:
        UserError: when files of several formats name splits.
    """
    visible = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    found = [entry for entry in visible if is_text_file(entry)]
    split_of = dict.fromkeys(_COMMON, split_name)
    named = [entry for entry in found if split_of.get(suffix_of(entry), split_of_file)(entry.name.split(".")[0])]
    for entry in named:
        if suffix_of(entry) != suffix_of(named[0]):
            raise UserError(
                f"{folder} holds {named[0].name} and {entry.name}, data files of several formats; pass one format."
            )
    return named or [entry for entry in found if suffix_of(entry) not in _COMMON]


def open_text_files(path: Path, files: list[Path], options: DataConfig) -> Source:
    """Open .jsonl, .csv, .tsv or .txt files (the last: a document per line, without labels).

    They are at least one, of one format, `path` or in it; `train`, `dev` and `test` in their names make the splits.

    Raises:
        UserError: an empty file, a class of test that train lacks, or content that cannot be used (its line is named).
    """
    source = Source(path.name, suffix_of(files[0]), None, {}, modality=TEXTS)
    rows, notes = Rows(), Notes()
    for split, named in files_by_split(path, files, source).items():
        for file, name in named:
            records = _READERS[suffix_of(file)](file, options, notes)
            found = [(record.label, record.split, record.group) for record in records]
            if not found:
                raise UserError(f"{file} holds no documents.")
            rows.column, rows.label_columns = rows.column or notes.split, notes.labels
            labels, *others = map(list, zip(*found, strict=True))
            cells = (each if column else None for column, each in zip((notes.split, notes.group), others, strict=True))
            rows.add(split, labels, partial(_items, file, name, options), *cells)
    notes.add_to(source)
    return rows.fill(source, options, options.unseen, where=source.name)


def _items(path: Path, name: str, options: DataConfig) -> Iterator[Item]:
    """The documents of a file, which is read again."""
    records = _READERS[suffix_of(path)](path, options, Notes())
    return (cell_item(f"{name}:{record.line}", record.content) for record in records)


def _read_lines(path: Path, options: DataConfig, notes: Notes) -> Iterator[Record]:
    for line, text in read_lines(path, encoding=options.encoding, say=notes.say):
        yield Record(line, text.strip())


def read_json_lines(path: Path, options: DataConfig, notes: Notes, modality: Modality = TEXTS) -> Iterator[Record]:
    """Yield a record for each line; fields other than those of content, label and split are ignored.

    So allenai/dont-stop-pretraining has texts, and Hugging Face's image folders have names of images. They are called
    `text` (`file_name`) and `label`, or what `text_key` (`image_key`) and `label_key` say; where the first object has
    none of such a name, the one of another usual name. A blank line is a document without text, and of images none.
    null is no text or no label. `notes` gets what a person should know.

    Raises:
        UserError: a line that is not of the encoding, not JSON or not an object, no field of contents or one of another
            type, a label that is neither text nor a number, or no field of the name that `label_key` gives.
    """
    fields: tuple[str | None, tuple[str, ...]] | None = None
    names: list[str] = []
    labelled = False
    for line, content in read_lines(path, encoding=options.encoding, say=notes.say):
        if not content.strip():
            if modality is TEXTS:
                yield Record(line, "")
            continue
        where = f"{path} line {line}"
        record = _object(content, where)
        if fields is None:
            names = list(record)
            fields = choose_names(names, options, modality, where, "field")  # later objects may have others beside them
            notes.labels = fields[1] or (LABEL_COLUMN,)
            notes.split = find_split_column(names, options, where, (fields[0], *fields[1]))
            notes.group = find_group_column(names, options, where)
            notes.take(column_notes(fields[0], next(iter(fields[1]), None), (), options, modality))
        text_key, label_keys = fields[0] or modality.column, fields[1] or (LABEL_COLUMN,)
        label_key = next((key for key in label_keys if key not in record), label_keys[0])
        if text_key not in record or (options.label_key not in (None, NO_COLUMN) and label_key not in record):
            missing, key = (text_key, modality.key) if text_key not in record else (label_key, "label_key")
            others = (
                "" if key == "label_key" or other_than(modality).column not in record else f": {modality.otherwise}"
            )
            raise UserError(
                f"{where} has no field {missing!r} (data.{key}); its fields are {listed(list(record))}{others}."
            )
        if options.label_key is None and label_key != LABEL_COLUMN and LABEL_COLUMN in record:
            raise UserError(
                f"{where} has a field {LABEL_COLUMN!r} and the lines before it have their labels in {label_key!r}; "
                "choose one by data.label_key=..."
            )
        text, label = record[text_key], record.get(label_key) if options.label_key != NO_COLUMN else None
        if isinstance(options.label_key, tuple):
            label = Cells(record.get(key) for key in label_keys)
        if text is not None and not isinstance(text, str):
            what = "text" if modality is TEXTS else "file name"
            raise UserError(f"{where}: field {text_key!r} is {_kind(text)}, not a {what}.")
        if modality is not TEXTS and not (text and text.strip()):
            raise UserError(f"{where}: no file name in field {text_key!r}.")
        if isinstance(label, dict) or (isinstance(label, list) and options.problem_type == SINGLE):
            raise UserError(
                f"{where}: field {label_key!r} is {_kind(label)}, not one label. Choose another by data.label_key=..., "
                f"or go without by data.label_key={NO_COLUMN}."
            )
        labelled = labelled or label is not None
        split, group = (None if name is None else record.get(name) for name in (notes.split, notes.group))
        yield Record(line, text or "", label, split, group)
    if fields is not None and not labelled:
        notes.take(column_notes(fields[0], next(iter(fields[1]), None), names, options, modality))


def _object(content: str, where: str) -> dict[str, Any]:
    many = ""
    if content.strip() in ("[", "{") or content.startswith("[{"):
        many = (
            "; this looks like one list or object in many lines: write each document as an object in a line of its own"
        )
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg}{many}.") from error
    except (RecursionError, ValueError) as error:  # the latter: a number of more than 4,300 digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise UserError(f"{where} is not JSON: {reason}.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object: one line holds one document with its fields{many}.")
    return record


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", bool: "true or false"}.get(type(value), "a number")


_READERS: dict[str, Callable[[Path, DataConfig, Notes], Iterator[Record]]] = {
    **dict.fromkeys(("jsonl", "ndjson", "json"), read_json_lines),
    **dict.fromkeys(("csv", "tsv"), partial(read_table, modality=TEXTS)),
    "txt": _read_lines,
}


def open_tweet_eval(path: Path, options: DataConfig) -> Source:
    """Open a folder of TweetEval's layout: `train_text.txt`, `train_labels.txt` (a line each), `val_...`, `test_...`.

    `mapping.txt` names the classes; without it they are called by their numbers.

    Raises:
        UserError: a split with other numbers of texts and labels, a label that is no number or has no name, a class of
            test that train lacks, or a file that is not of `options.encoding`.
    """
    rows = Rows()
    for split in SPLITS:
        file = path / f"{split}_text.txt"
        if file.is_file():
            texts = [text.strip() for _, text in read_lines(file, encoding=options.encoding)]
            items = [cell_item(f"{file.name}:{line}", text) for line, text in enumerate(texts, start=1)]
            labels = _read_labels(path / f"{split}_labels.txt", file, len(texts), options.encoding)
            rows.add(split, labels, partial(iter, items))
    names = _read_mapping(path / "mapping.txt", options.encoding)
    if names is None:
        largest = max((number for part in rows.labels.values() for number in part), default=0)
        names = [str(number) for number in range(1 + max(largest, 0))]
    source = Source(path.name, "TweetEval", None, {}, modality=TEXTS)
    return rows.fill(source, options, options.unseen, names, source.name)


def _read_labels(file: Path, of: Path, count: int, encoding: str) -> list[int]:
    if not file.is_file():
        raise UserError(f"{of} has no {file.name} beside it.")
    labels: list[int] = []
    for line, text in read_lines(file, encoding=encoding):
        try:
            labels.append(int(text))
        except ValueError:
            raise UserError(f"{file} line {line} is not the number of a class.") from None
        if labels[-1] >= _MOST_CLASSES:
            raise UserError(f"{file} line {line} has the number {text.strip()[:20]}, which is no class's.")
    if len(labels) != count:
        raise UserError(f"{file} has {len(labels):,} labels for the {count:,} texts of {of.name}.")
    if not count:
        raise UserError(f"{of} holds no documents.")
    return labels


def _read_mapping(file: Path, encoding: str) -> list[str] | None:
    """The class names in the order of their numbers: lines of number, tab, name."""
    if not file.is_file():
        return None
    names: dict[int, str] = {}
    for line, text in read_lines(file, encoding=encoding):
        number, _, name = text.strip().partition("\t")
        if not (number or name):
            continue
        if not number.strip().isdecimal() or len(number) > 20 or not name.strip():
            raise UserError(f"{file} line {line} is not a number, a tab and the name of a class.")
        names[int(number)] = name.strip()
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{file} does not number its classes from 0 without a gap.")
    return [names[number] for number in range(len(names))]
