"""The rates of a cell of the registered grid, chosen on its validation rows by the rule of `results/studies/regime.md`.

python benchmarks/regime_rates.py digits       # says what to write into regime.py and regime.md; the cell comes after

Of fine-tuning: the rate with the best accuracy among those whose training loss ends below 0.05, with twice the steps
where none does (and the best of all if none does then). Of pretrain and distill: the one after which fine-tuning is
best. One sample of labelled rows, as many fine-tunings as a chain of the cell has; self-distillation is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regime import CELLS, Cell, Rates, arguments_for, prepared, sdfast
from regime_table import FINE_TUNING, FURTHER

from sdfast import Study
from sdfast.studies.tables import aligned

FITTED = 0.05  # training loss
OF_IMAGES, OF_TEXTS = ("1e-4", "3e-4", "1e-3"), ("1e-4", "3e-4", "5e-4")
OF_PRETRAIN = ("1e-5", "1e-4", "5e-4")


@dataclass(frozen=True)
class Tried:
    """A rate's accuracy (percent) and training loss: means over the seeds."""

    accuracy: float
    train_loss: float

    @property
    def fitted(self) -> bool:
        """Whether fine-tuning has fitted its rows."""
        return self.train_loss < FITTED


def best(tried: Mapping[Rates, Tried]) -> Rates:
    """The rates with the highest accuracy; of equals the first."""
    return max(tried, key=lambda rates: tried[rates].accuracy)


class Trials:
    """A cell's arms on its validation rows, at one rate after the other."""

    def __init__(self, cell: Cell, model: str, out: Path, jobs: int) -> None:
        self.cell, self.model, self.out, self.jobs = cell, model, out, jobs
        self.rows = [["arm", "pretrain.lr", "finetune.lr", "finetune.steps", "accuracy %", "training loss"]]

    def of(self, arm: str, rates: Sequence[Rates]) -> dict[Rates, Tried]:
        """One arm at each of the rates."""
        return {each: self._one(arm, each) for each in rates}

    def _one(self, arm: str, rates: Rates) -> Tried:
        methods = ",".join(dict.fromkeys((FINE_TUNING, arm)))  # a study has what the others are compared with
        options = f'--methods "{methods}"'
        trial = replace(self.cell, data=self.cell.validation, rates=rates, chains=1, options=options)
        sdfast(trial.command(self.model, self.out, self.jobs))
        runs = Study.load(self.out / f"{trial.study}.json").to_pandas().query("arm == @arm")
        tried = Tried(100 * float(runs["accuracy"].mean()), float(runs["train_loss"].mean()))
        further = rates.further if arm == FURTHER else ""
        numbers = [f"{tried.accuracy:.1f}", f"{tried.train_loss:.3f}"]
        self.rows.append([arm, further, rates.finetune, str(trial.finetune_steps), *numbers])
        return tried


def choose(trials: Trials, of_finetune: Sequence[str]) -> Rates:
    """The registered rule, step by step; `trials` has every number in the end."""
    for longer in (False, True):
        tried = trials.of(FINE_TUNING, [Rates(OF_PRETRAIN[0], each, longer) for each in of_finetune])
        if fitted := {rates: each for rates, each in tried.items() if each.fitted}:
            break
    chosen = best(fitted or tried)
    return best(trials.of(FURTHER, [chosen._replace(further=each) for each in OF_PRETRAIN]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    asked = [name for name, cell in CELLS.items() if cell.validation]
    options = arguments_for(__doc__, asked).parse_args(arguments)
    cell = CELLS[options.cell]
    model = prepared(options.cell, options.out, options.fashion)
    trials = Trials(cell, model, options.out / "rates" / options.cell, options.jobs)
    rates = choose(trials, OF_IMAGES if cell.data.startswith("study-images") else OF_TEXTS)
    print("\n".join(aligned(trials.rows)))
    print(f"{options.cell}: {rates}")


if __name__ == "__main__":
    main()
