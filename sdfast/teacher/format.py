"""What a bank's manifest says; where the features lie, `sdfast.store.rows` says.

A bank is a directory of rows (of features), and beside them

* `manifest.json`: `{"sha256": ..., "manifest": {...}}`, the digest being that of the inner value in canonical form;
* `built.json`: when and how long it was built, for people; nothing depends on it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import field_validator

from sdfast.durable import sha256_json
from sdfast.errors import UserError
from sdfast.store.artifact import Digest, Stored, fitted
from sdfast.store.rows import Layout, read_whole

FORMAT = 2  # 1 had BLAKE2b-256 checksums
MANIFEST, BUILT = "manifest.json", "built.json"

_MANIFEST_LIMIT = 1 << 20  # bytes; a real one has about two thousand


class WrongFormat(ValueError):
    """A whole manifest of another version of the format."""


class Manifest(Stored, extra="forbid"):
    """What `manifest.json` holds.

    Attributes:
        format: version of the files and of the manifest.
        identity: what the features are of (see `sdfast.teacher.fingerprint`).
        layout: where they lie.
        rows_sha256, checksums_sha256: of `rows.bin` and `checksums.bin`.
        spread: largest standard deviation of a feature over a sample of the rows.
    """

    format: int = FORMAT
    identity: dict[str, Any]
    layout: Layout
    rows_sha256: Digest
    checksums_sha256: Digest
    spread: float

    @field_validator("identity")
    @classmethod
    def _has_its_form(cls, identity: dict[str, Any]) -> dict[str, Any]:
        if not _has_form(identity, _IDENTITY_FORM):
            raise ValueError("a part is missing or of another kind")
        return identity

    def to_json(self) -> dict[str, Any]:
        """As the JSON value that is written."""
        inner = self.model_dump(mode="json")
        return {"sha256": sha256_json(inner), "manifest": inner}


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
        if not isinstance(value, dict) or value.keys() != {"sha256", "manifest"}:
            raise ValueError("its manifest is not one")
        inner = value["manifest"]
        if not isinstance(inner, dict) or sha256_json(inner) != value["sha256"]:
            raise ValueError("its manifest differs from the manifest's own digest")
        if type(inner.get("format")) is not int or inner["format"] != FORMAT:
            raise WrongFormat(f"is of format {str(inner.get('format'))[:20]}, and this version reads format {FORMAT}")
        return fitted(Manifest, inner)
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
