"""What one value of an arm stands for: a fine-tuning's seed, or the mean over a fold or over a whole chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Fold(NamedTuple):
    """One fold of one division of the rows: the seed of the split, and the fold's number."""

    split_seed: int
    number: int

    @property
    def columns(self) -> dict[str, int]:
        """What CSV and JSON have of it."""
        return {"split_seed": self.split_seed, "fold": self.number}

    def __str__(self) -> str:
        return f"fold {self.number} of split seed {self.split_seed}"


class Chain(NamedTuple):
    """One whole chain, from pre-training to its fine-tunings: its number."""

    number: int

    @property
    def columns(self) -> dict[str, int]:
        """What CSV and JSON have of it."""
        return {"chain": self.number}

    def __str__(self) -> str:
        return f"chain {self.number}"


Unit = Fold | Chain
UnitKind = Literal["seed", "fold", "chain"]


def unit_of(run: Mapping[str, Any]) -> Unit | None:
    """That of a run in a study's JSON file; None where runs are told apart by their seeds alone."""
    if "fold" in run:
        return Fold(int(run["split_seed"]), int(run["fold"]))
    return Chain(int(run["chain"])) if "chain" in run else None


def columns_of(unit: Unit | None) -> dict[str, int]:
    """What CSV and JSON have of a run's unit."""
    return {} if unit is None else unit.columns


def kind_of(record: Mapping[str, Any]) -> UnitKind:
    """What the values of a study's JSON file are of."""
    return "fold" if record.get("folds") else "chain" if record.get("chains") else "seed"
