"""The files of a model's tokenizer, and the length at which they say that a document is cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.models.hub import TOKENIZER_FILES
from sdfast.models.weights import unreadable
from sdfast.regular import read_regular

_CONFIG, _FAST = "tokenizer_config.json", "tokenizer.json"
_LARGEST_FILE = 1 << 28


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Content of a tokenizer's files by name; empty where there are none.

    Raises:
        UserError: one is there and cannot be read.
    """
    found = {}
    for name in TOKENIZER_FILES:
        try:
            found[name] = read_regular(folder / name, _LARGEST_FILE)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unreadable(folder / name, error) from error
    return found


def cut_at(files: Mapping[str, bytes], max_length: int) -> dict[str, bytes]:
    """The files of a tokenizer that cuts documents as sdfast does: behind, special tokens kept.

    transformers cuts at `model_max_length` when it is asked to (`truncation=True`), and fails at a document beyond the
    model's positions where a tokenizer names no length, as many do not. `tokenizer.json` says the same to programs that
    read it alone.

    Args:
        files: content by name.
        max_length: tokens, special ones included; the tokenizer's own greatest length holds where that is less.

    Returns:
        The files; nothing else of them is changed, and nothing at all where there is no tokenizer.
    """
    if not files:
        return {}
    written = dict(files)
    config = json.loads(files.get(_CONFIG, b"{}"))
    own = config.get("model_max_length", config.get("max_len"))
    length = min(max_length, int(own)) if isinstance(own, int | float) and own >= 1 else max_length
    config["model_max_length"] = length
    if config.get("truncation_side", "right") != "right":
        config["truncation_side"] = "right"
    written[_CONFIG] = _dumped(config)
    if _FAST in files:
        fast = json.loads(files[_FAST])
        fast["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
        written[_FAST] = _dumped(fast)
    return written


def _dumped(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
