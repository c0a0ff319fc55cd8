"""Write a source into the files of a pack, a few rows in memory at a time: what images and texts have in common."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import DataConfig
from sdfast.data.items import SPLITS, ItemList, Source, SourceDigest
from sdfast.data.pack_checks import (
    Rows,
    Tally,
    check_broken,
    check_duplicates,
    class_warnings,
    contradiction_warnings,
    copies_warning,
    label_warnings,
    repeated_warning,
    skipped_warning,
)
from sdfast.data.pack_files import MANIFEST
from sdfast.data.rows import held_out_rows
from sdfast.durable import sealed, sha256_array, sha256_file, sha256_json, write_json

_Rows = TypeVar("_Rows", bound=Rows)


class PackBuilder(ABC, Generic[_Rows]):
    """Writes the files of one pack into an empty directory.

    Args:
        source: opened.
        directory: empty, staged.
        options: the `data` section.
        progress: called with (items done, items in all).
        threads: that read and convert.
    """

    def __init__(
        self,
        source: Source,
        directory: Path,
        options: DataConfig,
        progress: Callable[[int, int], None],
        threads: int,
    ) -> None:
        self.source = source
        self.directory = directory
        self.options = options
        self.progress = progress
        self.threads = threads
        self.tally = Tally(sum(len(items) for items in source.splits.values()), source.modality)
        self.splits: dict[str, _Rows] = {}
        self.content = SourceDigest(source.class_names)

    @abstractmethod
    def made(self) -> dict[str, Any]:
        """`format` and the other entries of the manifest that say how the contents were made."""

    @abstractmethod
    def transform_json(self) -> dict[str, Any]:
        """What turned items into rows, for the fingerprint."""

    @abstractmethod
    def write_split(self, split: str, items: ItemList) -> _Rows:
        """Convert the items of a split, write their contents, and tell the tally and the source's digest."""

    @abstractmethod
    def take(self, rows: NDArray[np.int64], whole: _Rows, contents: Path, split: str) -> _Rows:
        """Write a part of the rows of a split, whose contents now lie in `contents`, as those of `split`."""

    @abstractmethod
    def write_rest(self, split: str) -> dict[str, str]:
        """Write what else belongs to the contents of a split; the endings of all its content files by kind."""

    @abstractmethod
    def notes(self) -> list[str]:
        """One sentence for each kind of item that a person may expect to be treated in another way."""

    def split_details(self, split: str) -> dict[str, Any]:
        """What else the manifest says of a split."""
        return {}

    def row_digests(self, rows: _Rows) -> list[NDArray[Any]]:
        """The digests of a split that enter the fingerprint."""
        return [rows.digests]

    contents_ending: str
    libraries: Sequence[str]

    def build(self) -> list[str]:
        """Convert everything, then write the manifest.

        Returns:
            The sentences that a person should read.

        Raises:
            UserError: too many broken items, a split without a usable one, or items shared by train and test.
        """
        for split in ("test", "val", "train"):  # train last: what it shares with the others may be left out of it
            if split in self.source.splits:
                self.splits[split] = self.write_split(split, self.source.splits[split])
        check_broken(self.source, self.splits, self.tally, self.options)
        duplicates, shared = check_duplicates(self.splits, self.tally, self.options)
        rule, held_out = self._hold_out()
        warnings = [
            *self.source.warnings,
            *skipped_warning(self.tally),
            *self.notes(),
            *shared,
            *label_warnings(self.splits, self.tally),
            *held_out,
            *repeated_warning(self.splits.get("train"), self.tally),
            *contradiction_warnings(self.splits, self.tally),
            *class_warnings(self.splits, self.source.class_names, self.tally, "test_fraction" in rule),
        ]
        self._write_manifest(rule, duplicates, warnings)
        return warnings

    def unwanted(self, split: str) -> dict[bytes, str]:
        """Contents that are left out of a split, and the split that has them already."""
        if split != "train" or self.options.duplicates != "drop":
            return {}
        return {content.tobytes(): other for other, rows in self.splits.items() for content in rows.digests}

    def path(self, split: str, ending: str) -> Path:
        """A file of a split."""
        return self.directory / f"{split}-{ending}"

    def _hold_out(self) -> tuple[dict[str, Any], list[str]]:
        """Make a test split of the labelled rows when the source has neither test nor val."""
        many = self.source.modality.many
        train = self.splits.get("train")
        if train is None or len(self.splits) > 1 or self.source.class_names is None:
            why = "the source's splits" if self.source.class_names is not None else "no labels, so nothing is held out"
            return {"rule": why}, []
        fraction, seed = self.options.test_fraction, self.options.split_seed
        if fraction == 0:
            return {"rule": "data.test_fraction=0, so nothing is held out"}, []
        test = held_out_rows(train.choice_digests, train.labels, fraction, seed)
        if not len(test):
            return {"rule": f"too few {many} of each class to hold any out"}, [
                f"{self.source.name} has no test split and too few {many} of each class to hold any out.",
                *copies_warning(train, self.tally),
            ]
        kept = np.setdiff1d(np.arange(len(train.names)), test)
        contents = self.path("train", self.contents_ending).rename(self.directory / "whole.npy")
        self.splits = {
            "train": self.take(kept, train, contents, "train"),
            "test": self.take(test, train, contents, "test"),
        }
        contents.unlink()
        return {
            "rule": f"a share of each class is held out of train, chosen by content and seed, equal {many} together",
            "test_fraction": fraction,
            "split_seed": seed,
            "test_digests": sha256_json(sorted(digest.tobytes().hex() for digest in self.splits["test"].digests)),
        }, [
            f"{self.source.name} has no test split: {len(test):,} of {len(train.names):,} {many} are held out of train "
            f"(data.test_fraction={fraction:g}, data.split_seed={seed}).",
            *copies_warning(train, self.tally),
        ]

    def _write_manifest(self, rule: dict[str, Any], duplicates: dict[str, Any], warnings: list[str]) -> None:
        made = self.made()
        manifest = {
            "format": made.pop("format"),
            "fingerprint": self._fingerprint(),
            **made,
            "source": {"name": self.source.name, "kind": self.source.kind, "content": self.content.hexdigest()},
            "class_names": self.source.class_names,
            "split_rule": rule,
            "splits": {split: self._write_split_rest(split) for split in SPLITS if split in self.splits},
            "skipped": self.tally.skipped,
            "duplicates": duplicates,
            "conversions": {note: len(names) for note, names in sorted(self.tally.notes.items())},
            "warnings": warnings,
            "libraries": {name: importlib.metadata.version(name) for name in self.libraries},
        }
        write_json(self.directory / MANIFEST, sealed(manifest))

    def _write_split_rest(self, split: str) -> dict[str, Any]:
        """Write what belongs to the contents of a split; the split's part of the manifest."""
        rows = self.splits[split]
        np.save(self.path(split, "digests.npy"), rows.digests)
        write_json(self.path(split, "names.json"), rows.names)
        kinds = {**self.write_rest(split), "digests": "digests.npy", "names": "names.json"}
        if rows.labelled:
            np.save(self.path(split, "labels.npy"), rows.labels)
            kinds["labels"] = "labels.npy"
        names = self.source.class_names or []
        counts = np.bincount(rows.labels[rows.labels >= 0], minlength=len(names))
        files = {}
        for kind, ending in kinds.items():
            path = self.path(split, ending)
            files[kind] = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        return {
            "rows": len(rows.names),
            "labelled": int(np.sum(rows.labels >= 0)),
            "classes": {name: int(count) for name, count in zip(names, counts, strict=True)},
            **self.split_details(split),
            "files": files,
        }

    def _fingerprint(self) -> str:
        splits = {
            split: [*map(sha256_array, self.row_digests(rows)), sha256_array(rows.labels) if rows.labelled else None]
            for split, rows in self.splits.items()
        }
        return sha256_json([self.made()["format"], self.transform_json(), self.source.class_names, splits])
