"""Sources that join the rows of another one without labels: all of their items, whatever splits they have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import UNLABELLED, Item, ItemList, Source
from sdfast.errors import UserError

Open = Callable[[str, DataConfig], Source]


def join(source: Source, specs: Sequence[str], options: DataConfig, open_one: Open) -> None:
    """Give `source` the items of further sources as its `UNLABELLED` ones; what there is to say goes to its warnings.

    Each item's name begins with that of its source, with a number where two sources have the same.

    Args:
        source: that they join.
        specs: what the others are opened by.
        options: the `data` section; what it says of labels and splits is not for them, and a column that it names for
            the contents is looked for by its usual names where a source does not have it.
        open_one: opens one of them.

    Raises:
        UserError: one of them cannot be opened.
    """
    modality, taken = source.modality, {source.name}
    found: list[tuple[str, ItemList]] = []
    for spec in specs:
        one = _opened(spec, options.model_copy(update={"label_key": NO_COLUMN, "split_key": NO_COLUMN}), open_one)
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
    source.splits[UNLABELLED] = ItemList([None] * sum(len(items) for _, items in found), lambda: _named(found))


def _opened(spec: str, options: DataConfig, open_one: Open) -> Source:
    try:
        return open_one(spec, options)
    except UserError as error:
        if options.image_key is not None or options.text_key is not None:  # a column of the other source
            try:
                return open_one(spec, options.model_copy(update={"image_key": None, "text_key": None}))
            except UserError:
                pass
        raise UserError(f"data.unlabelled: {error}") from error


def _named(found: Iterable[tuple[str, ItemList]]) -> Iterator[Item]:
    """The items one source after the other, with the name of the source before theirs, where it is not."""
    for name, items in found:
        for item in items:
            yield item if item.name.startswith(f"{name}:") else item._replace(name=f"{name}/{item.name}")
