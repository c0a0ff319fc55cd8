"""Run the teacher again on a few rows of a bank and compare."""

from __future__ import annotations

from dataclasses import dataclass

from sdfast.errors import RunError
from sdfast.rng import random_permutation
from sdfast.teacher.bank import Bank
from sdfast.teacher.fetch import DiskSource
from sdfast.teacher.recipe import BankRecipe
from sdfast.teacher.storage import decode, quantum, widen

# Error allowed beside the stored dtype's own, relative to the features' size: sums in another order (batches, devices).
_TOLERANCE = 1e-3
_BATCH = 16


@dataclass(frozen=True)
class SampleErrors:
    """What the comparison gave.

    Attributes:
        rows: compared.
        largest: absolute error of a feature.
        mean: absolute error.
        size: root mean square of the features.
    """

    rows: int
    largest: float
    mean: float
    size: float


def sample_errors(bank: Bank, recipe: BankRecipe, count: int, seed: int) -> SampleErrors:
    """Compare some rows, chosen by `seed`, with what the teacher gives for them now.

    Raises:
        RunError: an error that rounding does not explain.
    """
    source, count = DiskSource(bank), min(count, len(bank))
    chosen = random_permutation(seed, 0, len(bank))[:count].numpy()
    largest = excess = total = square = 0.0
    for first in range(0, count, _BATCH):
        entries = chosen[first : first + _BATCH]
        now = recipe.features(recipe.read(recipe.rows_of_entries(entries)), entries).cpu().double()
        kept = widen(*decode(source.read(bank.rows_of(recipe.entry_digests[entries])), bank.layout))
        error = (kept - now).abs()
        excess = max(excess, float((error - quantum(now, recipe.dtype)).max()))
        largest, total = max(largest, float(error.max())), total + float(error.mean()) * len(entries)
        square += float(now.square().mean()) * len(entries)
    found = SampleErrors(len(chosen), largest, total / len(chosen), (square / len(chosen)) ** 0.5)
    if not excess <= _TOLERANCE * found.size:
        raise RunError(
            f"the teacher bank {bank.directory} is not what the teacher gives: largest error {largest:.2e} in "
            f"{found.rows} rows, whose features have size {found.size:.2e}; run `sdfast cache build --out "
            f"{bank.directory.parent} --rebuild`."
        )
    return found
