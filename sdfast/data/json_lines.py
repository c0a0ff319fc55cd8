"""JSON lines as allenai/dont-stop-pretraining has them: an object a line, with a text and perhaps a label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from sdfast.data.config import DataConfig
from sdfast.data.labels import Value
from sdfast.data.lines import read_lines
from sdfast.data.modality import TEXTS
from sdfast.errors import UserError

_LABEL = "label"


def read_json_lines(path: Path, options: DataConfig) -> Iterator[tuple[int, str, Value]]:
    """Yield (line, text, label or None); fields other than `text` and `label` (or `text_key`, `label_key`) are ignored.

    A blank line is a document without text. null is no text or no label.

    Raises:
        UserError: a line that is not UTF-8, not JSON or not an object, no text field or one of another type, a label
            that is neither text nor a number, or no field of the name that `label_key` gives.
    """
    text_key, label_key = options.text_key or TEXTS.column, options.label_key or _LABEL
    for line, content in read_lines(path):
        if not content.strip():
            yield line, "", None
            continue
        where = f"{path} line {line}"
        try:
            record = json.loads(content)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON: {error.msg}.") from error
        except (RecursionError, ValueError) as error:  # the latter: a number of more than 4,300 digits
            reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
            raise UserError(f"{where} is not JSON: {reason}.") from error
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object: one line holds one document with its fields.")
        if text_key not in record or (options.label_key is not None and label_key not in record):
            missing, key = (text_key, "text_key") if text_key not in record else (label_key, "label_key")
            listed = ", ".join(repr(name) for name in list(record)[:10]) or "none"
            raise UserError(f"{where} has no field {missing!r} (data.{key}); its fields are {listed}.")
        text, label = record[text_key], record.get(label_key)
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: field {text_key!r} is {_kind(text)}, not a text.")
        if isinstance(label, (dict, list)):
            raise UserError(f"{where}: field {label_key!r} is {_kind(label)}, not one label.")
        yield line, text or "", label


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", bool: "true or false"}.get(type(value), "a number")
