"""Which published layout a folder has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sdfast.data.items import Source
from sdfast.data.layouts import aircraft, chest_xray, cifar100, cub, dogs, dtd, flowers
from sdfast.errors import UserError


@dataclass(frozen=True)
class Layout:
    """One published data set.

    Attributes:
        kind: of its source; `PaperSet.layout` names it.
        is_here: whether a folder has the files that mark it.
        open: opens such a folder.
    """

    kind: str
    is_here: Callable[[Path], bool]
    open: Callable[[Path], Source]


LAYOUTS = (
    Layout(aircraft.KIND, aircraft.is_aircraft, aircraft.open_aircraft),
    Layout(cub.KIND, cub.is_cub, cub.open_cub),
    Layout(chest_xray.KIND, chest_xray.is_chest_xray, chest_xray.open_chest_xray),
    Layout(dtd.KIND, dtd.is_dtd, dtd.open_dtd),
    Layout(dogs.KIND, dogs.is_dogs, dogs.open_dogs),
    Layout(flowers.KIND, flowers.is_flowers, flowers.open_flowers),
    Layout(cifar100.KIND, cifar100.is_cifar100, cifar100.open_cifar100),
)


def layout_of(path: Path) -> Layout | None:
    """The layout of a folder, or None."""
    return next((layout for layout in LAYOUTS if layout.is_here(path)), None)


def check_not_above(path: Path, classes: Iterable[str]) -> None:
    """Check that no sub-folder that is to be a class is a published data set.

    Raises:
        UserError: one is.
    """
    for name in classes:
        if (layout := layout_of(path / name)) is not None:
            raise UserError(f"{path} holds {name}/, which is the data set {layout.kind}: pass --data {path / name}.")
