"""Write a source into the files of a pack, a few rows in memory at a time; what differs is how an item is converted."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sdfast.data import pack_checks as checks
from sdfast.data.config import DataConfig
from sdfast.data.division import fold_rows, grouped_test_rows
from sdfast.data.items import SPLITS, UNLABELLED, Item, ItemList, Source, SourceDigest
from sdfast.data.pack_checks import Copies, Rows, Tally, as_digests, check_broken, check_copies, check_duplicates
from sdfast.data.pack_files import MANIFEST, OpenPack, SplitFiles
from sdfast.data.parallel import ordered_map
from sdfast.data.problem import SINGLE, Label, class_counts, label_array
from sdfast.data.rows import RowWriter, held_out_rows
from sdfast.durable import load_array, sealed, sha256_array, sha256_json, write_json
from sdfast.store.artifact import described


@dataclass(frozen=True)
class Converted:
    """One item after a worker thread: its contents, or the reason why there are none.

    Attributes:
        name: of the item.
        label: see `Item`; None or -1 where it has none.
        record: see `item_record`.
        contents: [k, *shape]: an image alone or its tiles, or the ids of a document.
        digest: of the contents.
        text_digest: of the text; none of an image.
        rest: what is kept of it beside its contents: the further ids of a long document.
        notes: what a person may not expect of it.
        reason: why it cannot be used.
        remedy: what may help with it: a sentence and a blank.
    """

    name: str
    label: Label
    record: bytes
    contents: NDArray[Any] | None = None
    digest: bytes = b""
    text_digest: bytes = b""
    rest: NDArray[Any] | None = None
    notes: frozenset[str] = frozenset()
    reason: str = ""
    remedy: str = ""


class LookAhead(Exception):
    """What an item becomes depends on all items of the source (see `PackBuilder.looked`)."""


@dataclass
class PackBuilder(ABC):
    """Writes the files of one pack into an empty directory.

    Attributes:
        pack: the kind of pack.
        source: the opened source.
        directory: empty, staged.
        how: from item to contents, see `OpenPack.prepare`.
        options: the `data` section.
        progress: called with (items done, items in all).
        threads: that read and convert.
        tally: what was counted so far.
        splits: those that are written.
        content: the digest of the source, as far as it is read.
        libraries: those whose versions the manifest tells.
        near: what two rows that nearly equal each other are alike in, for a sentence.
        flood: items that cannot be used, beyond those allowed, at which the rest is not looked at.
    """

    pack: type[OpenPack[Any]]
    source: Source
    directory: Path
    how: Any
    options: DataConfig
    progress: Callable[[int, int], None] | None
    threads: int
    tally: Tally = field(init=False)
    splits: dict[str, Rows] = field(init=False, default_factory=dict)
    content: SourceDigest = field(init=False)

    libraries: ClassVar[Sequence[str]]
    near: ClassVar[str]
    flood: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        self.tally = Tally(sum(len(items) for items in self.source.splits.values()), self.source.modality)
        self.content = SourceDigest(self.source.class_names)

    @property
    @abstractmethod
    def element(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of an element of the contents."""

    @abstractmethod
    def convert(self, items: list[Item]) -> list[Converted]:
        """Read and convert the items of a block, in a worker thread."""

    @contextlib.contextmanager
    def converting(self, split: str) -> Iterator[None]:
        """Around the conversion of a split's items."""
        yield

    @abstractmethod
    def held(self, converted: Sequence[Converted]) -> SplitFiles:
        """Converted items as a split in memory; labels it has none. Each has contents, and there is at least one."""

    def said(self, notes: Mapping[str, Sequence[str]]) -> list[str]:
        """The sentences of `notes` on items that are written into no pack: the names of those of each kind."""
        self.tally.notes = {note: list(names) for note, names in notes.items()}
        return self.notes()

    def looked(self) -> PackBuilder:
        """The builder after `LookAhead`, which has looked at all items."""
        return self

    @property
    def identity(self) -> list[Any]:
        """What decides what an item becomes, beside its bytes, as a JSON value."""
        return [self.pack.made(self.how, self.options, ()), self.options.model_dump(mode="json", exclude={"source"})]

    @abstractmethod
    def notes(self) -> list[str]:
        """One sentence for each kind of item that a person may expect to be treated in another way."""

    @abstractmethod
    def sketches(self, split: str) -> Any:
        """What is kept of the contents of a split, as they are in its file, to find rows that nearly equal others."""

    @abstractmethod
    def nearest(self, one: Any, other: Any) -> list[tuple[int, int]]:
        """By the sketches of two splits, (row of one, row of the other) for each row of the other that nearly equals
        a row of one."""

    def made(self) -> dict[str, Any]:
        """The entries of the manifest that say how the contents were made."""
        return self.pack.made(self.how, self.options, self.tally.notes)

    def blocks(self, items: Iterable[Item]) -> Iterable[list[Item]]:
        """The items in the groups that are converted at a time."""
        return ([item] for item in items)

    @contextlib.contextmanager
    def beside(self, split: str, onto: bool = False) -> Iterator[Callable[[Converted], None]]:
        """Writes what is kept of a split's items beside their contents, in their order, or behind what is there."""
        yield lambda one: None

    def keep_beside(self, kept: NDArray[np.int64]) -> None:  # noqa: B027 - most packs have nothing there
        """Keep what was written beside the contents of train for these rows alone."""

    def arrays(self, split: str, rows: Rows) -> dict[str, NDArray[Any]]:
        """What else belongs to the contents of a split, by kind."""
        return {}

    def decides(self, split: str) -> list[str]:
        """Digests of what else the pack's fingerprint is of."""
        return []

    def details(self, rows: Rows) -> dict[str, Any]:
        """What else the manifest says of a split."""
        return {}

    def build(self) -> list[str]:
        """Convert everything, then write the manifest.

        Returns:
            The sentences that a person should read.

        Raises:
            UserError: too many broken items, a split without a usable one, or items shared by train and test.
        """
        for split in ("test", "val", "train"):  # train last: what it shares with the others may be left out of it
            if split in self.source.splits:
                self.splits[split] = self._write_split(split, self.source.splits[split])
        check_broken(self.source, self.splits, self.tally, self.options)
        duplicates, shared = check_duplicates(self.splits, self.tally, self.options)
        shared += checks.check_groups(self.splits, self.tally, self.options)
        rule, held_out = self._hold_out()
        labelled = checks.label_warnings(self.splits, self.tally)
        of_classes = [
            *checks.repeated_warning(self.splits.get("train"), self.tally),
            *checks.contradiction_warnings(self.splits, self.tally),
            *checks.class_warnings(self.splits, self.source.class_names, self.tally, "test_digests" in rule),
        ]
        joined = self._join_unlabelled()  # when the test rows are chosen, which it does not change
        duplicates["near"], near = self._near_duplicates()
        of_rows = [*shared, *labelled, *held_out, *near, *of_classes, *joined]
        warnings = [*self.source.warnings, *checks.skipped_warning(self.tally), *self.notes(), *of_rows]
        self._write_manifest(rule, {**duplicates, "dropped_from_train": self.tally.dropped}, warnings)
        return warnings

    def _path(self, split: str, kind: str) -> Path:
        """The file of a split with its arrays or names of a kind."""
        return self.directory / f"{split}-{self.pack.endings[kind]}"

    def _writer(self, split: str, before: Rows | None = None) -> RowWriter:
        onto = None if before is None else int(before.offsets[-1])
        return RowWriter(self._path(split, self.pack.contents), *self.element, onto=onto)

    def _join_unlabelled(self) -> list[str]:
        """Write the unlabelled items behind the rows of train; sentences about them."""
        items = self.source.splits.get(UNLABELLED)
        if items is None:
            return []
        copies, before = Copies.of(self.splits, self.options.duplicates == "keep"), self.splits.get("train")

        def unwanted(one: Converted) -> str | None:
            return copies.unwanted(one.name, one.digest, one.text_digest)

        known = len(self.tally.dropped_groups)
        rows = self._write_items("train", items, unwanted, UNLABELLED, before)
        check_broken(self.source, self.splits, self.tally, self.options)
        said = check_copies(copies, rows, self.tally, self.options)
        new = replace(self.tally, dropped_groups=self.tally.dropped_groups[known:])
        said += checks.check_groups({**self.splits, "train": rows}, new, self.options, "unlabelled ")
        if rows.names:
            self.splits["train"] = rows if before is None else before.joined(rows)
        return said

    def _write_split(self, split: str, items: ItemList) -> Rows:
        """Convert the items of a split, and write their contents."""
        unwanted = self._unwanted(split)
        return self._write_items(split, items, lambda one: unwanted.get(one.digest), split)

    def _write_items(
        self,
        split: str,
        items: ItemList,
        unwanted: Callable[[Converted], str | None],
        part: str,
        before: Rows | None = None,
    ) -> Rows:
        """Convert items, write their contents, and tell the tally and the source's digest.

        Args:
            split: that they belong to.
            items: of the source.
            unwanted: the split that has an item already, where it is left out for that.
            part: of the source.
            before: the rows that are written already, behind which they come.
        """
        tally, elsewhere = self.tally, self._groups_elsewhere(split)
        known, groups = iter(items.groups or repeat(None)), []
        names: list[str] = []
        labels: list[Label] = []
        lengths: list[int] = []
        digests: list[bytes] = []
        text_digests: list[bytes] = []
        with (
            self._writer(split, before) as writer,
            self.beside(split, before is not None) as beside,
            contextlib.closing(ordered_map(self.convert, self.blocks(items), self.threads)) as blocks,
        ):
            for block in blocks:
                for one in block:
                    self.content.add(part, one.record)
                    group = next(known)
                    if one.contents is None:
                        tally.skipped.append({"split": part, "name": one.name, "reason": one.reason})
                        tally.remedy = tally.remedy or one.remedy
                        continue
                    if (also_in := unwanted(one)) is not None:
                        tally.dropped.append({"name": one.name, "also_in": also_in})
                        continue
                    if group in elsewhere:
                        tally.dropped_groups.append({"name": one.name, "also_in": elsewhere[group]})
                        continue
                    for note in one.notes:
                        tally.notes.setdefault(note, []).append(one.name)
                    writer.extend(one.contents)
                    beside(one)
                    names.append(one.name)
                    labels.append(one.label)
                    groups.append(group)
                    lengths.append(len(one.contents))
                    digests.append(one.digest)
                    text_digests.append(one.text_digest)
                if len(tally.skipped) > self.options.max_broken * tally.total + self.flood:
                    check_broken(self.source, self.splits, tally, self.options)
                tally.done += len(block)
                if self.progress is not None:
                    self.progress(tally.done, tally.total)
        return Rows(
            names,
            label_array(labels, self.source.problem, len(self.source.class_names or ())),
            as_digests(digests),
            np.asarray(lengths, np.int64),
            as_digests(text_digests) if any(text_digests) else None,
            None if items.groups is None else groups,
        )

    def _unwanted(self, split: str) -> dict[bytes, str]:
        """Contents that are left out of a split, and the split that has them already."""
        if split != "train" or self.options.duplicates != "drop":
            return {}
        return {content.tobytes(): other for other, rows in self.splits.items() for content in rows.digests}

    def _groups_elsewhere(self, split: str) -> dict[str | None, str]:
        """Groups that are left out of a split, and the split that has them already."""
        if split != "train" or self.options.shared_groups != "drop":
            return {}
        found = {group: other for other, rows in self.splits.items() for group in rows.groups or ()}
        found.pop(None, None)
        return found

    def _hold_out(self) -> tuple[dict[str, Any], list[str]]:
        """Make a test split of the labelled rows when the source has neither test nor val."""
        name, plural, options = self.source.name, self.source.modality.plural, self.options
        if options.folds is not None:
            checks.check_folds(self.source, self.splits, options)
        train = self.splits.get("train")
        if train is None or len(self.splits) > 1 or self.source.class_names is None:
            why = "the source's splits" if self.source.class_names is not None else "no labels, so nothing is held out"
            return {"rule": why}, []
        if options.test_fraction == 0 and options.folds is None:
            return {"rule": "data.test_fraction=0, so nothing is held out"}, []
        test, rule, by = self._chosen_test(train)
        mixed = checks.copies_warning(train, self.tally) if train.groups is None and options.folds is None else []
        mixed += checks.joined_groups_warning(train, self.tally)
        if not len(test):
            few = f"too few {plural} of each class" if train.groups is None else f"too few groups of {plural}"
            return {"rule": f"{few} to hold any out"}, [f"{name} has no test split and {few} to hold any out.", *mixed]
        kept = np.setdiff1d(np.arange(len(train.names)), test)
        whole = self._path("train", self.pack.contents).rename(self.directory / "whole.npy")
        contents, offsets = load_array(whole, mmap_mode="r"), train.offsets
        for split, rows in (("train", kept), ("test", test)):
            with self._writer(split) as writer:
                for row in rows:
                    writer.extend(contents[offsets[row] : offsets[row + 1]])
            self.splits[split] = train.take(rows)
        whole.unlink()
        self.keep_beside(kept)
        digests = sorted(digest.tobytes().hex() for digest in self.splits["test"].digests)
        return {**rule, "test_digests": sha256_json(digests)}, [
            f"{name} has no test split: {len(test):,} of {len(train.names):,} {plural} are held out of train{by}.",
            *mixed,
        ]

    def _chosen_test(self, train: Rows) -> tuple[NDArray[np.int64], dict[str, Any], str]:
        """The rows of train that are held out, what the manifest says of the choice, and what a sentence says."""
        options, seed, plural = self.options, self.options.split_seed, self.source.modality.plural
        digests, strata, groups = train.choice_digests, train.strata, train.groups
        together = f"equal {plural} together" if groups is None else f"equal {plural} and groups together"
        if options.folds is not None:
            parts = fold_rows(digests, strata, groups, options.folds, seed)
            checks.check_fold_sizes(self.source, [len(rows) for rows in parts], groups is not None)
            test, rule = parts[options.fold], f"one of {options.folds} folds, with a share of each class, is tested"
            about: dict[str, Any] = {"folds": options.folds, "fold": options.fold}
        else:
            fraction = options.test_fraction
            if groups is None:
                test = held_out_rows(digests, strata, fraction, seed)
            else:
                test = grouped_test_rows(digests, strata, groups, fraction, seed)
            rule, about = "a share of each class is held out of train", {"test_fraction": fraction}
        by = ", ".join(f"data.{key}={value:g}" for key, value in {**about, "split_seed": seed}.items())
        by = f" ({by})"
        if groups is not None:
            by = f", {checks.count_groups(train.take(test)):,} of {checks.count_groups(train):,} groups{by}"
        rule = f"{rule}, chosen by content and seed, {together}"
        return test, {"rule": rule, **about, "split_seed": seed}, by

    def _near_duplicates(self) -> tuple[dict[str, int], list[str]]:
        """Rows of test and val that nearly equal a row of train: how many by splits, and a sentence for each."""
        held_out = [split for split in ("test", "val") if split in self.splits]
        if "train" not in self.splits or not held_out:
            return {}, []
        train, counts, sentences = self.sketches("train"), {}, []
        for split in held_out:
            pairs = self.nearest(train, self.sketches(split))
            pairs = checks.without_copies(pairs, self.splits["train"], self.splits[split])
            counts[f"train, {split}"] = len(pairs)
            sentences += checks.near_warning(pairs, split, self.splits, self.near, self.tally)
        return counts, sentences

    def _write_manifest(self, rule: dict[str, Any], duplicates: dict[str, Any], warnings: list[str]) -> None:
        made = self.made()
        digests: dict[str, list[str | None]] = {}
        for split, rows in self.splits.items():
            digests[split] = [sha256_array(each) for each in (rows.digests, rows.text_digests) if each is not None]
            digests[split].append(sha256_array(rows.labels) if rows.labelled else None)
            digests[split] += self.decides(split)
        problem = {} if self.source.problem == SINGLE else {"problem_type": self.source.problem}  # as older packs
        decides = [self.pack.format, made[self.pack.how], self.source.class_names, digests, *problem.values()]
        manifest = {
            "format": made.pop("format"),
            "fingerprint": sha256_json(decides),
            **made,
            "source": {"name": self.source.name, "kind": self.source.kind, "content": self.content.hexdigest()},
            "class_names": self.source.class_names,
            **problem,
            "split_rule": rule,
            "splits": {split: self._write_rest(split, self.splits[split]) for split in SPLITS if split in self.splits},
            "skipped": self.tally.skipped,
            "duplicates": duplicates,
            "conversions": {note: len(names) for note, names in sorted(self.tally.notes.items())},
            "warnings": warnings,
            "libraries": {name: importlib.metadata.version(name) for name in self.libraries},
        }
        write_json(self.directory / MANIFEST, sealed(manifest))

    def _write_rest(self, split: str, rows: Rows) -> dict[str, Any]:
        """Write what belongs to the contents of a split; the split's part of the manifest."""
        labels = {"labels": rows.labels} if rows.labelled else {}
        arrays = {**self.arrays(split, rows), "digests": rows.digests, **labels}
        for kind, array in arrays.items():
            np.save(self._path(split, kind), array)
        write_json(self._path(split, "names"), rows.names)
        kinds = [kind for kind in self.pack.endings if self._path(split, kind).is_file()]
        names = self.source.class_names or []
        counts = class_counts(rows.labels, len(names))
        return {
            "rows": len(rows.names),
            "labelled": int(np.sum(rows.has_label)),
            "classes": {name: int(count) for name, count in zip(names, counts, strict=False)},
            **self.details(rows),
            "files": {
                kind: {"file": path.name, **described(path)}
                for kind, path in ((kind, self._path(split, kind)) for kind in kinds)
            },
        }
