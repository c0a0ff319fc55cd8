"""What a study found: the runs of each arm, their metrics as they are shown, and the comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sdfast.studies.declared import Arm, Study
from sdfast.studies.plan import Cell, Node, Target
from sdfast.studies.statistics import Paired, paired, with_holm
from sdfast.studies.units import Fold, Unit

SCORES = ("accuracy", "macro_f1", "micro_f1")  # of one class a row
SHARES = (*SCORES, "mean_average_precision", "subset_accuracy")  # which are shown in percent
_BESIDE = {  # what is shown with a metric that is no score of one class
    "mean_average_precision": ("macro_f1", "micro_f1"),
    "r2": ("rmse", "spearman"),
}


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        label: in tables.
        axis: of a figure, with its unit.
        about: a sentence below the table, where it needs one.
    """

    label: str
    axis: str = ""
    about: str = ""


METRICS = {
    "accuracy": Metric("accuracy %", "test accuracy, %"),
    "macro_f1": Metric("macro-F1 %", "test macro-F1, %"),
    "micro_f1": Metric("micro-F1 %", "test micro-F1, %"),
    "mean_average_precision": Metric(
        "mAP %",
        "test mean average precision, %",
        "mAP: mean over the classes of the average precision.",
    ),
    "subset_accuracy": Metric("subset accuracy %", "test subset accuracy, %"),
    "r2": Metric("R2", "test R2"),
    "rmse": Metric("RMSE", "test root mean squared error"),
    "mse": Metric("MSE", "test mean squared error"),
    "mae": Metric("MAE", "test mean absolute error"),
    "spearman": Metric("Spearman", "test rank correlation (Spearman)"),
    "test_loss": Metric("test loss", "test loss, nats"),
    "train_loss": Metric("train loss"),
    "generalisation_gap": Metric("gap", "test loss minus training loss, nats", "Gap: test loss minus training loss."),
    "distance": Metric(
        "distance",
        r"distance $\|\theta_{\mathrm{init}} - \theta\|_2$ of the encoder",
        "Distance: of the encoder's weights from the initial ones (l2).",
    ),
    "log_train_loss": Metric(
        "log train loss",
        "log of the training loss (in nats)",
        "Log train loss: natural logarithm of the training loss, both without dropout.",
    ),
}


@dataclass
class Found:
    """A study on one data set.

    Attributes:
        study, target: what was asked.
        runs: cells that are done, by the title of the arm, in the order of their places; arms without any are left out.
        stages: those that are done of `head`, `pretrain` and `distill`, with the arms that use them.
        failures: sentences about stages that failed.
    """

    study: Study
    target: Target
    runs: dict[str, list[Cell]]
    stages: list[Node]
    failures: list[str]

    def name(self, column: str) -> str:
        """The metric that a column shows."""
        return self.target.metric if column == "score" else column

    def metric(self, column: str) -> Metric:
        """How a column is shown."""
        return METRICS[self.name(column)]

    def is_percent(self, column: str) -> bool:
        """Whether it is shown in percent."""
        return self.name(column) in SHARES

    def digits(self, column: str) -> int:
        """After the point."""
        return 1 if self.is_percent(column) else 3

    def columns(self) -> list[str]:
        """Those that all runs have: runs finished by an earlier version have fewer."""
        return [column for column in self._wanted() if all(self._has(column))]

    def not_of_all(self) -> list[str]:
        """Columns that some runs have and some lack."""
        return [column for column in self._wanted() if any(has := self._has(column)) and not all(has)]

    def _wanted(self) -> list[str]:
        """The study's; texts have all scores together, and so have labels that are not one class a row."""
        wanted = [*self.study.columns]
        if (beside := _BESIDE.get(self.target.metric)) is not None and "score" in wanted:
            after = wanted.index("score") + 1
            wanted[after:after] = [name for name in beside if name not in wanted]
        elif self.target.modality == "texts" and "score" in wanted:
            after = wanted.index("score") + 1
            wanted[after:after] = [name for name in SCORES if name != self.target.metric]
        return wanted

    def _has(self, column: str) -> list[bool]:
        return [self.value(run, column) is not None for run in self.all_runs()]

    def all_runs(self) -> list[Cell]:
        """Those of all arms."""
        return [run for runs in self.runs.values() for run in runs]

    def value(self, run: Cell, column: str) -> float | None:
        """As it is shown: shares in percent; None when it is not there."""
        name, metrics = self.name(column), run.result.metrics
        if name == "log_train_loss":
            loss = metrics.get("train_loss")
            return None if loss is None or loss <= 0 else math.log(loss)
        value = metrics.get(name)
        return 100 * value if value is not None and name in SHARES else value

    def by_place(self, title: str, column: str) -> dict[tuple[int, ...], float]:
        """A column's values of an arm, by `Cell.place`; runs without one are left out.

        Of a fold or chain it is the mean over the seeds.
        """
        values: dict[tuple[int, ...], list[float]] = {}
        for run in self.runs.get(title, ()):
            if (value := self.value(run, column)) is not None:
                values.setdefault(run.place, []).append(value)
        return {place: fmean(each) for place, each in values.items()}

    @property
    def overlap(self) -> float:
        """Test rows for each row of train, where runs are of folds; else 0."""
        return 1 / (self.target.folds - 1) if self.target.folds else 0.0

    def values(self, title: str, column: str) -> list[float]:
        """The same in the order of the seeds, folds or chains."""
        return list(self.by_place(title, column).values())

    def coincidences(self) -> list[str]:
        """Sentences about arms that gave the very weights of one before them."""
        seen: dict[tuple[str, ...], Arm] = {}
        said = []
        for arm in self.target.arms:
            weights = tuple(run.result.weights for run in self.runs.get(arm.title, ()))
            first = seen.setdefault(weights, arm)
            if weights and first is not arm:
                said.append(f"{arm.title} gave the very weights of {first.title}: what it adds never acted.")
        return said

    def reference(self, arm: Arm) -> str:
        """Title of the arm that another is compared with: at the same size or length where there are several."""
        if not self.study.same:
            return self.study.reference
        return next((a.title for a in self.target.arms if a.x == arm.x and a.series == self.study.reference), arm.title)

    def compared(self, column: str) -> dict[str, Paired]:
        """Every other arm with its reference, by title."""
        found = {
            arm.title: paired(
                self.by_place(arm.title, column), self.by_place(against, column), self.overlap, self.target.kind
            )
            for arm in self.target.arms
            if (against := self.reference(arm)) != arm.title
        }
        return with_holm({title: difference for title, difference in found.items() if difference is not None})


def counts(found: Sequence[Found]) -> list[int]:
    """How many seeds, folds or chains the arms with a run have: one number where all have the same, else the ends."""
    numbers = {len({run.place for run in runs}) for each in found for runs in each.runs.values()}
    return sorted({min(numbers), max(numbers)})


def units_in_words(target: Target) -> str:
    """How folds are made, or in what chains differ, and how many runs each of them has."""
    seeds: dict[Unit | None, set[int]] = {}
    for cell in target.cells:
        seeds.setdefault(cell.unit, set()).add(cell.seed)
    runs = max(map(len, seeds.values()))
    return _folds_in_words(target, runs) if target.folds else _chains_in_words(target, runs)


def _folds_in_words(target: Target, runs: int) -> str:
    seeds = sorted({cell.unit.split_seed for cell in target.cells if isinstance(cell.unit, Fold)})
    words = f"each of {target.folds} is tested once"
    if len(seeds) > 1:
        words += f" in each of {len(seeds)} divisions (data.split_seed={seeds[0]} to {seeds[-1]})"
    return words + (f", as the mean of {runs} seeds" if runs > 1 else "")


def _chains_in_words(target: Target, runs: int) -> str:
    words = "each has its own seed in pretrain, distill and finetune"
    if target.sampled:
        drawn = sorted({cell.config.data.limit_seed for cell in target.cells})
        words += f" and its own sample of the training rows (data.limit_seed={drawn[0]} to {drawn[-1]})"
    else:
        words += ", on the same rows"
    return words + (f", and counts by the mean of its {runs} fine-tunings" if runs > 1 else "")


def gather(study: Study, target: Target) -> Found:
    """What the stages of a study's cells gave."""
    used = list(dict.fromkeys(node for cell in target.cells for node in cell.stages))
    runs: dict[str, list[Cell]] = {}
    for cell in target.cells:
        if cell.stages[-1].result is not None:
            runs.setdefault(cell.arm.title, []).append(cell)
    stages = [node for node in used if node.task.stage != "finetune" and node.result is not None]
    failures = [f"{node.named(node.wanted_by[0])}: {node.failure}" for node in used if node.failure is not None]
    return Found(study, target, runs, stages, failures)
