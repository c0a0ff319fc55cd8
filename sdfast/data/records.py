"""What the files of a source say row by row, which split the rows belong to, and the source made of it.

The names of the files say the splits, or a column does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.groups import group_names
from sdfast.data.items import SPLITS, Item, ItemList, Source, chosen_items
from sdfast.data.labels import Unseen, Value, compare_classes, number_labels
from sdfast.data.modality import counted, first_listed
from sdfast.data.problem import SEVERAL, SINGLE, Label
from sdfast.data.several import encode_numbers, encode_several, problem_in, say_combinations
from sdfast.errors import UserError

USUAL_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold")  # names of such a column, in this order
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "dev", "valid"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MORE_NAMES = {  # in a column alone: as names of folders and files they are other things, too
    **dict.fromkeys(("development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("holdout", "hold-out", "held-out"), "test"),
}
_FILE_PREFIX = re.compile(r"([a-zA-Z]+)(?:[-_.]|$)")


def split_name(name: str) -> str | None:
    """The split that a folder, file prefix or data set split of this name stands for, or None."""
    return _NAMES.get(name.lower())


def split_of_file(name: str) -> str | None:
    """The split of a file, by its own name (`train.jsonl`, `test-00000-of-00001.parquet`) or by the nearest folder's.

    The name is relative to the source, with '/' between folders.
    """
    found = (split_name(match[1]) for part in reversed(name.split("/")) if (match := _FILE_PREFIX.match(part)))
    return next(filter(None, found), None)


def split_of_value(value: object) -> str | None:
    """The split that a cell stands for: "train", "val", "test", or None when it names none.

    Those are the names of `split_name`, and development, eval, evaluation, holdout and held-out, in any case.
    """
    if not isinstance(value, str):
        return None
    name = value.strip().lower()
    return split_name(name) or _MORE_NAMES.get(name.replace("_", "-"))


def files_by_split(
    root: Path, files: Sequence[Path], source: Source, split_of: Callable[[str], str | None] = split_of_file
) -> dict[str, list[tuple[Path, str]]]:
    """The files of each split and their names in messages, splits in their usual order; the source gets the warnings.

    Files whose name (or folder) says train, val or test are these splits, and others beside them are not used; where no
    name says so, everything is train. So is `root`, what was opened, when it is itself the only file.
    """
    if not root.is_dir():
        return {"train": [(root, root.name)]}
    names = [file.relative_to(root).as_posix() for file in files]
    splits = [split_of(name) for name in names]
    if not any(splits):
        splits = ["train"] * len(files)
    elif unused := [name for name, split in zip(names, splits, strict=True) if split is None]:
        source.warnings.append(f"Files that name no split and are not used: {len(unused)} (the first: {unused[0]}).")
    found = list(zip(splits, files, names, strict=True))
    return {split: [(file, name) for part, file, name in found if part == split] for split in SPLITS if split in splits}


@dataclass(frozen=True)
class Record:
    """One row of a table or of JSON lines.

    Attributes:
        line: on which it ends, from 1.
        content: the file name or text, without blanks around it.
        label: as written, None where it has none.
        split: what the column of splits says, None without one.
        group: what the column of `data.group` says, None without one.
    """

    line: int
    content: str
    label: Value = None
    split: object = None
    group: object = None


@dataclass
class Notes:
    """What is said of all the files of a source together.

    Attributes:
        split: the column of splits of the file that is read, None without one.
        group: that of `data.group`, None without one.
        labels: its column of labels, or several.
    """

    split: str | None = None
    group: str | None = None
    labels: tuple[str, ...] = ()
    _sentences: list[str] = field(default_factory=list)
    _lines: dict[str, list[str]] = field(default_factory=dict)

    def take(self, sentences: Sequence[str]) -> None:
        """Keep sentences about columns, without the source's name and a full stop; each is said once for all files."""
        self._sentences += [sentence for sentence in sentences if sentence not in self._sentences]

    def say(self, sentence: str) -> None:
        """Keep one sentence, as `take` does."""
        self.take([sentence])

    def count(self, what: str, where: str) -> None:
        """Count one line or file name under a title."""
        self._lines.setdefault(what, []).append(where)

    def add_to(self, source: Source) -> None:
        """Put everything among a source's warnings."""
        source.warnings += [f"{source.name}: {sentence}." for sentence in self._sentences]
        source.warnings += [counted(what, where) for what, where in self._lines.items()]


@dataclass
class Rows:
    """What the rows of a source say, per split of its files.

    Attributes:
        labels: as written, None where a row has none.
        column: of the splits, None without one.
        splits: what that column says of each row; where a file has none, the split of the file.
        groups: what the column of `data.group` says of each row; None where a file has none.
        grouped: whether any file has such a column.
        label_columns: of the labels.
    """

    labels: dict[str, list[Value]] = field(default_factory=dict)
    column: str | None = None
    splits: dict[str, list[object]] = field(default_factory=dict)
    groups: dict[str, list[object]] = field(default_factory=dict)
    grouped: bool = False
    label_columns: tuple[str, ...] = ()
    _items: dict[str, list[Callable[[], Iterator[Item]]]] = field(default_factory=dict)

    def add(
        self,
        split: str,
        labels: Sequence[Value],
        items: Callable[[], Iterable[Item]],
        splits: Sequence[object] | None = None,
        groups: Sequence[object] | None = None,
    ) -> None:
        """Add the rows of one file of a split.

        Args:
            split: of the file.
            labels: as written, one for each row.
            items: gives those of the rows, without labels, read anew each time.
            splits: what the column of splits says of each row; None where the file has none.
            groups: what the column of `data.group` says of each row; None without one.
        """
        count = len(labels)  # the file may have grown when it is read again
        self.labels.setdefault(split, []).extend(labels)
        self.splits.setdefault(split, []).extend([split] * count if splits is None else splits)
        self.grouped = self.grouped or groups is not None
        self.groups.setdefault(split, []).extend([None] * count if groups is None else groups)
        self._items.setdefault(split, []).append(lambda: islice(items(), count))

    def fill(
        self,
        source: Source,
        options: DataConfig,
        unseen: Unseen | None,
        class_names: Sequence[str] | None = None,
        where: str = "",
        strict: bool = True,
    ) -> Source:
        """Give `source` its classes, its splits as the files or a column say, and what there is to say of them.

        Args:
            source: without splits.
            options: its keys about labels and splits.
            unseen, strict: see `compare_classes`.
            class_names, where: see `number_labels`.

        Raises:
            UserError: labels that are none, splits that contradict each other, or classes that differ between them.
        """
        say = source.warnings.append
        where, problem = where or source.name, problem_in(self.labels, options)
        numbers: Mapping[str, Sequence[Label]]
        if problem == SINGLE:
            source.class_names, numbers = number_labels(self.labels, class_names, where, options.na_labels, say)
            if class_names is None:
                say_combinations(source.class_names or (), where, problem, say)
        elif problem == SEVERAL:
            columns = self.label_columns
            source.class_names, numbers = encode_several(self.labels, class_names, columns, where, options, say)
        else:
            source.class_names, numbers = encode_numbers(self.labels, self.label_columns, where, say)
        source.problem = problem if source.class_names is not None else SINGLE
        groups = group_names(self.groups, where, options, say) if self.grouped else {}
        source.splits.update(
            {
                split: ItemList(list(each), *self._items[split], groups=groups.get(split))
                for split, each in numbers.items()
                if each
            }
        )
        self._use_column(source, options)
        compare_classes(source, strict, unseen)
        return source

    def _use_column(self, source: Source, options: DataConfig) -> None:
        """Give `source` the splits that the column says, when it says some; a sentence in its warnings tells so.

        A column that was found by its usual name is passed over when none of its values is the name of a split. Where
        the names of the files are splits themselves the column has to agree, except that files which are all train,
        which is also what a whole is called, are divided by it; a column of `data.split_key` decides in any case.

        Raises:
            UserError: values that name no split beside others that do, two names for one split, or files that disagree.
        """
        column, whole = self.column, source.splits
        if column is None:
            return
        shown = {
            part: ["" if cell is None else str(cell).strip() for cell in cells] for part, cells in self.splits.items()
        }
        counts = Counter(chain.from_iterable(shown.values()))
        unknown = [value for value in counts if split_of_value(value) is None]
        asked = options.split_key == column
        if len(unknown) == len(counts) and not asked:
            if column.strip().lower() == USUAL_SPLIT_COLUMNS[0]:
                source.warnings.append(
                    f"The column {column!r} of {source.name} is not used: its values ({first_listed(unknown)}) are no "
                    "names of splits (train, val, test)."
                )
            return
        found = {part: list(map(split_of_value, cells)) for part, cells in shown.items()}
        _check_column(source, column, counts, found, asked)
        rows_of = {
            split: [(part, row) for part in whole for row, each in enumerate(found[part]) if each == split]
            for split in SPLITS
        }
        if any(part != split for split, chosen in rows_of.items() for part, _ in chosen):
            source.splits = {split: chosen_items(whole, chosen) for split, chosen in rows_of.items() if chosen}
        said = ", ".join(f"{split} {len(items):,}" for split, items in source.splits.items())
        source.warnings.append(f"The splits of {source.name} are those of its column {column!r}: {said}.")


def _check_column(
    source: Source, column: str, counts: Counter[str], found: dict[str, list[str | None]], asked: bool
) -> None:
    """Refuse what `_use_column` says of a column of so many values and the splits `found` in it."""
    ignored = "choose another data.split_key" if asked else f"set data.split_key={NO_COLUMN} to ignore the column"
    if unknown := [value for value in counts if split_of_value(value) is None]:
        rows = sum(counts[value] for value in unknown)
        raise UserError(
            f"{source.name}: {rows:,} of {counts.total():,} rows have no split in column {column!r} (values "
            f"{first_listed(unknown)}): write train, val or test there, remove the rows, or {ignored}."
        )
    first: dict[str | None, str] = {}
    for value in sorted(counts):
        other = first.setdefault(split_of_value(value), value)
        if other.lower() != value.lower():
            raise UserError(
                f"{source.name}: column {column!r} holds {other!r} and {value!r}, which are both "
                f"{split_of_value(value)}; write one of them for all, or {ignored}."
            )
    for part, splits in found.items():
        astray = next((split for split in splits if split != part), None)
        if astray and not asked and set(found) != {"train"}:
            raise UserError(
                f"{source.name}: column {column!r} puts {splits.count(astray):,} rows of the {part} files in {astray}; "
                f"set data.split_key={column} to go by the column, or data.split_key={NO_COLUMN} to go by the files."
            )
