"""JSON in which one value is another, or gone: what a reader of our own files has to notice."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

Path = tuple[Any, ...]  # keys and indices, from the outside in


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where there is a value, be it one that holds others."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


def changed(original: Any, path: Path, *lie: Any) -> Any:
    """With another value at a place, or without what is there."""
    value = copy.deepcopy(original)
    place = value
    for key in path[:-1]:
        place = place[key]
    if lie:
        place[path[-1]] = lie[0]
    else:
        del place[path[-1]]
    return value


def changes(original: Any, lies: Sequence[Any]) -> Iterator[tuple[Path, Any]]:
    """Each value in turn replaced by each lie that is another, or taken away."""
    for path in leaves(original):
        for value in (*(changed(original, path, lie) for lie in lies), changed(original, path)):
            if repr(value) != repr(original):  # which tells 1 from True, as JSON does
                yield path, value
