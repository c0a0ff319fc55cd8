"""What a study found: the runs of each arm, their metrics as they are shown, and the comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sdfast.rundir import Result
from sdfast.studies.declared import Arm, Study
from sdfast.studies.earlier import Trained
from sdfast.studies.plan import Cell, Node, Target
from sdfast.studies.statistics import Paired, paired, with_holm

_LABELS = {
    "accuracy": "accuracy %",
    "macro_f1": "macro-F1 %",
    "micro_f1": "micro-F1 %",
    "test_loss": "test loss",
    "train_loss": "train loss",
    "log_train_loss": "log train loss",
    "generalisation_gap": "gap",
    "distance": "distance",
}
_PERCENT = ("accuracy", "macro_f1", "micro_f1")


@dataclass(frozen=True)
class Run:
    """A cell and what came out."""

    cell: Cell
    result: Result


@dataclass
class Found:
    """A study on one data set.

    Attributes:
        study, target: what was asked.
        runs: by the title of the arm, in the order of the seeds; arms without any are left out.
        stages: of `head`, `pretrain` and `distill`, with the arms that use them.
        failures: sentences about stages that failed.
    """

    study: Study
    target: Target
    runs: dict[str, list[Run]]
    stages: list[Node]
    failures: list[str]

    def name(self, column: str) -> str:
        """The metric that a column shows."""
        return self.target.metric if column == "score" else column

    def label(self, column: str) -> str:
        """What a column is called in tables and figures."""
        return _LABELS[self.name(column)]

    def columns(self) -> list[str]:
        """Those that all runs have: runs finished by an earlier version have fewer."""
        return [column for column in self._wanted() if self._has(column, all)]

    def _wanted(self) -> list[str]:
        """The study's; texts have all scores together."""
        wanted = [*self.study.columns]
        if self.target.modality == "texts" and "score" in wanted:
            after = wanted.index("score") + 1
            wanted[after:after] = [name for name in _PERCENT if name != self.target.metric]
        return wanted

    def _has(self, column: str, how_many: Callable[[Iterable[bool]], bool]) -> bool:
        return how_many(self.value(run, column) is not None for runs in self.runs.values() for run in runs)

    def is_percent(self, column: str) -> bool:
        """Whether it is shown in percent."""
        return self.name(column) in _PERCENT

    def value(self, run: Run, column: str) -> float | None:
        """As it is shown: shares in percent."""
        return shown(run.result.metrics, self.name(column))

    def by_seed(self, title: str, column: str) -> dict[int, float]:
        """A column's values of an arm, by seed; runs without one are left out."""
        values = {run.cell.seed: self.value(run, column) for run in self.runs.get(title, ())}
        return {seed: value for seed, value in values.items() if value is not None}

    def seeds(self) -> set[int]:
        """The seeds of all runs."""
        return {run.cell.seed for runs in self.runs.values() for run in runs}

    def trained(self) -> frozenset[Trained]:
        """All runs that are shown: title, seed and fingerprint of each."""
        everything = [(title, run) for title, runs in self.runs.items() for run in runs]
        return frozenset((title, run.cell.seed, run.result.fingerprint) for title, run in everything)

    def not_of_all(self) -> list[str]:
        """Columns that some runs have and some lack."""
        return [name for name in self._wanted() if name not in self.columns() and self._has(name, any)]

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
        """Title of the arm that another is compared with: at the same size where there are several."""
        axis = self.study.axis
        if axis is None or axis.kind != "limit":
            return self.study.reference
        return next((a.title for a in self.target.arms if a.x == arm.x and a.series == self.study.reference), arm.title)

    def compared(self, column: str) -> dict[str, Paired]:
        """Every other arm with its reference, by title."""
        found = {}
        for arm in self.target.arms:
            against = self.reference(arm)
            if arm.title == against or not (values := self.by_seed(arm.title, column)):
                continue
            difference = paired(values, self.by_seed(against, column))
            if difference is not None:
                found[arm.title] = difference
        return with_holm(found)


def counts(found: Sequence[Found]) -> list[int]:
    """How many runs the arms have, those that have any: one number where all have the same, else the ends of them."""
    numbers = {len(runs) for each in found for runs in each.runs.values()}
    return sorted({min(numbers), max(numbers)})


def shown(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric as it is shown: shares in percent; None when it is not there."""
    if name == "log_train_loss":
        loss = metrics.get("train_loss")
        return None if loss is None or loss <= 0 else math.log(loss)
    value = metrics.get(name)
    return 100 * value if value is not None and name in _PERCENT else value


def gather(study: Study, target: Target, nodes: Mapping[str, Node]) -> Found:
    """What the stages of a study's cells gave."""
    runs: dict[str, list[Run]] = {}
    used: dict[str, Node] = {}
    for cell in target.cells:
        used |= {key: nodes[key] for key in cell.stages}
        result = nodes[cell.stages[-1]].result
        if result is not None:
            runs.setdefault(cell.arm.title, []).append(Run(cell, result))
    failures = [
        f"{node.named(node.wanted_by[0])}: {node.failure}" for node in used.values() if node.failure is not None
    ]
    stages = [node for node in used.values() if node.task.stage != "finetune" and node.result is not None]
    return Found(study, target, runs, stages, failures)
