"""What the report of a study reads: the study's JSON file, and what its stages left in their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sdfast.durable import read_json
from sdfast.rundir import RESULT, StoredResult, read_result
from sdfast.studies.declared import study_named
from sdfast.studies.results import METRICS, SHARES
from sdfast.studies.statistics import interval
from sdfast.studies.units import unit_of
from sdfast.studies.verdict import is_known, main_metric

FEWEST = 3  # values whose mean gets an interval, as in the study's figure
_LINES = 4000  # of a stage's metrics that are read
_DIGITS = 12


@dataclass(frozen=True)
class Data:
    """One data set of a study's record.

    Attributes:
        out: the study's directory.
        record: of the study, as its JSON file has it.
        values: the part about this data set.
    """

    out: Path
    record: Mapping[str, Any]
    values: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """What the study is about."""
        return main_metric(self.record, self.values)

    @property
    def arms(self) -> list[dict[str, Any]]:
        """Those with a run, in their order."""
        return [arm for arm in self.values["arms"] if arm["runs"]]

    @property
    def metrics(self) -> list[str]:
        """Columns of the table: what all arms have."""
        return list(self.arms[0]["summary"]) if self.arms else []

    @property
    def overlap(self) -> float:
        """Test rows for each row of train, where runs are of folds; else 0."""
        folds = self.record.get("folds")
        return 1 / (folds - 1) if folds else 0.0

    def runs(self, arm: Mapping[str, Any], metric: str) -> list[tuple[str, float]]:
        """Each run of an arm: what it is called, and its value as it is shown."""
        found = []
        for run in arm["runs"]:
            if (value := value_of(run["metrics"], metric)) is not None:
                unit = unit_of(run)
                found.append((f"seed {run['seed']}" + (f", {unit}" if unit else ""), value))
        return found

    def count(self, arm: Mapping[str, Any]) -> int:
        """The number of seeds, folds or chains of which an arm has a run."""
        return len({_place(run) for run in arm["runs"]})

    def places(self, arm: Mapping[str, Any], metric: str) -> dict[tuple[int, ...], float]:
        """An arm's value at each seed; of folds and chains at each of them, the mean over its seeds."""
        places: dict[tuple[int, ...], list[float]] = {}
        for run in arm["runs"]:
            if (value := value_of(run["metrics"], metric)) is not None:
                places.setdefault(_place(run), []).append(value)
        return {place: fmean(values) for place, values in places.items()}

    def by_place(self, arm: Mapping[str, Any], metric: str) -> list[float]:
        """The same without saying where."""
        return list(self.places(arm, metric).values())

    def shared_means(self, arms: Sequence[Mapping[str, Any]], metric: str) -> tuple[dict[str, float], int]:
        """Means that can stand beside each other: over the seeds, folds or chains that all of these arms have.

        Args:
            arms: with the metric in their summary.
            metric: which.

        Returns:
            The means by title, and over how many; where none is shared each is over all of its own, and the number 0.
        """
        places = {arm["title"]: self.places(arm, metric) for arm in arms}
        shared = set[Any].intersection(*map(set, places.values())) if places else set()
        means = {title: fmean([values[place] for place in shared or values]) for title, values in places.items()}
        return means, len(shared)

    def interval(self, arm: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
        """95 % interval of an arm's mean, of three values or more."""
        values = self.by_place(arm, metric)
        return interval(values, self.overlap) if len(values) >= FEWEST else None

    def folder(self, stage: Mapping[str, Any]) -> Path | None:
        """Where a stage lies, also where the study was moved."""
        name = f"{stage.get('stage', 'finetune')}-{stage['fingerprint'][:_DIGITS]}"
        places = [self.out / "stages" / name, *self.out.glob(f"cost/*/stages/{name}"), Path(stage["model"]).parent]
        return next((place for place in places if (place / RESULT).is_file()), None)

    def result(self, run: Mapping[str, Any]) -> StoredResult | None:
        """What a fine-tuning's folder holds of it."""
        folder = self.folder({"stage": "finetune", **run})
        return None if folder is None else read_result(folder)


def _place(run: Mapping[str, Any]) -> Any:
    """What a run is of: its fold or chain, else its seed."""
    return unit_of(run) or run["seed"]


def value_of(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric as it is shown: shares in percent."""
    if name == "log_train_loss":
        loss = metrics.get("train_loss")
        return None if loss is None or loss <= 0 else math.log(loss)
    value = metrics.get(name)
    return 100 * value if value is not None and name in SHARES else value


def label(metric: str) -> str:
    """The metric's name in a table."""
    return METRICS[metric].label if metric in METRICS else metric.replace("_", " ")


def fixed(value: float, metric: str, sign: str = "") -> str:
    """A value of a metric, never a negative zero."""
    digits = 1 if metric in SHARES else 3
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def curve(folder: Path, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one record in a stage's metrics.jsonl; of a longer file evenly fewer."""
    try:
        lines = (folder / "metrics.jsonl").read_text("utf-8", "replace").splitlines()
    except OSError:
        return [], []
    steps, values = [], []
    for line in lines[:: max(1, len(lines) // _LINES)]:
        try:
            record = json.loads(line)
            step, value = float(record["step"]), float(record[name])
        except (ValueError, KeyError, TypeError):
            continue
        steps.append(step)
        values.append(value)
    return steps, values


def mean_curve(curves: Sequence[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """The mean of curves at the steps that all have."""
    tables = [dict(zip(*each, strict=True)) for each in curves if each[0]]
    if not tables:
        return [], []
    steps = sorted(set.intersection(*(set(each) for each in tables)))
    return steps, [fmean(each[step] for each in tables) for step in steps]


def records_in(out: Path) -> Iterator[dict[str, Any]]:
    """The studies of a directory, the newest first; tables that were set aside are none."""
    paths = [path for path in out.glob("*.json") if is_known(path.stem)]
    for path in sorted(paths, key=lambda each: each.stat().st_mtime, reverse=True):
        found = read_json(path)
        if isinstance(found, dict) and found.get("study") == path.stem and isinstance(found.get("data"), list):
            yield found


def reference(data: Data) -> str:
    """Title of the arm that the others are compared with."""
    return study_named(data.record["study"]).reference
