"""What a bank's manifest says; where the features lie, `sdfast.store.rows` says.

A bank is a directory of rows (of features), and beside them

* `manifest.json`: `{"sha256": ..., "manifest": {...}}`, the digest being that of the inner value in canonical form;
* `built.json`: when and how long it was built, for people; nothing depends on it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdfast.durable import sha256_json
from sdfast.errors import UserError
from sdfast.store.rows import Layout, read_whole

FORMAT = 2  # 1 had BLAKE2b-256 checksums
MANIFEST, BUILT = "manifest.json", "built.json"

_MANIFEST_LIMIT = 1 << 20  # bytes; a real one has about two thousand


class WrongFormat(ValueError):
    """A whole manifest of another version of the format."""


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        identity: what the features are of (see `sdfast.teacher.fingerprint`).
        layout: where they lie.
        rows_sha256, checksums_sha256: of `rows.bin` and `checksums.bin`.
        spread: largest standard deviation of a feature over a sample of the rows.
    """

    identity: dict[str, Any]
    layout: Layout
    rows_sha256: str
    checksums_sha256: str
    spread: float

    def to_json(self) -> dict[str, Any]:
        """As the JSON value that is written."""
        inner = {
            "format": FORMAT,
            "identity": self.identity,
            "layout": self.layout.to_json(),
            "rows_sha256": self.rows_sha256,
            "checksums_sha256": self.checksums_sha256,
            "spread": self.spread,
        }
        return {"sha256": sha256_json(inner), "manifest": inner}

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """The manifest in a value that is not trusted.

        Raises:
            ValueError: what does not fit.
        """
        if not isinstance(value, dict) or value.keys() != {"sha256", "manifest"}:
            raise ValueError("its manifest is not one")
        inner = value["manifest"]
        if not isinstance(inner, dict) or sha256_json(inner) != value["sha256"]:
            raise ValueError("its manifest differs from the manifest's own digest")
        if type(inner.get("format")) is not int or inner["format"] != FORMAT:
            raise WrongFormat(f"is of format {str(inner.get('format'))[:20]}, and this version reads format {FORMAT}")
        names = {"format", "identity", "layout", "rows_sha256", "checksums_sha256", "spread"}
        if inner.keys() != names or not _has_form(inner["identity"], _IDENTITY_FORM):
            raise ValueError("its manifest is not one")
        if type(inner["spread"]) not in (int, float):
            raise ValueError("its spread is not a number")
        return cls(
            inner["identity"],
            Layout.from_json(inner["layout"]),
            inner["rows_sha256"],
            inner["checksums_sha256"],
            inner["spread"],
        )


def _has_form(value: Any, form: Any) -> bool:
    """Whether a JSON value has (at least) the keys and kinds of `form`."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(_has_form(value.get(key), part) for key, part in form.items())
    return isinstance(value, form)


_IDENTITY_FORM = {
    "teacher": {"weights": str, "config": {}},
    "rows": str,
    "transform": {},
    "augment": {"kind": str},
    "features": {"tokens": str, "shape": list},
    "dtype": str,
}


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a bank.

    Raises:
        ValueError: none, or not a valid one; the message says what.
    """
    text = read_whole(directory / MANIFEST, limit=_MANIFEST_LIMIT)
    try:
        value = json.loads(text)
        return Manifest.from_json(value)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError("its manifest is not whole JSON") from error


@contextlib.contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turn what is wrong with a bank that is read inside into one sentence.

    Raises:
        UserError: in place of the ValueError that says it.
    """
    try:
        yield
    except ValueError as error:
        what = str(error) if isinstance(error, WrongFormat) else f"is damaged: {error}"
        raise UserError(
            f"the teacher bank {directory} {what}; delete it, or run `sdfast cache build --out {directory.parent} "
            "--rebuild`, to build it anew."
        ) from error
