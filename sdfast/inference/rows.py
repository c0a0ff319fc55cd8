"""The rows of a new source, some at a time: converted as the pack of a run is, and never all in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from sdfast.config import Config
from sdfast.context import Classifier, Modality
from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import SPLITS, Item, Source, item_record, read_item
from sdfast.data.pack_build import Converted, PackBuilder
from sdfast.data.parallel import available_threads, ordered_map
from sdfast.data.problem import SEVERAL, SINGLE, Label
from sdfast.data.sources import open_source
from sdfast.errors import UserError
from sdfast.log import log

_HELD = 64 << 20  # bytes of contents in memory, from which on a part has fewer rows


@dataclass(frozen=True)
class Held:
    """Some rows in memory.

    Attributes:
        names: of each, in the source.
        splits: of each.
        labels: of each; see `Item`.
        split: their contents, as a split of a pack is; None of no row.
        items: of the source that they were made of.
        records: of these items (`item_record`).
        skipped: those that cannot be used: `split`, `name` and `reason`.
        notes: the names of rows that a person may not expect, by what is to be said of them (see `PackBuilder.said`).
    """

    names: list[str]
    splits: list[str]
    labels: list[Label]
    split: Any
    items: int
    records: list[bytes]
    skipped: list[dict[str, str]]
    notes: dict[str, list[str]]


class NewRows:
    """A new source and what makes rows of it.

    Attributes:
        source: opened.
        how: from item to contents, a `Transform` or a `Tokenizer`.
        builder: that converts; it writes no pack.
    """

    def __init__(self, spec: str, modality: Modality, config: Config, classifier: Classifier) -> None:
        """Open a source for a model.

        Args:
            spec: of the source.
            modality: of the model.
            config: of the run; its `data` section says how the source is read.
            classifier: the model, and what lies beside it.

        Raises:
            UserError: it cannot be opened, or has no rows.
        """
        kind, self.how, options = modality.conversion(config, classifier)
        self.source = opened(spec, options, kind.modality)
        self.builder: PackBuilder = kind.builder(
            kind, self.source, Path(), self.how, options, None, available_threads()
        )
        if not len(self):
            raise UserError(f"{spec} has no rows.")

    def __len__(self) -> int:
        return sum(map(len, self._splits.values()))

    @property
    def plural(self) -> str:
        """What the rows are called."""
        return self.source.modality.plural

    @property
    def identity(self) -> list[Any]:
        """What decides the rows beside the items, as a JSON value."""
        return [*self.builder.identity, self.source.class_names, self.source.problem]

    def look_ahead(self) -> None:
        """After `LookAhead`: know what has to be known of all items."""
        self.builder = self.builder.looked()
        self.how = self.builder.how

    @property
    def splits(self) -> list[str]:
        """The names of the splits, in the order of the rows."""
        return list(self._splits)

    @property
    def _splits(self) -> dict[str, Any]:
        return {split: self.source.splits[split] for split in SPLITS if split in self.source.splits}

    def items(self) -> Iterator[Item]:
        """The items of all splits, read anew."""
        return chain.from_iterable(self._splits.values())

    def records(self, items: Iterator[Item]) -> Iterator[bytes]:
        """What identifies each item by content; nothing is converted."""
        return ordered_map(lambda item: item_record(item, read_item(item)), items, self.builder.threads)

    def parts(self, items: Iterator[Item], begin: int, rows: int) -> Iterator[Held]:
        """The rows of some items, a number of them at a time, or fewer where their contents are large.

        Args:
            items: from the item with this number on.
            begin: that number.
            rows: of a part.

        Raises:
            LookAhead: all items have to be looked at first.
        """
        every = chain.from_iterable(repeat(split, len(items)) for split, items in self._splits.items())
        split_of = islice(every, begin, None)
        builder, found, size = self.builder, list[tuple[str, Converted]](), 0
        with (
            builder.converting("test"),
            contextlib.closing(ordered_map(builder.convert, builder.blocks(items), builder.threads)) as blocks,
        ):
            for block in blocks:
                found += [(next(split_of), one) for one in block]
                size += sum(0 if one.contents is None else one.contents.nbytes for one in block)
                if len(found) >= rows or size >= _HELD:
                    yield self._held(found)
                    found, size = [], 0
            if found:
                yield self._held(found)

    def _held(self, found: Sequence[tuple[str, Converted]]) -> Held:
        used = [(split, one) for split, one in found if one.contents is not None]
        broken = [(split, one) for split, one in found if one.contents is None]
        notes: dict[str, list[str]] = {}
        for _, one in used:
            for note in one.notes:
                notes.setdefault(note, []).append(one.name)
        return Held(
            [one.name for _, one in used],
            [split for split, _ in used],
            [one.label for _, one in used],
            self.builder.held([one for _, one in used]) if used else None,
            len(found),
            [one.record for _, one in found],
            [{"split": split, "name": one.name, "reason": one.reason} for split, one in broken],
            notes,
        )


def opened(spec: str, options: DataConfig, modality: Any) -> Source:
    """A source whose labels are wanted where it has some, and which may have none.

    Raises:
        UserError: see `open_source`.
    """
    options = options.model_copy(update={"limit": None, "labelled_limit": None})
    try:
        return open_source(spec, options, modality)
    except UserError as error:
        free = {"label_key": NO_COLUMN, "split_key": NO_COLUMN, "problem_type": None, "label_separator": None}
        for more in ({}, {modality.key: None}):
            with contextlib.suppress(UserError):
                source = open_source(spec, options.model_copy(update={**free, **more}), modality)
                log.warning("data: %s Its rows are taken without labels.", error)
                return source
        raise


def label_words(source: Source, label: Label) -> Any:
    """A row's label as a person reads it: the name of its class, the names of several, a number or numbers, or None."""
    if label is None or label == -1 or source.class_names is None:
        return None
    if source.problem == SINGLE:
        return source.class_names[int(label)]  # type: ignore[arg-type]
    assert isinstance(label, tuple)
    if source.problem == SEVERAL:
        return [source.class_names[int(number)] for number in label]
    numbers = [float(number) for number in label]
    return numbers[0] if len(numbers) == 1 else numbers
