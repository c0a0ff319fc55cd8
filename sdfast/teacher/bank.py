"""A bank: the teacher's features by content digest, every block checked before it is used.

It is a directory of rows (`sdfast.store.rows` says where they lie), and beside them

* `manifest.json`: `{"sha256": ..., "manifest": {...}}`, the digest being that of the inner value in canonical form;
* `built.json`: when and how long it was built, for people; nothing depends on it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import field_validator
from torch import Tensor

from sdfast.data.parallel import available_threads, ordered_map
from sdfast.durable import recover_directory, sha256_json
from sdfast.errors import UserError
from sdfast.store.artifact import Digest, Stored, fitted
from sdfast.store.rows import CHECKSUMS, DIGEST_BYTES, ROWS, Layout, RowFiles, checksum, open_sized, read_whole
from sdfast.teacher.fingerprint import check_identity, digest_keys, fingerprint, rows_digest
from sdfast.teacher.storage import decode

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


@dataclass(frozen=True)
class Built:
    """When and how a bank was built, for people; nothing depends on it.

    Attributes:
        at: seconds since 1970.
        seconds: that it took.
        device: that the teacher ran on.
    """

    at: float
    seconds: float
    device: str

    @classmethod
    def of(cls, directory: Path) -> Built | None:
        """That of the bank in a directory; None when it cannot be read."""
        try:
            stored = json.loads(read_whole(directory / BUILT, limit=1 << 16))
            at, seconds = float(stored["at"]), float(stored["seconds"])
            return cls(at, seconds, str(stored["device"])[:60]) if math.isfinite(at + seconds) else None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None


class Bank(RowFiles):
    """The features of a data set, on the disk.

    Attributes:
        directory: where it lies.
        identity: what the features are of.
        layout: where each row lies.
        digests: [n, 32] uint8, the content digest of each row's image.
        spread: largest standard deviation of a feature over a sample of the rows.
    """

    def __init__(self, directory: Path, manifest: Manifest, digests: NDArray[np.uint8], checksums: bytes) -> None:
        super().__init__(directory, manifest.layout, checksums, in_threads)
        self.identity: dict[str, Any] = manifest.identity
        self.spread: float = manifest.spread
        self.digests = digests

    def __len__(self) -> int:
        return self.layout.rows

    @property
    def fingerprint(self) -> str:
        """Digest of the identity."""
        return fingerprint(self.identity)

    @property
    def bytes(self) -> int:
        """Bytes of the binary files."""
        return sum(self.layout.sizes().values())

    @property
    def built(self) -> Built | None:
        """The note of the build; None when it cannot be read."""
        return Built.of(self.directory)

    def rows_of(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """[m, 32] uint8 content digests -> [m] int64 rows of the bank, -1 where it holds none."""
        keys, wanted = digest_keys(self.digests), digest_keys(digests)
        order = np.argsort(keys, kind="stable")
        place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
        rows = order[place]
        return np.where(keys[rows] == wanted, rows, -1).astype(np.int64)

    def load(self) -> tuple[Tensor, Tensor | None]:
        """All features in memory, each block compared with its checksum.

        Returns:
            [n, *shape] in the bank's dtype, and for int8 the scales, [n, *shape[:-1]] float32.

        Raises:
            UserError: a block is damaged.
        """
        return decode(self.load_streams(), self.layout)

    def load_streams(self, pinned: bool = False) -> list[Tensor]:
        """All data files in memory, each block compared with its checksum: [n, bytes] uint8 for each stream.

        Args:
            pinned: in pages that a CUDA device copies from by itself.

        Raises:
            UserError: a block is damaged.
        """
        sizes = self.layout.streams.values()
        whole = [torch.empty(len(self), size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]
        with self.explained():
            self.read_all([values.numpy() for values in whole])
        return whole

    def check(self) -> None:
        """Compare every block with its checksum, a few MiB in memory at a time.

        Raises:
            UserError: a block is damaged.
        """
        with self.explained():
            self.read_all(None)

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """A damaged block that is read inside becomes a UserError."""
        return explained(self.directory)


def open_bank(directory: Path, wanted: dict[str, Any] | None = None) -> Bank:
    """Open a bank and check everything but the features themselves, which are checked as they are read.

    Args:
        directory: of the bank.
        wanted: the identity that it must have; any when not given.

    Raises:
        UserError: none there, one of something else (the message names the field), or a damaged one.
    """
    directory = Path(directory)
    recover_directory(directory)
    if not (directory / MANIFEST).exists():
        raise UserError(
            f"{directory} holds no teacher bank; run `sdfast cache build --out {directory.parent}` to make it."
        )
    with explained(directory):
        manifest = read_manifest(directory)
    if wanted is not None:
        check_identity(manifest.identity, wanted, directory)
    with explained(directory):
        return _opened(directory, manifest)


def _opened(directory: Path, manifest: Manifest) -> Bank:
    layout = manifest.layout
    features = manifest.identity["features"]
    if manifest.identity["dtype"] != layout.dtype or features["shape"] != list(layout.shape):
        raise ValueError("its layout does not fit its identity")
    for name, size in layout.sizes().items():
        os.close(open_sized(directory / name, size))
    rows = read_whole(directory / ROWS, layout.rows * DIGEST_BYTES)
    checksums = read_whole(directory / CHECKSUMS, layout.blocks * DIGEST_BYTES)
    for name, data, digest in ((ROWS, rows, manifest.rows_sha256), (CHECKSUMS, checksums, manifest.checksums_sha256)):
        if checksum(data).hex() != digest:
            raise ValueError(f"{name} differs from the manifest")
    digests = np.frombuffer(rows, np.uint8).reshape(-1, DIGEST_BYTES)
    if rows_digest(digests) != manifest.identity["rows"]:
        raise ValueError(f"{ROWS} is not of the images that the manifest names")
    return Bank(directory, manifest, digests, checksums)


def in_threads(work: Callable[[Any], Any], parts: Sequence[Any]) -> Iterable[Any]:
    """Like `map`, in the threads that this process may use."""
    return ordered_map(work, parts, min(available_threads(), len(parts)))
