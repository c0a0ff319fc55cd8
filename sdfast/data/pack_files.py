"""What every pack is: a directory of arrays and names, with a manifest of digests that is written last.

A pack of images (`sdfast.modalities.images.pack`) or of texts (`sdfast.modalities.texts.pack`) holds, for each split,
its contents, `<split>-labels.npy` ([n] int64, -1 = no label, or as `sdfast.data.problem` says; absent when no row has
one), `<split>-digests.npy` ([n, 32] uint8), `<split>-names.json` and, for all splits, `manifest.json`.
"""

from __future__ import annotations

import contextlib
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from sdfast.data.config import DataConfig
from sdfast.data.items import SPLITS, Source
from sdfast.data.modality import Modality
from sdfast.data.parallel import available_threads, ordered_map
from sdfast.data.problem import SINGLE, Labels, ProblemType, strata
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
    problem_type: ProblemType = SINGLE
    warnings: list[str]
    source: _SourceEntry
    splits: Annotated[dict[Literal["train", "val", "test"], _SplitEntry], Field(min_length=1)]


_Split = TypeVar("_Split", bound="SplitFiles")


class SplitFiles:
    """The rows of one split beside their contents.

    Attributes:
        labels: [n] int64, -1 where a row has no label, or as `sdfast.data.problem` says; None when no row has one.
        digests: [n, 32] uint8, SHA-256 of the row's content as the model sees it.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]]) -> None:
        self._names = directory / files["names"]["file"], files["names"]["bytes"]
        self._limited: dict[tuple[int, int], NDArray[np.int64]] = {}  # of a million rows the choice takes seconds
        self.digests: NDArray[np.uint8] = load_array(directory / files["digests"]["file"])
        self.labels: Labels | None = load_array(directory / files["labels"]["file"]) if "labels" in files else None

    @classmethod
    def in_memory(cls: type[_Split], digests: NDArray[np.uint8]) -> _Split:
        """Rows of these digests that lie in no file, without labels and names; the caller gives them contents."""
        split = cls.__new__(cls)
        split._limited, split.digests, split.labels = {}, digests, None
        return split

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
        if limit is None or limit >= len(self):
            return np.arange(len(self))
        if (limit, seed) not in self._limited:
            groups = None if self.labels is None else strata(self.labels)
            self._limited[limit, seed] = stratified_rows(self.choice_digests, groups, limit, seed)
        return self._limited[limit, seed].copy()


_Pack = TypeVar("_Pack", bound="OpenPack[Any]")


class OpenPack(ABC, Generic[_Split]):
    """An open pack.

    Attributes:
        format: version of the files and of the manifest; each modality has its own.
        modality: what the items of its source are.
        how: the entry of the manifest that says what turned items into rows.
        contents: the kind of file that holds the rows one after the other.
        endings: of the files of a split, by kind, in the order of the manifest.
        split_kind, builder: what reads a split, and what writes the pack.
        directory: where it lies.
        manifest: what `manifest.json` holds.
        class_names: the name of each class number, or of each number of a row; None without labels.
        problem: what the labels are.
        fingerprint: SHA-256 over the transform, class names, and every row's content and label; independent of paths,
            names and library versions.
        splits: "train", "val", "test", those that exist.
        warnings: sentences for a person, as they were given when the pack was built.
    """

    format: ClassVar[int | str]
    modality: ClassVar[Modality]
    how: ClassVar[str]
    contents: ClassVar[str]
    endings: ClassVar[Mapping[str, str]]
    split_kind: ClassVar[type[SplitFiles]]
    builder: ClassVar[Any]  # a `PackBuilder`

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        with _explain_damage(directory):
            self.class_names: list[str] | None = manifest["class_names"]
            self.problem: ProblemType = manifest.get("problem_type", SINGLE)
            self.fingerprint: str = manifest["fingerprint"]
            self.warnings: list[str] = manifest["warnings"]
            entries = manifest["splits"]
            self.splits: dict[str, _Split] = {
                name: self.split_kind(directory, entries[name]["files"])  # type: ignore[misc]
                for name in SPLITS
                if name in entries
            }
            self._take(manifest)

    @abstractmethod
    def _take(self, manifest: Manifest) -> None:
        """Keep what turned items into rows."""

    @classmethod
    @abstractmethod
    def made(cls, how: Any, options: DataConfig, met: Collection[str]) -> dict[str, Any]:
        """`format` and the other entries of a manifest that say how the contents were made.

        Args:
            how: from item to row, a `Transform` or a `Tokenizer`.
            options: the `data` section.
            met: the kinds of items in the pack, by the notes of its builder.
        """

    @classmethod
    def as_stored(cls, how: Any, options: DataConfig, manifest: Manifest) -> Any:
        """What turns items into rows, with what the pack of a manifest has of that where the options leave it open."""
        return how

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
        recover_directory(directory)
        manifest = read_json(directory / MANIFEST)
        if not isinstance(manifest, dict) or not manifest.keys() >= {"format", "fingerprint", "splits"}:
            raise UserError(f"{directory} holds no pack; run the stage again to build it.")
        if manifest["format"] != cls.format:
            old = shortened(manifest["format"])
            raise UserError(f"{directory} is a pack of format {old}, not {cls.format}; delete it to build it anew.")
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
        return cls(directory, manifest)

    @classmethod
    def prepare(
        cls: type[_Pack],
        source_spec: str,
        directory: Path,
        how: Any,
        options: DataConfig,
        notify: Callable[[str], None],
        progress: Callable[[int, int], None] | None = None,
        threads: int | None = None,
    ) -> _Pack:
        """The pack of a source, built when it is missing, damaged, or made from other content or in another way.

        Whether it is up to date is decided by the bytes of the source and the content of what converts them, not by
        paths or times. The new pack is staged beside the old one, so that a killed process leaves the old pack or none.

        Args:
            source_spec: what `open_source` takes.
            directory: of the pack.
            how: from item to row: a `Transform` of images, or of texts a `Tokenizer`, which has their greatest length.
            options: the `data` section; `source`, `limit`, `limit_seed`, what `how` decides (`image_size`, `channels`,
                `max_length`), `token_budget` and what is of the other modality alone do not matter here.
            notify: called with each sentence that a person should read, while a pack is built.
            progress: called with (items done, items in all).
            threads: that read and convert; by default, those that the process may use, at most 16.

        Raises:
            UserError: see `open_source`; too many items that cannot be used, no usable one in a split, items that train
                shares with test, or a `directory` that holds something else.
            RunError: the pack cannot be written.
        """
        from sdfast.data.sources import open_source

        directory, threads = Path(directory), threads or available_threads()
        source = open_source(source_spec, options, cls.modality)
        if (pack := cls._current(directory, how, options, source, threads, notify)) is not None:
            return pack
        endings = tuple(f"-{ending}" for ending in cls.endings.values())
        foreign = first_foreign(directory, lambda name: name == MANIFEST or name.endswith(endings))
        if foreign or (directory.exists() and not directory.is_dir()):
            what = f"holds {foreign!r}, which is no part of a pack" if foreign else "is a file"
            raise UserError(f"{directory} {what}; choose another --out.")
        with staged_directory(directory) as staging:
            warnings = cls.builder(cls, source, staging, how, options, progress, threads).build()
        for warning in warnings:
            notify(warning)
        return cls.open(directory, verify=False)

    @classmethod
    def _current(
        cls: type[_Pack],
        directory: Path,
        how: Any,
        options: DataConfig,
        source: Source,
        threads: int,
        notify: Callable[[str], None],
    ) -> _Pack | None:
        """The whole pack that is there and was made of this source in this way; None when there is none."""
        recover_directory(directory)
        manifest = read_json(directory / MANIFEST)
        if not isinstance(manifest, dict):
            return None
        met = manifest.get("conversions")
        made = cls.made(cls.as_stored(how, options, manifest), options, met if isinstance(met, dict) else ())
        if any(manifest.get(key) != value for key, value in made.items()):
            return None
        try:
            with _explain_damage(directory):
                stored = fitted(_StoredManifest, manifest)
            return cls.open(directory) if stored.source.content == source.content_digest(threads) else None
        except UserError as error:
            notify(f"{error} It is built again now.")
            return None

    def split(self, name: str) -> _Split:
        """The split of that name.

        Raises:
            UserError: when the source had none.
        """
        if name not in self.splits:
            raise UserError(f"{self.manifest['source']['name']} has no {name} split; it has {', '.join(self.splits)}.")
        return self.splits[name]


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
