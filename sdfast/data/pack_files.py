"""What every pack is: a directory of arrays and names, with a manifest of digests that is written last.

A pack of images (`sdfast.data.pack`) or of texts (`sdfast.data.text_pack`) holds, for each split, its contents,
`<split>-labels.npy` ([n] int64, -1 = no label; absent when no row has one), `<split>-digests.npy` ([n, 32] uint8),
`<split>-names.json` and, for all splits, `manifest.json`.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from sdfast.data.items import SPLITS, Source
from sdfast.data.parallel import available_threads, ordered_map
from sdfast.data.rows import stratified_rows
from sdfast.durable import load_array, read_json, recover_directory, staged_directory
from sdfast.errors import UserError, shortened
from sdfast.regular import read_regular
from sdfast.store.artifact import Digest, Stored, StoredFile, first_changed, first_cut, first_foreign, fitted

MANIFEST = "manifest.json"
ENDINGS = {"digests": "digests.npy", "names": "names.json", "labels": "labels.npy"}  # beside those of the contents

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
_Pack = TypeVar("_Pack", bound="OpenPack[Any]")


class OpenPack(Generic[_Split]):
    """An open pack.

    Attributes:
        format: version of the files and of the manifest; each modality has its own.
        how: the entry of the manifest that says what turned items into rows.
        contents: the kind of file that holds the rows one after the other.
        endings: of the files of a split, by kind, in the order of the manifest.
        directory: where it lies.
        manifest: what `manifest.json` holds.
        class_names: the name of each class number, or None without labels.
        fingerprint: SHA-256 over the transform, class names, and every row's content and label; independent of paths,
            names and library versions.
        splits: "train", "val", "test", those that exist.
        warnings: sentences for a person, as they were given when the pack was built.
    """

    format: ClassVar[int | str]
    how: ClassVar[str]
    contents: ClassVar[str]
    endings: ClassVar[Mapping[str, str]]
    split_kind: ClassVar[type[SplitFiles]]

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        with _explain_damage(directory):
            self.class_names: list[str] | None = manifest["class_names"]
            self.fingerprint: str = manifest["fingerprint"]
            self.warnings: list[str] = manifest["warnings"]
            entries = manifest["splits"]
            self.splits: dict[str, _Split] = {
                name: self.split_kind(directory, entries[name]["files"])  # type: ignore[misc]
                for name in SPLITS
                if name in entries
            }
            self._take(manifest)

    def _take(self, manifest: Manifest) -> None:
        """Keep what else a manifest says."""

    @classmethod
    def open(cls: type[_Pack], directory: Path, verify: bool = True) -> _Pack:
        """Open a pack.

        Args:
            directory: of the pack.
            verify: compare every file's SHA-256 with the manifest, not its size alone.

        Raises:
            UserError: no pack there, one of another format, or a file that differs from the manifest.
        """
        directory = Path(directory)
        return cls(directory, _read_manifest(directory, cls.format, verify))

    @classmethod
    def prepare(
        cls: type[_Pack],
        directory: Path,
        made: Mapping[str, Any],
        source: Source,
        threads: int,
        build: Callable[[Path], list[str]],
        notify: Callable[[str], None],
    ) -> _Pack:
        """The pack of a source, built when it is missing, damaged, or made from other content or in another way.

        Whether it is up to date is decided by the bytes of the source, not by paths or times. The new pack is staged
        beside the old one, so that a killed process leaves the old pack or none.

        Args:
            directory: of the pack.
            made: `format` and the other entries of the manifest that say how its contents were made.
            source: opened.
            threads: that read the source.
            build: writes the files into the empty directory that it is given; its sentences for a person go to
                `notify`.
            notify: also told when the pack is damaged.

        Raises:
            UserError: what `build` raises, or a `directory` that holds something else than a pack.
            RunError: the pack cannot be written.
        """
        if (manifest := _current_manifest(directory, made, source, threads, notify)) is not None:
            return cls(directory, manifest)
        endings = tuple(f"-{ending}" for ending in cls.endings.values())
        foreign = first_foreign(directory, lambda name: name == MANIFEST or name.endswith(endings))
        if foreign or (directory.exists() and not directory.is_dir()):
            what = f"holds {foreign!r}, which is no part of a pack" if foreign else "is a file"
            raise UserError(f"{directory} {what}; choose another --out.")
        with staged_directory(directory) as staging:
            warnings = build(staging)
        for warning in warnings:
            notify(warning)
        return cls.open(directory, verify=False)

    def split(self, name: str) -> _Split:
        """The split of that name.

        Raises:
            UserError: when the source had none.
        """
        if name not in self.splits:
            raise UserError(f"{self.manifest['source']['name']} has no {name} split; it has {', '.join(self.splits)}.")
        return self.splits[name]


def conversions_of(directory: Path) -> frozenset[str]:
    """The kinds of items that the pack in `directory` says it was made of (`conversions`); none without a pack."""
    recover_directory(directory)
    manifest = read_json(directory / MANIFEST)
    kinds = manifest.get("conversions") if isinstance(manifest, dict) else None
    return frozenset(kinds) if isinstance(kinds, dict) else frozenset()


def _read_manifest(directory: Path, format_: int | str, verify: bool) -> Manifest:
    """The manifest of a pack whose files are there, as `OpenPack.open` wants it."""
    recover_directory(directory)
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or not manifest.keys() >= {"format", "fingerprint", "splits"}:
        raise UserError(f"{directory} holds no pack; run the stage again to build it.")
    if manifest["format"] != format_:
        old = shortened(manifest["format"])
        raise UserError(f"{directory} is a pack of format {old}, not {format_}; delete it to build it anew.")
    with _explain_damage(directory):
        stored = fitted(_StoredManifest, manifest)
    files = [(directory / entry.file, entry) for split in stored.splits.values() for entry in split.files.values()]
    damaged = first_cut((path, entry.bytes) for path, entry in files)
    if damaged is None and verify:
        each = functools.partial(ordered_map, threads=min(available_threads(), len(files)))
        damaged = first_changed(((path, entry.sha256) for path, entry in files), each)
    if damaged is not None:
        raise UserError(
            f"{damaged} is missing or differs from its manifest; delete {directory} to build the pack anew."
        )
    return manifest


def _current_manifest(
    directory: Path, made: Mapping[str, Any], source: Source, threads: int, notify: Callable[[str], None]
) -> Manifest | None:
    """The manifest of the whole pack that was made of this source in this way; None when there is none."""
    recover_directory(directory)
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or any(manifest.get(key) != value for key, value in made.items()):
        return None
    try:
        with _explain_damage(directory):
            stored = fitted(_StoredManifest, manifest)
        if stored.source.content != source.content_digest(threads):
            return None
        return _read_manifest(directory, made["format"], verify=True)
    except UserError as error:
        notify(f"{error} It is built again now.")
        return None


@contextlib.contextmanager
def _explain_damage(directory: Path) -> Iterator[None]:
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
