"""What every pack is: a directory of arrays and names, with a manifest of digests that is written last.

A pack of images (`sdfast.data.pack`) or of texts (`sdfast.data.text_pack`) holds, for each split, its contents,
`<split>-labels.npy` ([n] int64, -1 = no label; absent when no row has one), `<split>-digests.npy` ([n, 32] uint8),
`<split>-names.json` and, for all splits, `manifest.json`.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from sdfast.data.items import SPLITS, Source
from sdfast.data.parallel import available_threads, ordered_map
from sdfast.data.rows import stratified_rows
from sdfast.durable import load_array, read_json, recover_directory, sha256_file, staged_directory
from sdfast.errors import UserError, shortened
from sdfast.regular import read_regular
from sdfast.stored import Digest, Stored, StoredFile, fitted

MANIFEST = "manifest.json"
ENDINGS = ("-labels.npy", "-digests.npy", "-names.json")

Manifest = dict[str, Any]


class _File(StoredFile):
    file: Annotated[str, StringConstraints(pattern=r"^[a-z-]+\.(npy|json)$")]


class _SplitEntry(Stored):
    files: dict[str, _File]


class _SourceEntry(Stored):
    name: str
    kind: str
    content: str


class _StoredManifest(Stored):
    """What every manifest holds; its own digest too, which those of earlier versions lack."""

    format: int | str
    fingerprint: Digest
    class_names: list[str] | None
    warnings: list[str]
    source: _SourceEntry
    splits: Annotated[dict[Literal["train", "val", "test"], _SplitEntry], Field(min_length=1)]


@contextlib.contextmanager
def explain_damage(directory: Path) -> Iterator[None]:
    """Turn what is wrong with the values of a manifest into one sentence.

    Raises:
        UserError: in place of the error that reading them gave.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = str(error) if isinstance(error, ValueError) else "a value is missing or of another kind"
        raise UserError(
            f"{directory / MANIFEST} is damaged: {what}; delete {directory} to build the pack anew."
        ) from error


class SplitFiles:
    """The rows of one split beside their contents.

    Attributes:
        labels: [n] int64, -1 where a row has no label; None when no row has one.
        digests: [n, 32] uint8, SHA-256 of the row's content as the model sees it.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]]) -> None:
        self._names = directory / files["names"]["file"], files["names"]["bytes"]
        self.digests: NDArray[np.uint8] = load_array(directory / files["digests"]["file"])
        self.labels: NDArray[np.int64] | None = (
            load_array(directory / files["labels"]["file"]) if "labels" in files else None
        )

    def __len__(self) -> int:
        return len(self.digests)

    @functools.cached_property
    def names(self) -> list[str]:
        """Each row's name in the source."""
        path, size = self._names
        return list(json.loads(read_regular(path, size)))

    @property
    def choice_digests(self) -> NDArray[np.uint8]:
        """[n, 32] uint8: what the choice of rows goes by."""
        return self.digests

    def limited(self, limit: int | None, seed: int) -> NDArray[np.int64]:
        """`limit` of the rows: stratified by label, seeded, nested (see `stratified_rows`); None gives all.

        Returns:
            [min(limit, n)] int64, ascending.
        """
        return stratified_rows(self.choice_digests, self.labels, limit, seed)


_Split = TypeVar("_Split", bound=SplitFiles)


class OpenPack(Generic[_Split]):
    """An open pack.

    Attributes:
        directory: where it lies.
        manifest: what `manifest.json` holds.
        class_names: the name of each class number, or None without labels.
        fingerprint: SHA-256 over the transform, class names, and every row's content and label; independent of paths,
            names and library versions.
        splits: "train", "val", "test", those that exist.
        warnings: sentences for a person, as they were given when the pack was built.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: Callable[[Path, dict[str, Any]], _Split]) -> None:
        self.directory = directory
        self.manifest = manifest
        self.class_names: list[str] | None = manifest["class_names"]
        self.fingerprint: str = manifest["fingerprint"]
        self.warnings: list[str] = manifest["warnings"]
        self.splits = {
            name: split(directory, manifest["splits"][name]["files"]) for name in SPLITS if name in manifest["splits"]
        }

    def split(self, name: str) -> _Split:
        """The split of that name.

        Raises:
            UserError: when the source had none.
        """
        if name not in self.splits:
            raise UserError(f"{self.manifest['source']['name']} has no {name} split; it has {', '.join(self.splits)}.")
        return self.splits[name]


def read_manifest(directory: Path, format_: int | str, verify: bool) -> Manifest:
    """The manifest of a pack whose files are there.

    Args:
        directory: of the pack.
        format_: its `format` must be this.
        verify: compare every file's SHA-256 with the manifest, not its size alone.

    Raises:
        UserError: no pack there, one of another format, or a file that differs from the manifest.
    """
    recover_directory(directory)
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or not manifest.keys() >= {"format", "fingerprint", "splits"}:
        raise UserError(f"{directory} holds no pack; run the stage again to build it.")
    if manifest["format"] != format_:
        old = shortened(manifest["format"])
        raise UserError(f"{directory} is a pack of format {old}, not {format_}; delete it to build it anew.")
    with explain_damage(directory):
        fitted(_StoredManifest, manifest)
    files = [entry for split in manifest["splits"].values() for entry in split["files"].values()]
    for entry in files:
        path = directory / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise UserError(_damaged(path))
    if verify:
        paths = [directory / entry["file"] for entry in files]
        digests = ordered_map(sha256_file, paths, min(available_threads(), len(paths)))
        for path, entry, digest in zip(paths, files, digests, strict=True):
            if digest != entry["sha256"]:
                raise UserError(_damaged(path))
    return manifest


def conversions_of(directory: Path) -> frozenset[str]:
    """The kinds of items that the pack in `directory` says it was made of (`conversions`); none without a pack."""
    recover_directory(directory)
    manifest = read_json(directory / MANIFEST)
    kinds = manifest.get("conversions") if isinstance(manifest, dict) else None
    return frozenset(kinds) if isinstance(kinds, dict) else frozenset()


def current_manifest(
    directory: Path, made: Mapping[str, Any], source: Source, threads: int, notify: Callable[[str], None]
) -> Manifest | None:
    """The manifest of the whole pack in `directory` that was made of this source in this way; None when there is none.

    Args:
        directory: of the pack, if there is one.
        made: `format` and the other entries of the manifest that say how its contents were made.
        source: opened; its bytes decide, not paths or times.
        threads: that read the source.
        notify: told when the pack is damaged.
    """
    recover_directory(directory)
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or any(manifest.get(key) != value for key, value in made.items()):
        return None
    try:
        with explain_damage(directory):
            fitted(_StoredManifest, manifest)
        if manifest["source"]["content"] != source.content_digest(threads):
            return None
        return read_manifest(directory, made["format"], verify=True)
    except UserError as error:
        notify(f"{error} It is built again now.")
        return None


def build_pack(
    directory: Path, endings: Sequence[str], build: Callable[[Path], list[str]], notify: Callable[[str], None]
) -> None:
    """Build a pack beside `directory` and put it in its place, so that a killed process leaves the old pack or none.

    Args:
        directory: of the pack.
        endings: of the files with the contents of a split.
        build: writes the files into the empty directory that it is given; its sentences for a person go to `notify`.

    Raises:
        UserError: what `build` raises, or a `directory` that holds something else than a pack.
        RunError: the pack cannot be written.
    """
    _refuse_foreign(directory, (*ENDINGS, *endings))
    with staged_directory(directory) as staging:
        warnings = build(staging)
    for warning in warnings:
        notify(warning)


def no_progress(done: int, total: int) -> None:
    """For a caller that shows none."""


def _refuse_foreign(directory: Path, endings: tuple[str, ...]) -> None:
    """Stop before a directory that holds other things than a pack would be replaced."""
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    foreign = [name for name in names if name != MANIFEST and not name.endswith(endings)]
    if foreign or (directory.exists() and not directory.is_dir()):
        what = f"holds {foreign[0]!r}, which is no part of a pack" if foreign else "is a file"
        raise UserError(f"{directory} {what}; choose another --out.")


def _damaged(path: Path) -> str:
    return f"{path} is missing or differs from its manifest; delete {path.parent} to build the pack anew."
