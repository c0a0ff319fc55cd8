"""Sources that join the rows of another one without labels: all of their items, whatever splits they have."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.groups import find_groups
from sdfast.data.items import UNLABELLED, Item, ItemList, Source
from sdfast.data.modality import Modality
from sdfast.data.problem import Label
from sdfast.errors import UserError

Open = Callable[[str, DataConfig], Source]


def join(source: Source, specs: Sequence[str], options: DataConfig, open_one: Open) -> None:
    """Give `source` the items of further sources as its `UNLABELLED` ones; what there is to say goes to its warnings.

    Each item's name begins with that of its source, with a number where two sources have the same.

    Args:
        source: that they join.
        specs: what the others are opened by.
        options: the `data` section; what it says of labels and splits is not for them.
        open_one: opens one of them.

    Raises:
        UserError: one of them cannot be opened.
    """
    modality, taken = source.modality, {source.name}
    found: list[tuple[str, ItemList]] = []
    of_labels = {"label_key": NO_COLUMN, "problem_type": None, "label_separator": None}
    unlabelled = options.model_copy(update={**of_labels, "split_key": NO_COLUMN})
    for spec in specs:
        one = _grouped(spec, unlabelled, modality, open_one)
        names = itertools.chain([one.name], (f"{one.name} ({number})" for number in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        counts = {split: len(items) for split, items in one.splits.items()}
        parts = f" ({', '.join(f'{split} {count:,}' for split, count in counts.items())})" if len(counts) > 1 else ""
        source.warnings += [f"data.unlabelled: {sentence}" for sentence in one.warnings]
        source.warnings.append(
            f"All {sum(counts.values()):,} {modality.plural} of {name}{parts} are offered to train without a label "
            "(data.unlabelled); labels and splits that it may have are not used."
        )
        found += [(name, items) for items in one.splits.values()]
    labels: list[Label] = [None] * sum(len(items) for _, items in found)
    groups = [group for _, items in found for group in items.groups or [None] * len(items)]
    source.splits[UNLABELLED] = ItemList(
        labels, lambda: _named(found), groups=None if options.group is None else groups
    )


def _grouped(spec: str, options: DataConfig, modality: Modality, open_one: Open) -> Source:
    """One of them, with the groups of its items where `data.group` fits it."""
    if options.group is not None:
        with contextlib.suppress(UserError):  # it may be the column of another source
            source = _opened(spec, options, modality, open_one)
            find_groups(source, options)
            return source
    source = _opened(spec, options.model_copy(update={"group": None}), modality, open_one)
    if options.group is not None:
        source.warnings.append(
            f"data.group={options.group} fits nothing of {source.name}, so that nobody knows which of its "
            f"{modality.plural} belong to a group of test or val."
        )
    return source


def _opened(spec: str, options: DataConfig, modality: Modality, open_one: Open) -> Source:
    """One of them; its column of contents is the one that `options` name, or else one that is found."""
    key, free = modality.key, options.model_copy(update={"image_key": None, "text_key": None})
    named = options.unlabelled_key or getattr(options, key)
    try:
        return open_one(spec, free.model_copy(update={key: named}))
    except UserError as error:
        if named is not None:  # by a key for other sources
            with contextlib.suppress(UserError):
                source = open_one(spec, free)
                source.warnings.append(f"{source.name} has no column {named!r}, and another one is taken.")
                return source
        raise UserError(f"data.unlabelled: {str(error).replace(f'data.{key}', 'data.unlabelled_key')}") from error


def _named(found: Iterable[tuple[str, ItemList]]) -> Iterator[Item]:
    """The items one source after the other, with the name of the source before theirs, where it is not."""
    for name, items in found:
        for item in items:
            yield item if item.name.startswith(f"{name}:") else item._replace(name=f"{name}/{item.name}")
