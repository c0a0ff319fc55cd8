"""What a bank holds the features of, by content: never by names, paths or times."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.durable import sha256_json
from sdfast.errors import UserError


def rows_digest(digests: NDArray[np.uint8]) -> str:
    """SHA-256 of the set of row digests: independent of their order and of repetitions."""
    keys = np.unique(digest_keys(digests))
    return hashlib.sha256(keys.tobytes()).hexdigest()


def digest_keys(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """[n, 32] uint8 -> [n] values of 32 bytes that can be sorted and searched."""
    return np.ascontiguousarray(digests).view("S32").reshape(-1)


def view_digests(digests: NDArray[np.uint8], views: int) -> NDArray[np.uint8]:
    """Names of the views of some images.

    Args:
        digests: [n, 32] uint8, content digests.
        views: K.

    Returns:
        [n * K, 32] uint8, the views of an image together: its digest, the view's number XORed to the last four bytes
        (so that view 0 has the image's own).
    """
    named = np.repeat(digests, views, axis=0)
    named[:, -4:] ^= np.tile(np.arange(views, dtype="<u4"), len(digests)).view(np.uint8).reshape(-1, 4)
    return named


def fingerprint(identity: dict[str, Any]) -> str:
    """SHA-256 of an identity."""
    return sha256_json(identity)


def first_difference(stored: Any, wanted: Any, name: str = "") -> str | None:
    """A sentence part that names the first field in which two identities differ; None when they are equal."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in {**wanted, **stored}:
            path = f"{name}.{key}" if name else str(key)
            if (found := first_difference(stored.get(key), wanted.get(key), path)) is not None:
                return found
        return None
    if type(stored) is type(wanted) and stored == wanted:
        return None
    return f"{name} is {_short(stored)} there and {_short(wanted)} here"


def check_identity(stored: dict[str, Any], wanted: dict[str, Any], directory: Path) -> None:
    """Compare a bank's identity with the one that is needed.

    Raises:
        UserError: they differ; the message names the field.
    """
    difference = first_difference(stored, wanted)
    if difference is not None:
        settings = [f"{key}={value}" for key, value in _settings(wanted).items() if value != _settings(stored).get(key)]
        command = " ".join(("sdfast cache build --out", shlex.quote(str(directory.parent)), "--rebuild", *settings))
        raise UserError(
            f"the teacher bank {directory} is of something else: {difference}; delete it, or run `{command}`, to "
            "replace it."
        )


def _settings(identity: dict[str, Any]) -> dict[str, Any]:
    """The configuration keys that an identity shows, by name; values of a stored one may be of any kind."""
    features, augment = identity["features"], identity["augment"]
    return {
        "distill.tokens": features["tokens"],
        "distill.layer": features.get("layer"),
        "teacher.dtype": identity["dtype"],
        "pretrain.augment": augment["kind"],
        "teacher.views": augment.get("views", 0),
    }


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text[:12] + "..." if len(text) == 64 else text[:60]
