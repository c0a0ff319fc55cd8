"""What the files of a source give, row by row, what a person should know about it, and the source made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice

from sdfast.data.config import DataConfig
from sdfast.data.items import Item, ItemList, Source
from sdfast.data.labels import Unseen, Value, compare_classes, number_labels
from sdfast.data.modality import counted
from sdfast.data.splits import use_split_column


@dataclass(frozen=True)
class Record:
    """One row of a table or of JSON lines.

    Attributes:
        line: on which it ends, from 1.
        content: the file name or text, without blanks around it.
        label: as written, None where it has none.
        split: what the column of splits says, None without one.
    """

    line: int
    content: str
    label: Value = None
    split: object = None


@dataclass
class Notes:
    """What is said of all the files of a source together.

    Attributes:
        split: the column of splits of the file that is read, None without one.
    """

    split: str | None = None
    _sentences: list[str] = field(default_factory=list)
    _lines: dict[str, list[str]] = field(default_factory=dict)

    def take(self, sentences: Sequence[str]) -> None:
        """Keep sentences about columns, without the source's name and a full stop; each is said once for all files."""
        self._sentences += [sentence for sentence in sentences if sentence not in self._sentences]

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
    """

    labels: dict[str, list[Value]] = field(default_factory=dict)
    column: str | None = None
    splits: dict[str, list[object]] = field(default_factory=dict)
    _items: dict[str, list[Callable[[], Iterator[Item]]]] = field(default_factory=dict)

    def add(
        self,
        split: str,
        labels: Sequence[Value],
        items: Callable[[], Iterable[Item]],
        splits: Sequence[object] | None = None,
    ) -> None:
        """Add the rows of one file of a split.

        Args:
            split: of the file.
            labels: as written, one for each row.
            items: gives those of the rows, without labels, read anew each time.
            splits: what the column of splits says of each row; None where the file has none.
        """
        count = len(labels)  # the file may have grown when it is read again
        self.labels.setdefault(split, []).extend(labels)
        self.splits.setdefault(split, []).extend([split] * count if splits is None else splits)
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
            options: its `split_key`.
            unseen, strict: see `compare_classes`.
            class_names, where: see `number_labels`.

        Raises:
            UserError: labels that are none, splits that contradict each other, or classes that differ between them.
        """
        source.class_names, numbers = number_labels(self.labels, class_names, where)
        source.splits.update(
            {split: ItemList(each, partial(_joined, self._items[split])) for split, each in numbers.items() if each}
        )
        use_split_column(source, self.column, self.splits, options)
        compare_classes(source, strict, unseen)
        return source


def _joined(files: Sequence[Callable[[], Iterator[Item]]]) -> Iterator[Item]:
    """The items of one file after those of the other."""
    return chain.from_iterable(items() for items in files)
