"""Decode a source into the files of a pack: once, in threads, a few rows in memory at a time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import DataConfig
from sdfast.data.decode import BrokenImage, decode
from sdfast.data.items import SPLITS, Item, ItemList, Source, SourceDigest, item_record, read_item
from sdfast.data.pack import FORMAT, MANIFEST, build_options
from sdfast.data.pack_checks import (
    Rows,
    Tally,
    check_broken,
    check_duplicates,
    label_warnings,
    note_warnings,
    skipped_warning,
)
from sdfast.data.parallel import ordered_map
from sdfast.data.rows import RowWriter, copy_rows, held_out_rows, row_digest
from sdfast.data.transform import Transform
from sdfast.durable import sha256_file, sha256_json, write_json


@dataclass(frozen=True)
class _Decoded:
    """One item after a worker thread: its row, or the reason why there is none."""

    item: Item
    record: bytes
    row: NDArray[np.uint8] | None
    digest: bytes
    notes: frozenset[str]
    reason: str


class PackBuilder:
    """Writes the files of one pack into an empty directory.

    Args:
        source: opened.
        directory: empty, staged.
        transform: from image to row.
        options: the `data` section.
        progress: called with (images done, images in all).
        threads: that read and decode.
    """

    def __init__(
        self,
        source: Source,
        directory: Path,
        transform: Transform,
        options: DataConfig,
        progress: Callable[[int, int], None],
        threads: int,
    ) -> None:
        self.source = source
        self.directory = directory
        self.transform = transform
        self.options = options
        self.progress = progress
        self.threads = threads
        self.tally = Tally(total=sum(len(items) for items in source.splits.values()))
        self.splits: dict[str, Rows] = {}
        self.content = SourceDigest(source.class_names)

    def build(self) -> list[str]:
        """Decode everything, then write the manifest.

        Returns:
            The sentences that a person should read.

        Raises:
            UserError: too many broken files, a split without a usable image, or images shared by train and test.
        """
        for split in ("test", "val", "train"):  # train last: what it shares with the others may be left out of it
            if split in self.source.splits:
                self.splits[split] = self._decode_split(split, self.source.splits[split])
        check_broken(self.source, self.splits, self.tally, self.options)
        duplicates, shared = check_duplicates(self.splits, self.tally, self.options)
        rule, held_out = self._hold_out()
        warnings = [
            *self.source.warnings,
            *skipped_warning(self.tally),
            *note_warnings(self.tally, self.options),
            *shared,
            *label_warnings(self.splits),
            *held_out,
        ]
        self._write_manifest(rule, duplicates, warnings)
        return warnings

    def _decode_split(self, split: str, items: ItemList) -> Rows:
        unwanted: dict[bytes, str] = {}
        if split == "train" and self.options.duplicates == "drop":
            unwanted = {content.tobytes(): other for other, rows in self.splits.items() for content in rows.digests}
        names: list[str] = []
        labels: list[int] = []
        digests: list[bytes] = []
        work = functools.partial(_decode_item, transform=self.transform, options=self.options)
        with (
            RowWriter(self._path(split, "images.npy"), self.transform.row_shape) as writer,
            contextlib.closing(ordered_map(work, items, self.threads)) as decoded,
        ):
            for one in decoded:
                self.content.add(split, one.record)
                self.tally.done += 1
                self.progress(self.tally.done, self.tally.total)
                if one.row is None:
                    self.tally.skipped.append({"split": split, "name": one.item.name, "reason": one.reason})
                    continue
                if one.digest in unwanted:
                    self.tally.dropped.append({"name": one.item.name, "also_in": unwanted[one.digest]})
                    continue
                for note in one.notes:
                    self.tally.notes.setdefault(note, []).append(one.item.name)
                writer.append(one.row)
                names.append(one.item.name)
                labels.append(-1 if one.item.label is None else one.item.label)
                digests.append(one.digest)
        return Rows(names, np.asarray(labels, np.int64), np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))

    def _hold_out(self) -> tuple[dict[str, Any], list[str]]:
        """Make a test split of the labelled rows when the source has neither test nor val."""
        train = self.splits.get("train")
        if train is None or len(self.splits) > 1 or self.source.class_names is None:
            why = "the source's splits" if self.source.class_names is not None else "no labels, so nothing is held out"
            return {"rule": why}, []
        fraction, seed = self.options.test_fraction, self.options.split_seed
        if fraction == 0:
            return {"rule": "data.test_fraction=0, so nothing is held out"}, []
        test = held_out_rows(train.digests, train.labels, fraction, seed)
        if not len(test):
            return {"rule": "too few images of each class to hold any out"}, [
                f"{self.source.name} has no test split and too few images of each class to hold any out."
            ]
        kept = np.setdiff1d(np.arange(len(train.names)), test)
        whole = self._path("train", "images.npy").rename(self.directory / "whole.npy")
        copy_rows(whole, kept, self._path("train", "images.npy"))
        copy_rows(whole, test, self._path("test", "images.npy"))
        whole.unlink()
        self.splits = {"train": train.take(kept), "test": train.take(test)}
        return {
            "rule": "a share of each class is held out of train, chosen by content and seed, equal images together",
            "test_fraction": fraction,
            "split_seed": seed,
            "test_digests": sha256_json(sorted(digest.tobytes().hex() for digest in self.splits["test"].digests)),
        }, [
            f"{self.source.name} has no test split: {len(test):,} of {len(train.names):,} images are held out of train "
            f"(data.test_fraction={fraction:g}, data.split_seed={seed})."
        ]

    def _write_manifest(self, rule: dict[str, Any], duplicates: dict[str, Any], warnings: list[str]) -> None:
        manifest = {
            "format": FORMAT,
            "fingerprint": self._fingerprint(),
            "transform": self.transform.to_json(),
            "options": build_options(self.options),
            "source": {"name": self.source.name, "kind": self.source.kind, "content": self.content.hexdigest()},
            "class_names": self.source.class_names,
            "split_rule": rule,
            "splits": {split: self._write_rest(split) for split in SPLITS if split in self.splits},
            "skipped": self.tally.skipped,
            "duplicates": duplicates,
            "conversions": {note: len(names) for note, names in sorted(self.tally.notes.items())},
            "warnings": warnings,
            "libraries": {name: importlib.metadata.version(name) for name in ("pillow", "numpy", "datasets")},
        }
        write_json(self.directory / MANIFEST, manifest)

    def _write_rest(self, split: str) -> dict[str, Any]:
        """Write what belongs to the images of a split; the split's part of the manifest."""
        rows = self.splits[split]
        np.save(self._path(split, "digests.npy"), rows.digests)
        write_json(self._path(split, "names.json"), rows.names)
        kinds = {"images": "images.npy", "digests": "digests.npy", "names": "names.json"}
        if rows.labelled:
            np.save(self._path(split, "labels.npy"), rows.labels)
            kinds["labels"] = "labels.npy"
        names = self.source.class_names or []
        counts = np.bincount(rows.labels[rows.labels >= 0], minlength=len(names))
        files = {}
        for kind, ending in kinds.items():
            path = self._path(split, ending)
            files[kind] = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        return {
            "rows": len(rows.names),
            "labelled": int(np.sum(rows.labels >= 0)),
            "classes": {name: int(count) for name, count in zip(names, counts, strict=True)},
            "files": files,
        }

    def _fingerprint(self) -> str:
        splits = {
            split: [_sha256(rows.digests), _sha256(rows.labels) if rows.labelled else None]
            for split, rows in self.splits.items()
        }
        return sha256_json([FORMAT, self.transform.to_json(), self.source.class_names, splits])

    def _path(self, split: str, ending: str) -> Path:
        return self.directory / f"{split}-{ending}"


def _decode_item(item: Item, transform: Transform, options: DataConfig) -> _Decoded:
    raw = read_item(item)
    record = item_record(item, raw)
    try:
        row, notes = decode(raw, transform, options)
    except BrokenImage as error:
        return _Decoded(item, record, None, b"", frozenset(), str(error))
    return _Decoded(item, record, row, row_digest(row), notes, "")


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
