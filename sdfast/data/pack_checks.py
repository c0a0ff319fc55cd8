"""What a person has to know about the rows of a pack: broken ones, shared ones, unlabelled ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import SPLITS, Source
from sdfast.data.modality import Modality
from sdfast.data.problem import SEVERAL, Labels, class_counts, has_label, problem_of, strata
from sdfast.data.rows import duplicate_rows
from sdfast.errors import UserError

_FEW = 3  # names in a warning
_MANY_COPIES, _MANY_SHARE = 100, 0.05  # of the rows of train, from which on they are said


@dataclass(frozen=True)
class Rows:
    """The rows of one split beside their contents.

    Attributes:
        names: [n].
        labels: see `sdfast.data.problem`.
        digests: [n, 32] uint8.
        lengths: [n] int64, elements of the contents: tokens of a document, of an image 1 or its tiles; None where
            nobody asks.
        text_digests: [n, 32] uint8, of the texts; None of images.
        groups: [n]: whose each is, None where it is a group of its own; None where nothing is grouped.
    """

    names: list[str]
    labels: Labels
    digests: NDArray[np.uint8]
    lengths: NDArray[np.int64] | None = None
    text_digests: NDArray[np.uint8] | None = None
    groups: list[str | None] | None = None

    @property
    def labelled(self) -> bool:
        """Whether any row has a label."""
        return bool(self.has_label.any())

    @property
    def has_label(self) -> NDArray[np.bool_]:
        """[n] bool: which rows have a label."""
        return has_label(self.labels)

    @property
    def strata(self) -> NDArray[np.int64]:
        """[n] int64: the group of each row whose share is kept where rows are held out; -1 without a label."""
        return strata(self.labels)

    @property
    def choice_digests(self) -> NDArray[np.uint8]:
        """[n, 32] uint8: what the choice of rows goes by: of texts the text's digest.

        Of documents that have the same ids it is one text's for all of them. So equal documents stay together where
        rows are held out, and the choice depends on the tokenizer only where it makes texts equal that are not.
        """
        if self.text_digests is None:
            return self.digests
        first: dict[bytes, bytes] = {}
        pairs = [(ids.tobytes(), text.tobytes()) for ids, text in zip(self.digests, self.text_digests, strict=True)]
        for ids, text in pairs:
            first[ids] = min(text, first.get(ids, text))
        return as_digests(first[ids] for ids, _ in pairs)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """[n + 1] int64: where the contents of each row begin, and where the last ones end."""
        assert self.lengths is not None
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(self.lengths)))

    def joined(self, more: Rows) -> Rows:
        """These rows and then others of the same kind."""
        labels, digests = np.concatenate((self.labels, more.labels)), np.concatenate((self.digests, more.digests))
        whole = Rows(self.names + more.names, labels, digests)
        if self.lengths is not None and more.lengths is not None:
            whole = replace(whole, lengths=np.concatenate((self.lengths, more.lengths)))
        if self.text_digests is not None and more.text_digests is not None:
            whole = replace(whole, text_digests=np.concatenate((self.text_digests, more.text_digests)))
        if self.groups is not None or more.groups is not None:
            groups = [each.groups or [None] * len(each.names) for each in (self, more)]
            whole = replace(whole, groups=groups[0] + groups[1])
        return whole

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """These rows only."""
        part = Rows([self.names[row] for row in rows], self.labels[rows], self.digests[rows])
        if self.lengths is not None:
            part = replace(part, lengths=self.lengths[rows])
        if self.groups is not None:
            part = replace(part, groups=[self.groups[row] for row in rows])
        return part if self.text_digests is None else replace(part, text_digests=self.text_digests[rows])


def as_digests(digests: Iterable[bytes]) -> NDArray[np.uint8]:
    """Digests as an array: [n, 32] uint8."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


@dataclass
class Tally:
    """What is counted while the items are converted, over all splits."""

    total: int
    modality: Modality
    done: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    dropped_groups: list[dict[str, str]] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    remedy: str = ""  # what may help with those that were skipped: a sentence and a blank


def check_broken(source: Source, splits: Mapping[str, Rows], tally: Tally, options: DataConfig) -> None:
    """Compare the skipped items with what is allowed.

    Raises:
        UserError: more than `options.max_broken` of all items, or all of a split.
    """
    skipped, one, plural = len(tally.skipped), tally.modality.one, tally.modality.plural
    if skipped > options.max_broken * tally.total:
        first = tally.skipped[0]
        raise UserError(
            f"{source.name}: {skipped:,} of {tally.total:,} {plural} cannot be used, more than data.max_broken="
            f"{options.max_broken:g} allows; the first is {first['name']}: {first['reason']}. "
            f"{tally.remedy}Repair or remove them, or raise data.max_broken."
        )
    for split, rows in splits.items():
        if not rows.names:
            why = next(
                (f": {entry['name']} is {entry['reason']}" for entry in tally.skipped if entry["split"] == split), ""
            )
            if split == "train" and (tally.dropped or tally.dropped_groups) and not why:
                why = ": all of them, or their groups, are also in test or val (data.duplicates, data.shared_groups)"
            raise UserError(f"{source.name}: no {one} of {split} is left{why}.")


def check_duplicates(splits: Mapping[str, Rows], tally: Tally, options: DataConfig) -> tuple[dict[str, Any], list[str]]:
    """Look for equal content in train and a held-out split, and in val and test.

    Returns:
        record: for the manifest.
        warnings: sentences.

    Raises:
        UserError: train shares an item with test or val and `options.duplicates` is "error".
    """
    record: dict[str, Any] = {"policy": options.duplicates, "dropped_from_train": tally.dropped, "shared": {}}
    one_item, plural = tally.modality.one, tally.modality.plural
    warnings = []
    if tally.dropped:
        where = " and ".join(sorted({entry["also_in"] for entry in tally.dropped}))
        warnings.append(
            f"{plural.capitalize()} of train that are also in {where} and were left out of train: "
            f"{counted([entry['name'] for entry in tally.dropped])}."
        )
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        if one not in splits or other not in splits:
            continue
        pairs = duplicate_rows(splits[one].digests, splits[other].digests)
        record["shared"][f"{one}, {other}"] = len(pairs)
        if not pairs:
            continue
        first = f"{splits[one].names[pairs[0][0]]} ({one}) and {splits[other].names[pairs[0][1]]} ({other})"
        if one == "train" and options.duplicates == "error":
            more = f"; in all, {len(pairs):,} {plural} of {one} are in {other}" if len(pairs) > 1 else ""
            raise UserError(
                f"{first} are the same {one_item}{more}; remove them, or set data.duplicates=drop to leave them out of "
                "train or data.duplicates=keep to train on them."
            )
        warnings.append(
            f"{plural.capitalize()} of {one} that are also in {other}: {len(pairs):,} (the first: {first})."
        )
    return record, warnings


@dataclass
class Copies:
    """Which unlabelled items that are to join train are in val or test, or in train already.

    In val or test is what has the contents of one of their rows; in train what a row has, of documents the same text
    (the ids alone are the same where long ones differ in their end).

    Attributes:
        held_out: for the contents of each row of val and test, the split and the row's name.
        there: the rows of train.
        keep: whether such items join train nevertheless.
        found: what was found, by split: names of the items, and of the first the row that it is a copy of.
    """

    held_out: dict[bytes, tuple[str, str]]
    there: dict[bytes, str]
    keep: bool
    found: dict[str, list[str]] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, splits: Mapping[str, Rows], keep: bool) -> Copies:
        """Those of the splits of a source."""
        held_out = {
            digest.tobytes(): (split, name)
            for split, rows in splits.items()
            if split != "train"
            for name, digest in zip(rows.names, rows.digests, strict=True)
        }
        there: dict[bytes, str] = {}
        if (train := splits.get("train")) is not None:
            digests = train.digests if train.text_digests is None else train.text_digests
            there = {digest.tobytes(): name for name, digest in zip(train.names, digests, strict=True)}
        return cls(held_out, there, keep)

    def unwanted(self, name: str, digest: bytes, text_digest: bytes) -> str | None:
        """The split that has an item already, where that is why it does not join; from now on train has it, too."""
        whole = text_digest or digest
        split, other = self.held_out.get(digest) or ("train", self.there.get(whole))
        if other is None:
            self.there[whole] = name
            return None
        self.found.setdefault(split, []).append(name)
        self.first.setdefault(split, other)
        return None if self.keep else split


def check_copies(copies: Copies, rows: Rows | None, tally: Tally, options: DataConfig) -> list[str]:
    """What there is to say of unlabelled items.

    Args:
        copies: what was found.
        rows: those that joined train; None where none was left.
        tally: its modality.
        options: their `duplicates`.

    Raises:
        UserError: some are in test or val, and `options.duplicates` is "error".
    """
    one, plural = tally.modality.one, tally.modality.plural
    shared = [split for split in ("test", "val") if split in copies.found]
    if shared and options.duplicates == "error":
        split, numbers = shared[0], [f"{len(copies.found[each]):,} in {each}" for each in shared]
        raise UserError(
            f"{copies.found[split][0]} (data.unlabelled) and {copies.first[split]} ({split}) are the same {one}; in "
            f"all, {' and '.join(numbers)} ({first_names(copies.found[split])}); remove them, or set "
            f"data.duplicates=drop to leave them out of the unlabelled {plural} or data.duplicates=keep to pre-train "
            "on them."
        )
    said = []
    kept = "and are kept (data.duplicates=keep)" if copies.keep else "and are left out"
    for split in shared:
        said.append(f"Unlabelled {plural} that are also in {split} {kept}: {counted(copies.found[split])}.")
    if "train" in copies.found:
        more = "" if copies.keep else "; data.duplicates=keep takes them again"
        names = counted(copies.found["train"])
        said.append(f"Unlabelled {plural} that are in train already {kept}: {names}{more}.")
    count = 0 if rows is None else len(rows.names)
    said.append(
        f"{count:,} unlabelled {plural} join the rows of pretrain, distill and the bank (data.unlabelled); fine-tuning "
        f"does not see them.{'' if count else ' So there is no need for data.unlabelled.'}"
    )
    return said


def check_groups(splits: Mapping[str, Rows], tally: Tally, options: DataConfig, kind: str = "") -> list[str]:
    """Look for rows of one group in train and a held-out split, and in val and test.

    Args:
        splits: of the pack; or beside those that are held out, as train, the rows that joined it.
        tally: with the rows of train that were left out for their group.
        options: the `data` section.
        kind: of the rows of train, for sentences; of those that joined it "unlabelled ".

    Returns:
        Sentences.

    Raises:
        UserError: train shares a group with test or val and `options.shared_groups` is "error".
    """
    plural, warnings = tally.modality.plural, []
    if dropped := tally.dropped_groups:
        where = " and ".join(sorted({entry["also_in"] for entry in dropped}))
        warnings.append(
            f"{f'{kind}{plural}'.capitalize()} of train whose group is also in {where} and that were left out of train "
            f"(data.shared_groups=drop): {counted([entry['name'] for entry in dropped])}."
        )
    for one, other in (("train", "test"), ("train", "val"), *([] if kind else [("val", "test")])):
        theirs = _row_of_groups(splits.get(other))
        shared = {group: row for group, row in _row_of_groups(splits.get(one)).items() if group in theirs}
        if not shared:
            continue
        rows = {split: _rows_in(splits[split], shared) for split in (one, other)}
        group, row = next(iter(shared.items()))
        first = f"{group!r}, as {splits[one].names[row]} ({one}) and {splits[other].names[theirs[group]]} ({other})"
        what = (
            f"roups (data.group) of {one} that are also in {other}: {len(shared):,}, with {rows[one]:,} {kind}{plural}"
        )
        what += f" in {one} and {rows[other]:,} in {other} (the first: {first})"
        if one == "train" and options.shared_groups == "error":
            raise UserError(
                f"g{what}; divide the {plural} anew, or set data.shared_groups=drop to leave these out of train or "
                "data.shared_groups=keep to train on them."
            )
        warnings.append(f"G{what}.")
    return warnings


def check_folds(source: Source, splits: Mapping[str, Rows], options: DataConfig) -> None:
    """Refuse a source whose rows cannot be divided into folds.

    Raises:
        UserError: it has a test or val split of its own, or no labels.
    """
    if own := [split for split in ("test", "val") if split in splits]:
        raise UserError(
            f"{source.name} has a {own[0]} split of its own, and data.folds={options.folds} makes the test split; pass "
            f"train alone (data.split_key={NO_COLUMN} ignores a column of splits), or leave data.folds away."
        )
    if source.class_names is None:
        raise UserError(
            f"{source.name} has no labels, and only rows with a label are divided into folds; leave data.folds away."
        )


def check_fold_sizes(source: Source, sizes: Sequence[int], grouped: bool) -> None:
    """Refuse folds of which one has no row.

    Raises:
        UserError: one has none.
    """
    if not all(sizes):
        plural, filled = source.modality.plural, sum(map(bool, sizes))
        what = f"groups of {plural}" if grouped else f"{plural} that differ"
        raise UserError(
            f"{source.name}: there are too few {what} with a label for data.folds={len(sizes)}; they fill {filled}."
        )


def count_groups(rows: Rows) -> int:
    """How many groups there are, where each row without one is a group of its own."""
    groups = rows.groups or []
    return len(set(groups) - {None}) + groups.count(None)


def joined_groups_warning(train: Rows, tally: Tally) -> list[str]:
    """One sentence when rows of several groups have equal content, so that these groups stay together."""
    first: dict[bytes, int] = {}
    pairs = []
    for row, group in enumerate(train.groups or ()):
        before = first.setdefault(train.digests[row].tobytes(), row)
        if group is not None and (other := (train.groups or [])[before]) is not None and group != other:
            pairs.append(f"{train.names[before]} of {other!r} and {train.names[row]} of {group!r}")
    if not pairs:
        return []
    return [
        f"{tally.modality.plural.capitalize()} with the content of one of another group, so that both groups stay on "
        f"one side of the split: {counted(pairs)}."
    ]


def _row_of_groups(rows: Rows | None) -> dict[str, int]:
    """The first row of each group, in the order of the rows."""
    found: dict[str, int] = {}
    for row, group in enumerate((rows and rows.groups) or ()):
        if group is not None:
            found.setdefault(group, row)
    return found


def _rows_in(rows: Rows, groups: Collection[str]) -> int:
    return sum(group in groups for group in rows.groups or ())


def without_copies(pairs: Sequence[tuple[int, int]], train: Rows, other: Rows) -> list[tuple[int, int]]:
    """The pairs of rows of train and of another split, but for rows of the other that are in train themselves."""
    known = {digest.tobytes() for digest in train.digests}
    return [(row, at) for row, at in pairs if other.digests[at].tobytes() not in known]


def near_warning(
    pairs: Sequence[tuple[int, int]], split: str, splits: Mapping[str, Rows], what: str, tally: Tally
) -> list[str]:
    """One sentence when rows of a split nearly equal one of train.

    Args:
        pairs: row of train, row of the split.
        split: test or val.
        splits: of the pack.
        what: they are alike in.
        tally: its modality.
    """
    if not pairs:
        return []
    train, other = splits["train"], splits[split]
    first = f"{train.names[pairs[0][0]]} (train) and {other.names[pairs[0][1]]} ({split})"
    return [
        f"{tally.modality.plural.capitalize()} of {split} that nearly equal one of train ({what}): {len(pairs):,} of "
        f"{len(other.names):,} (the first: {first}). If they show the same thing, scores on them are too good: remove "
        "them, or keep what belongs together on one side by data.group."
    ]


def skipped_warning(tally: Tally) -> list[str]:
    """One sentence when items were skipped."""
    if not tally.skipped:
        return []
    named = [f"{entry['name']} ({entry['reason']})" for entry in tally.skipped]
    return [
        f"Skipped {len(named):,} of {tally.total:,} {tally.modality.plural}, which cannot be used: "
        f"{first_names(named)}."
    ]


def label_warnings(splits: Mapping[str, Rows], tally: Tally) -> list[str]:
    """One sentence for each split in which some rows have a label and some have none."""
    sentences, plural = [], tally.modality.plural.capitalize()
    for split, rows in splits.items():
        missing = [name for name, known in zip(rows.names, rows.has_label, strict=True) if not known]
        if missing and rows.labelled:
            none = "; write [] where no class applies" if problem_of(rows.labels) == SEVERAL else ""
            sentences.append(
                f"{plural} of {split} without a label, which take no part in fine-tuning: {len(missing):,} of "
                f"{len(rows.names):,} ({first_names(missing)}){none}."
            )
    return sentences


def repeated_warning(train: Rows | None, tally: Tally) -> list[str]:
    """One sentence when many rows of train are copies of others of train.

    Many are 100, or 5 % of the rows and at least 3, the first of each content not counted.
    """
    if train is None:
        return []
    _, first, counts = np.unique(train.digests, axis=0, return_index=True, return_counts=True)
    copies, total, one, plural = int(np.sum(counts - 1)), len(train.names), tally.modality.one, tally.modality.plural
    if not are_many(copies, total):
        return []
    most = int(np.argmax(counts))
    return [
        f"{plural.capitalize()} of train that repeat another {one} of train: {copies:,} of {total:,}; the most "
        f"frequent one is there {int(counts[most]):,} times ({train.names[first[most]]}). Look whether they should "
        "differ; else remove the copies, as each counts in training."
    ]


def are_many(count: int, total: int) -> bool:
    """Whether so many of all are worth a sentence: 100, or 5 % of them and at least 3."""
    return count >= _MANY_COPIES or (count >= _FEW and count >= _MANY_SHARE * total)


def contradiction_warnings(splits: Mapping[str, Rows], tally: Tally) -> list[str]:
    """One sentence for each split in which rows have equal content and different labels."""
    sentences, plural = [], tally.modality.plural.capitalize()
    for split, rows in splits.items():
        first: dict[bytes, int] = {}  # row of each content
        pairs = []
        for row in np.flatnonzero(rows.has_label).tolist():
            before = first.setdefault(rows.digests[row].tobytes(), row)
            if not np.array_equal(rows.labels[row], rows.labels[before]):
                pairs.append(f"{rows.names[before]} and {rows.names[row]}")
        if pairs:
            sentences.append(
                f"{plural} of {split} with the content of another and a different label: {counted(pairs)}; only one"
                " label can be right."
            )
    return sentences


def copies_warning(train: Rows, tally: Tally) -> list[str]:
    """One sentence when labelled rows of train have copies without a label, and so are not held out."""
    bare = {digest.tobytes() for digest in train.choice_digests[~train.has_label]}
    names = [
        name
        for name, known, digest in zip(train.names, train.has_label, train.choice_digests, strict=True)
        if known and digest.tobytes() in bare
    ]
    if not names:
        return []
    return [
        f"{tally.modality.plural.capitalize()} with a label of which a copy has none, so that both stay in train: "
        f"{counted(names)}."
    ]


def class_warnings(
    splits: Mapping[str, Rows], class_names: Sequence[str] | None, tally: Tally, held_out: bool
) -> list[str]:
    """One sentence when some classes have too few rows to be learnt or tested.

    Those are the classes with fewer than two labelled rows in train, and where the test split was held out of train
    also those without one in it (of splits that the source has itself, `compare_classes` says which classes lack).

    Args:
        splits: of the pack.
        class_names: of the class numbers.
        tally: its modality.
        held_out: the test split was held out of train.
    """
    counts = {
        split: class_counts(splits[split].labels, len(class_names or ()))
        for split in SPLITS
        if split in splits and splits[split].labelled
    }
    if class_names is None or not len(counts.get("train", ())) or len(counts) < 2:
        return []
    lopsided = counts["train"] < 2
    if held_out:
        lopsided |= counts["test"] < 1
    few = [
        f"{class_names[label]!r}: {', '.join(f'{counts[split][label]:,} {split}' for split in counts)}"
        for label in np.flatnonzero(lopsided).tolist()
    ]
    if not few:
        return []
    more = f"; and {len(few) - _FEW:,} more" if len(few) > _FEW else ""
    test = " or none in test" if held_out else ""
    return [
        f"Classes with fewer than two labelled {tally.modality.plural} in train{test}: {len(few):,} of "
        f"{len(class_names):,} ({'; '.join(few[:_FEW])}{more})."
    ]


def counted(names: Sequence[str]) -> str:
    """How many there are, and the first few of them."""
    return f"{len(names):,} ({first_names(names)})"


def first_names(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    more = f" and {len(names) - _FEW:,} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more
