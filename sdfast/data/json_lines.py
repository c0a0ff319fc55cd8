"""JSON lines as allenai/dont-stop-pretraining has them: an object a line, with a text and perhaps a label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdfast.data.column_names import NamedColumns, choose_names, listed, taken_notes, unlabelled_notes
from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.lines import read_lines
from sdfast.data.modality import LABEL_COLUMN, TEXTS
from sdfast.data.records import Notes, Record
from sdfast.data.split_column import find_split_column
from sdfast.errors import UserError


def read_json_lines(path: Path, options: DataConfig, notes: Notes | None = None) -> Iterator[Record]:
    """Yield a record for each line; fields other than those of text, label and split are ignored.

    They are called `text` and `label`, or what `text_key` and `label_key` say; where the first object has none of such
    a name, the one of another usual name. A blank line is a document without text. null is no text or no label.

    Args:
        path: the file.
        options: the names of the fields, and the encoding.
        notes: gets what a person should know.

    Raises:
        UserError: a line that is not of the encoding, not JSON or not an object, no text field or one of another type,
            a label that is neither text nor a number, or no field of the name that `label_key` gives.
    """
    notes = Notes() if notes is None else notes
    fields: NamedColumns | None = None
    names: list[str] = []
    labelled = False
    for line, content in read_lines(path, encoding=options.encoding):
        if not content.strip():
            yield Record(line, "")
            continue
        where = f"{path} line {line}"
        record = _object(content, where)
        if fields is None:
            names = list(record)
            fields = _fields(names, options, where, notes)
        text_key, label_key = fields.content or TEXTS.column, fields.label or LABEL_COLUMN
        if text_key not in record or (options.label_key not in (None, NO_COLUMN) and label_key not in record):
            missing, key = (text_key, "text_key") if text_key not in record else (label_key, "label_key")
            others = "" if key == "label_key" or "file_name" not in record else f": {TEXTS.otherwise}"
            raise UserError(
                f"{where} has no field {missing!r} (data.{key}); its fields are {listed(list(record))}{others}."
            )
        if options.label_key is None and label_key != LABEL_COLUMN and LABEL_COLUMN in record:
            raise UserError(
                f"{where} has a field {LABEL_COLUMN!r} and the lines before it have their labels in {label_key!r}; "
                "choose one by data.label_key=..."
            )
        text, label = record[text_key], record.get(label_key) if options.label_key != NO_COLUMN else None
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: field {text_key!r} is {_kind(text)}, not a text.")
        if isinstance(label, (dict, list)):
            raise UserError(
                f"{where}: field {label_key!r} is {_kind(label)}, not one label. Choose another by data.label_key=..., "
                f"or go without by data.label_key={NO_COLUMN}."
            )
        labelled = labelled or label is not None
        yield Record(line, text or "", label, record.get(notes.split) if notes.split is not None else None)
    if fields is not None and not labelled:
        notes.take(unlabelled_notes(fields, names, options))


def _object(content: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg}{_of_a_whole_file(content)}.") from error
    except (RecursionError, ValueError) as error:  # the latter: a number of more than 4,300 digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise UserError(f"{where} is not JSON: {reason}.") from error
    if not isinstance(record, dict):
        raise UserError(
            f"{where} is not a JSON object: one line holds one document with its fields{_of_a_whole_file(content)}."
        )
    return record


def _of_a_whole_file(content: str) -> str:
    """What to say where the line looks like a part of one JSON value that goes over many lines, or like a list."""
    if content.strip() not in ("[", "{") and not content.startswith("[{"):
        return ""
    return "; this looks like one list or object in many lines: write each document as an object in a line of its own"


def _fields(names: list[str], options: DataConfig, where: str, notes: Notes) -> NamedColumns:
    """The fields by the first object's; later ones may have others beside them."""
    fields = choose_names(names, options, TEXTS, where, "field")
    notes.split = find_split_column(names, options, where, (fields.content, fields.label))
    notes.take(taken_notes(fields, options, TEXTS))
    return fields


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", bool: "true or false"}.get(type(value), "a number")
