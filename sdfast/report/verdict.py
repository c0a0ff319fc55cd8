"""Whether it worked: the score of a fine-tuned model with its interval, in a sentence, beside what it compares with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE
from sdfast.report import intervals
from sdfast.report.answers import Answers, answers_of
from sdfast.report.intervals import Interval
from sdfast.report.panel import duration, number, percent
from sdfast.report.records import Run, StageRecord
from sdfast.rundir import StoredResult

LABELS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "mean_average_precision": "mean average precision",
    "subset_accuracy": "all classes right",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "mean absolute error",
    "spearman": "rank correlation",
}
_SHARES = {"accuracy", "subset_accuracy"}  # shown as per cent
_WILSON = "the interval of a share is Wilson's score interval"
_BOOTSTRAP = "the interval is a percentile bootstrap over the test rows"
_OF_ROWS = "It speaks of the test rows alone: another seed or other training rows would move the score too."


@dataclass(frozen=True)
class Score:
    """How good a fine-tuned model is on the test rows.

    Attributes:
        metric: name of it in `Result.metrics`.
        value: of it.
        count: test rows; None where that is not kept.
        interval: 95 %; None where there is none.
        method: how that was computed, or why there is none.
        chance: what a guess gives that has seen nothing but the labels; None where there is no such.
    """

    metric: str
    value: float
    count: int | None
    interval: Interval | None
    method: str
    chance: float | None = None

    @property
    def label(self) -> str:
        """Its name in words."""
        return LABELS.get(self.metric, self.metric.replace("_", " "))

    def said(self, value: float) -> str:
        """A value of the metric, as it is shown."""
        return percent(value) if self.metric in _SHARES else f"{value:.3f}"

    @property
    def between(self) -> str:
        """The interval in words; empty where there is none."""
        if self.interval is None:
            return ""
        low, high = self.interval
        return f"{100 * low:.1f} to {percent(high)}" if self.metric in _SHARES else f"{low:.3f} to {high:.3f}"


@dataclass(frozen=True)
class Gain:
    """The difference of two fine-tunings on the same test rows.

    Attributes:
        mean: of the first less the other.
        interval: 95 %, where there is one.
        paired: whether it is of the same rows, one by one.
    """

    mean: float
    interval: Interval | None
    paired: bool


@dataclass(frozen=True)
class Verdict:
    """What stands at the top of a run's report."""

    sentence: str
    notes: list[str]
    tiles: list[tuple[str, str]]


def verdict_of(run: Run) -> Verdict:
    """The sentence, what is to be said beside it, and a few numbers."""
    done = run.classifiers
    if not done or (run.live is not None and done[0].folder != "finetune"):
        return _unfinished(run)
    stage = done[0]
    score = score_of(run, stage)
    if score is None:
        return Verdict("The model is fine-tuned; its result holds no score that this version knows.", [], [])
    sentence, notes = _sentence(run, score), [_how(score)]
    compared, more = _compared(run, stage, score)
    sentence, notes = " ".join(filter(None, (sentence, compared))), [*notes, *more]
    if stage.folder != "finetune":
        notes.insert(0, f"This is the model in {stage.folder}.")
    if run.live is not None:
        notes.insert(0, f"The run goes on: {_doing(run)}.")
    notes += [f"{each.folder} is of weights that are no more, and will run again." for each in _outdated(run)]
    return Verdict(sentence, [note for note in notes if note], _tiles(run, stage, score))


def score_of(run: Run, stage: StageRecord) -> Score | None:
    """The score of a fine-tuning that is done, by the metric that the paper reports, or the first of its kind."""
    stored = stage.result
    assert stored is not None
    answers = answers_of(run.out, stage.folder, stored)
    return _score(_Held(stored, answers, _tested(run)))


@dataclass(frozen=True, eq=False)
class _Held:
    """What a score is computed from; of the same result they are taken for equal."""

    stored: StoredResult
    answers: Answers | None
    tested: int | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and hash(self) == hash(other)

    def __hash__(self) -> int:
        return hash((_identity(self.stored), self.answers is None, self.tested))


def _identity(stored: StoredResult) -> tuple[Any, ...]:
    """What tells results apart: the same inputs may have been trained twice."""
    return stored.fingerprint, stored.weights, *sorted(stored.metrics.items())


@functools.lru_cache(maxsize=64)
def _score(held: _Held) -> Score | None:
    stored, metrics = held.stored, held.stored.metrics
    problem = stored.inputs.get("problem_type", SINGLE)
    if problem == SINGLE and "accuracy" in metrics:
        return _one_class(stored)
    if problem == SEVERAL and "mean_average_precision" in metrics:
        return _several(held)
    if problem == REGRESSION and "r2" in metrics:
        return _numbers(held)
    return None


def _one_class(stored: StoredResult) -> Score:
    name = stored.paper_metric if stored.paper_metric in ("macro_f1", "micro_f1") else "accuracy"
    value, majority = stored.metrics[name], stored.metrics.get("majority_class_accuracy")
    count = support_of(stored)
    if name in ("accuracy", "micro_f1"):  # of one class a row they are the same
        within = None if not count else intervals.wilson(round(value * count), count)
        return Score("accuracy", value, count, within, _WILSON if within else "the test rows are not counted", majority)
    matrix = (stored.confusion_matrix or {}).get("test")
    if matrix is None:
        return Score(name, value, count, None, "there is no confusion matrix to compute an interval from")
    return Score(name, value, count, intervals.of_matrix(np.asarray(matrix), intervals.macro_f1), _BOOTSTRAP)


def _several(held: _Held) -> Score:
    stored, answers = held.stored, held.answers
    value = stored.metrics["mean_average_precision"]
    if answers is None or answers.probabilities is None:
        missing = "there is no interval, as the test rows' predictions are not kept; `sdfast eval` keeps them"
        return Score("mean_average_precision", value, held.tested, None, missing)
    chance = answers.labels.mean(axis=0)
    within = intervals.of_rows(len(answers), lambda rows: mean_average_precision(answers, rows))
    return Score("mean_average_precision", value, len(answers), within, _BOOTSTRAP, float(chance[chance > 0].mean()))


def _numbers(held: _Held) -> Score:
    stored, answers = held.stored, held.answers
    if answers is None:
        missing = "there is no interval, as the test rows' predictions are not kept; `sdfast eval` keeps them"
        return Score("r2", stored.metrics["r2"], held.tested, None, missing, 0.0)
    within = intervals.of_rows(len(answers), lambda rows: r2(answers, rows))
    return Score("r2", stored.metrics["r2"], len(answers), within, _BOOTSTRAP, 0.0)


def mean_average_precision(answers: Answers, rows: Any) -> float:
    """That of some of the rows, over the classes that occur in them."""
    assert answers.probabilities is not None
    labels, scores = answers.labels[rows], answers.probabilities[rows]
    occurring = np.flatnonzero(labels.any(axis=0))
    each = [intervals.average_precision(scores[:, place], labels[:, place]) for place in occurring]
    return float(np.mean(each)) if each else 0.0


def r2(answers: Answers, rows: Any) -> float:
    """That of some of the rows, the mean over the numbers."""
    right, guess = answers.labels[rows], answers.predicted[rows]
    spread = np.square(right - right.mean(axis=0)).sum(axis=0)
    if not (spread > 0).all():
        return math.nan
    return float((1 - np.square(guess - right).sum(axis=0) / spread).mean())


def gain(run: Run, one: StageRecord, other: StageRecord) -> Gain | None:
    """The first less the second by the first's metric; None where they were tested on other rows."""
    first, second = one.result, other.result
    assert first is not None and second is not None
    same = [name for name in first.inputs if name.startswith("test ")]
    if any(first.inputs[name] != second.inputs.get(name) for name in same):
        return None
    scores = score_of(run, one), score_of(run, other)
    if scores[0] is None or scores[1] is None or scores[0].metric != scores[1].metric:
        return None
    name, mean = scores[0].metric, scores[0].value - scores[1].value
    pair = [answers_of(run.out, each.folder, each.result) for each in (one, other) if each.result is not None]
    if pair[0] is not None and pair[1] is not None and len(pair[0]) == len(pair[1]):
        measure = _MEASURES[name]
        a, b = pair[0], pair[1]
        if np.array_equal(a.labels, b.labels):
            key = _identity(first), _identity(second)
            if key not in _gains:
                _gains[key] = intervals.of_rows(len(a), lambda rows: measure(a, rows) - measure(b, rows))
            return Gain(mean, _gains[key], True)
    counts = [support_of(each) for each in (first, second)]
    if name != "accuracy" or not counts[0] or not counts[1]:
        return Gain(mean, None, False)
    shares = [(round(each.value * n), n) for each, n in zip(scores, counts, strict=True) if each is not None and n]
    return Gain(mean, intervals.newcombe(shares[0], shares[1]), False)


_gains: dict[Any, Interval | None] = {}


def _accuracy(answers: Answers, rows: Any) -> float:
    return float((answers.labels[rows] == answers.predicted[rows]).mean())


def _macro_f1(answers: Answers, rows: Any) -> float:
    labels, predicted = answers.labels[rows], answers.predicted[rows]
    classes = int(max(answers.labels.max(), answers.predicted.max())) + 1
    right = np.bincount(labels[labels == predicted], minlength=classes)
    total = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    return float((2 * right[total > 0] / total[total > 0]).mean())


_MEASURES: dict[str, Callable[[Answers, Any], float]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "mean_average_precision": mean_average_precision,
    "r2": r2,
}


def support_of(stored: StoredResult) -> int | None:
    """Test rows of one class each; None where that is not kept."""
    classes = (stored.per_class or {}).get("test")
    return sum(each.support for each in classes.values()) if classes else None


def plain_of(run: Run) -> StageRecord | None:
    """A fine-tuning that started from the model as it was given, beside the run's own; None where there is none."""
    first = next((each for each in run.stages if each.result and each.kind in ("head", "pretrain")), None)
    own = run.classifiers[0] if run.classifiers else None
    if first is None or own is None or first.result is None or own.result is None:
        return None
    initial = first.result.inputs.get("start")
    others = [each for each in run.classifiers[1:] if each.result and each.result.inputs.get("start") == initial]
    return None if own.result.inputs.get("start") == initial else next(iter(others), None)


def _sentence(run: Run, score: Score) -> str:
    rows = f"{score.count:,} test {run.modality}" if score.count else f"the test {run.modality}"
    within = f" (95 % interval {score.between})" if score.interval else ""
    if score.metric == "accuracy":
        said = f"The fine-tuned model is right on {percent(score.value)} of {rows}{within}"
        if score.chance is None:
            return f"{said}."
        guess = f"always answering the largest class ({percent(score.chance)})"
        if score.interval is not None and score.interval[0] <= score.chance:
            worse = score.interval[1] < score.chance
            return f"{said}: {'worse than' if worse else 'not shown to be better than'} {guess}."
        return f"{said}, where always answering the largest class gives {percent(score.chance)}."
    label = score.label[0].upper() + score.label[1:]
    said = f"{label} is {score.said(score.value)} on {rows}{within}"
    if score.metric == "mean_average_precision" and score.chance is not None:
        if score.interval is not None and score.interval[0] <= score.chance:
            return f"{said}: not shown to be better than guessing ({score.said(score.chance)})."
        return f"{said}, where guessing gives {score.said(score.chance)}."
    if score.metric == "r2":
        better = score.interval is None or score.interval[0] > 0
        return (
            f"{said}, where always answering the mean gives 0."
            if better
            else (f"{said}: not shown to be better than always answering the mean.")
        )
    return f"{said}."


def _how(score: Score) -> str:
    method = score.method[0].upper() + score.method[1:]
    return f"{method}. {_OF_ROWS}" if score.interval else f"{method}."


def _compared(run: Run, stage: StageRecord, score: Score) -> tuple[str, list[str]]:
    """The end of the verdict where there is a plain fine-tuning beside it, and notes."""
    stored, other = stage.result, plain_of(run)
    assert stored is not None
    if other is None:
        if run.config is not None and run.config.finetune.start == "init" and stage.folder == "finetune":
            return "", ["This is plain fine-tuning: the model as it was given, without further pre-training."]
        return "", [
            "Whether further pre-training and distillation were worth it cannot be concluded from this run: it has no"
            " plain fine-tuning beside it. `sdfast study compare` trains both, over several seeds."
        ]
    beside, found = score_of(run, other), gain(run, stage, other)
    if beside is None or found is None:
        return "", [f"{other.folder} was tested on other rows, so the two are not compared."]
    plain = f"plain fine-tuning ({score.said(beside.value)})"
    if found.interval is None:
        return f"Plain fine-tuning gives {score.said(beside.value)}.", [
            "Without the predictions of both, there is no interval of the difference, and nothing can be concluded."
        ]
    low, high = (_points(score, end) for end in found.interval)
    within = f"95 % interval {low} to {high}"
    if found.interval[0] > 0:
        sentence = f"That is {_points(score, found.mean)} over {plain}, {within}."
    elif found.interval[1] < 0:
        sentence = f"That is {_points(score, found.mean)} against {plain}, {within}."
    else:
        sentence = f"It cannot be told apart from {plain}: a difference of {_points(score, found.mean)}, {within}."
    how = (
        "The difference is of the same test rows: a percentile bootstrap that draws rows for both models together."
        if found.paired
        else "The predictions of both are not kept, so the interval of the difference is Newcombe's for two independent"
        " shares, which is wider than it need be for the same rows."
    )
    return sentence, [f"{how} One seed each: `sdfast study compare` repeats both over several."]


def _points(score: Score, value: float) -> str:
    shown = 100 * value if score.metric in _SHARES else value
    digits = 1 if score.metric in _SHARES else 3
    text = f"{abs(shown):.{digits}f}"
    sign = "" if float(text) == 0 else "+" if value > 0 else "−"
    return f"{sign}{text}{' points' if score.metric in _SHARES else ''}"


def _tested(run: Run) -> int | None:
    """Labelled rows of the split that is evaluated on, by the manifest."""
    splits = run.manifest.get("splits")
    if not isinstance(splits, dict):
        return None
    found = [each for name in ("test", "val") if isinstance(each := splits.get(name), dict)]
    counts = [each.get("labelled") for each in found]
    return next((count for count in counts if isinstance(count, int) and count), None)


def _tiles(run: Run, stage: StageRecord, score: Score) -> list[tuple[str, str]]:
    assert stage.result is not None
    metrics = stage.result.metrics
    names = ("accuracy", "mean_average_precision", "r2", "macro_f1", "subset_accuracy", "rmse", "mae", "spearman")
    shown = [score.metric, *(name for name in names if name in metrics and name != score.metric)]
    tiles = [
        (LABELS[name], percent(metrics[name]) if name in _SHARES else number(metrics[name], 3)) for name in shown[:3]
    ]
    if (majority := metrics.get("majority_class_accuracy")) is not None:
        tiles.append(("largest class alone", percent(majority)))
    if (loss := metrics.get("test_loss")) is not None:
        tiles.append(("test loss", number(loss, 3)))
    return [*tiles, ("time of training", duration(_seconds(run)))]


def _seconds(run: Run) -> float:
    return sum(each.result.seconds for each in run.stages if each.result is not None)


def _outdated(run: Run) -> list[StageRecord]:
    return [each for each in run.stages if each.state == "outdated"]


def _doing(run: Run) -> str:
    running = next((each for each in run.stages if each.state == "running"), None)
    return f"{running.folder} is at step {running.step:,} of {running.steps:,}" if running else "between two stages"


def _unfinished(run: Run) -> Verdict:
    """Before there is a classifier: how far it is."""
    parts, tiles = [], []
    running = next((each for each in run.stages if each.state == "running"), None)
    stopped = [each for each in run.stages if each.state == "interrupted"]
    done = [each for each in run.stages if each.state == "done" and each.result]
    if running is not None:
        parts.append(f"Stage {running.folder} is at step {running.step:,} of {running.steps:,}.")
        tiles = _pace(running)
    elif run.live is not None:
        parts.append("The run goes on.")
    elif stopped:
        parts.append(
            f"Stage {stopped[-1].folder} was interrupted at step {stopped[-1].step:,} of {stopped[-1].steps:,}."
        )
    elif done:
        parts.append(f"Stage {done[-1].folder} is done.")
    else:
        parts.append("Nothing is trained yet.")
    parts.append("No model is fine-tuned yet, so nothing can be said of how good it is.")
    notes = [f"{each.folder} is of weights that are no more, and will run again." for each in _outdated(run)]
    if stopped and run.live is None:
        notes.append("The same command continues from there.")
    return Verdict(" ".join(parts), notes, [*tiles, *([("time of training", duration(_seconds(run)))] if done else [])])


def _pace(running: StageRecord) -> list[tuple[str, str]]:
    tiles = []
    if running.steps:
        tiles.append(("of the steps", percent(running.step / running.steps, 0)))
    last = {name: values[-1] for name, (_, values) in running.values.items() if values}
    if "step_seconds" in last:
        tiles.append(("left in this stage", duration(max(0, running.steps - running.step) * last["step_seconds"])))
    if "loss" in last:
        tiles.append(("loss", number(last["loss"])))
    if "rate" in last:
        tiles.append(("rows a second", number(last["rate"], 3)))
    return tiles
