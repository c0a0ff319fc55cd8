"""What a study says, in a sentence for each data set, from what its JSON file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from sdfast.errors import UserError
from sdfast.studies.declared import COST, FINE_TUNING, study_named
from sdfast.studies.results import METRICS, SHARES
from sdfast.studies.units import Unit, kind_of, unit_of

LEVEL = 0.05  # of a p-value after Holm's correction, below which a difference is called one
_NAMED = 3  # arms that a sentence names
SCORES = {*SHARES, "r2", "spearman"}  # of which more is better; of the others a sentence says higher and lower


@dataclass(frozen=True)
class Difference:
    """An arm beside its reference, as the file has it.

    Attributes:
        title: of the arm.
        reference: title of the other.
        mean, low, high, p: of the difference, in the units shown, its 95 % interval and p-value after Holm's
            correction; None where there is none.
        count: pairs.
        note: why there is no interval.
    """

    title: str
    reference: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    count: int
    note: str | None

    @property
    def sign(self) -> int:
        """1 where the arm is above the reference, -1 where below, 0 where that cannot be told."""
        if self.p is None or self.p >= LEVEL:
            return 0
        return 1 if self.mean > 0 else -1


def stages_in(data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All trainings of one data set of a record, with `stage`, `seconds`, `steps`, `fingerprint` and `model`."""
    yield from data["stages"]
    for arm in data["arms"]:
        for run in arm["runs"]:
            yield {"stage": "finetune", "arms": [arm["title"]], **run}


def main_metric(record: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The metric that a study is about."""
    column = study_named(record["study"]).tested[0]
    return str(data["metric"]) if column == "score" else column


def differences(record: Mapping[str, Any], data: Mapping[str, Any], metric: str) -> list[Difference]:
    """The comparisons of a metric, in the order of the arms."""
    study, arms = study_named(record["study"]), {arm["title"]: arm for arm in data["arms"]}
    found = []
    for title, each in data["paired"].get(metric, {}).items():
        against = study.reference
        if study.same and title in arms:
            same = (arm["title"] for arm in arms.values() if arm["x"] == arms[title]["x"])
            against = next((name for name in same if arms[name]["series"] == study.reference), against)
        low, high, p = (each.get(name) for name in ("low", "high", "p_holm"))
        found.append(Difference(title, against, each["mean"], low, high, p, each["count"], each.get("note")))
    return found


def verdicts(record: Mapping[str, Any]) -> list[str]:
    """A sentence for each data set, named where there are several."""
    said = []
    for data in record["data"]:
        name = f"{data['title']}: " if len(record["data"]) > 1 else ""
        parts = [_without_a_model(record, data), _verdict(record, data), *_courses(record, data)]
        said.append(name + " ".join(filter(None, parts)))
    return said


def method(arm: Mapping[str, Any]) -> str:
    """What an arm is called beside others of its size."""
    return str(arm["series"] if arm["x"] is not None and arm["series"] else arm["title"])


def begun(name: str) -> str:
    """A name at the beginning of a sentence; a first word that has capitals (kNN, LoRA) is left as it is."""
    return f"{name[0].upper()}{name[1:]}" if name.split()[0].islower() else name


def listed_sizes(sizes: Sequence[float]) -> str:
    """n = 20, 50 and 100."""
    *some, last = (f"{size:.0f}" for size in sizes)
    return f"n = {', '.join(some)} and {last}" if some else f"n = {last}"


def _without_a_model(record: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """A sentence where a linear classifier on the raw input scores more than every arm; at some sizes, or at all."""
    metric, of_sizes = main_metric(record, data), study_named(record["study"]).of_sizes
    if metric not in SCORES:
        return ""
    nearest: dict[float | None, tuple[float, float]] = {}  # at each size the classifier's mean and the best arm's
    for arm in data["arms"]:
        x, units = arm["x"] if of_sizes else None, {unit_of(run) for run in arm["runs"]}
        if metric in arm["summary"] and (raw := list(_raw_on(data, x, units, metric))):
            both = fmean(raw), arm["summary"][metric]["mean"]
            nearest[x] = min(nearest.get(x, both), both, key=lambda each: each[0] - each[1])
    above = [x for x, (score, best) in nearest.items() if score > best]
    if not above:
        return ""
    digits, unit = (1, " %") if metric in SHARES else (3, "")
    scores = [" against ".join(f"{score:.{digits}f}{unit}" for score in nearest[x]) for x in above]
    where = "" if above == [None] else f" at {listed_sizes([x or 0 for x in above])}"
    name = data["raw"][0]["name"]
    return (
        f"{begun(name)} of the same rows is above every arm{where} ({', '.join(scores)}): as it is"
        " trained here, the model is worth less than none."
    )


def _raw_on(data: Mapping[str, Any], x: float | None, units: set[Unit | None], metric: str) -> Iterator[float]:
    """What a linear classifier on the raw input scores on the rows of these folds or chains, as it is shown."""
    for each in data.get("raw", []):
        of = {unit_of(columns) for columns in each.get("units", [])}
        if each["x"] == x and metric in each["metrics"] and (not of or of & units):
            yield each["metrics"][metric] * (100 if metric in SHARES else 1)


def _verdict(record: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    if record["study"] == COST.name:
        return _cost(data)
    if not any(arm["runs"] for arm in data["arms"]):
        return "No run is done."
    metric, what = main_metric(record, data), f"{kind_of(record)}s"
    found = differences(record, data, metric)
    if not found:
        return "There is nothing yet to compare."
    tested = [each for each in found if each.p is not None]
    if not tested:
        best = max(found, key=lambda each: abs(each.mean))
        if best.count > 1 and best.note:
            amount = _amount(best, metric)
            return f"{begun(best.title)} and {best.reference} differ by {amount} in {name_of(metric)}, {best.note}."
        return (
            f"{begun(best.title)} and {best.reference} differ by {_amount(best, metric)} in {name_of(metric)}, without"
            f" an interval ({best.note or 'too few runs'}): more {what} are needed to say which is better."
        )
    against, numbers = tested[0].reference, sorted({each.count for each in tested})
    study = study_named(record["study"])
    if study.same:
        against = f"{study.reference} at the same {study.same}"
    above = sorted((each for each in tested if each.sign > 0), key=lambda each: -each.mean)
    below = sorted((each for each in tested if each.sign < 0), key=lambda each: each.mean)
    over = f"in {name_of(metric)}, over {' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))} {what}"
    if study.figure == "lengths" and (above or below):
        return _by_length(against, tested, above, below, metric, over)
    if against == FINE_TUNING.title and metric in SCORES:
        return _gains(tested, above, below, metric, over)
    ahead, behind = (below, above) if metric in SCORES or not above else (above, below)
    words = ("ahead of", "behind") if metric in SCORES else ("below", "above") if ahead is above else ("above", "below")
    if not ahead and not behind:
        most = max(tested, key=lambda each: abs(each.mean))
        return (
            f"No difference from {against} is shown {over}: the largest, of {most.title}, is {_amount(most, metric)}."
        )
    parts = [
        f"{word} {len(each)} of {len(tested)} others ({_beside(each, metric)})"
        for each, word in zip((ahead, behind), words, strict=True)
        if each
    ]
    rest = len(tested) - len(above) - len(below)
    undecided = f"; {rest} cannot be told apart" if rest else ""
    return f"{begun(against)} is {' and '.join(parts)} {over}{undecided}."


def _by_length(
    against: str,
    tested: Sequence[Difference],
    above: Sequence[Difference],
    below: Sequence[Difference],
    metric: str,
    over: str,
) -> str:
    """At how many lengths self-distillation is above or below, and where most."""
    parts = [
        f"{word} {against} at {len(each)} of {len(tested)} lengths (most: {_amount(each[0], metric)}, {each[0].title})"
        for each, word in ((above, "above"), (below, "below"))
        if each
    ]
    return f"Self-distillation is {' and '.join(parts)} {over}."


def _courses(record: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    """A sentence about where each series begins and ends, where the study is one of lengths."""
    metric, courses = main_metric(record, data), dict[str, list[tuple[int, float]]]()
    for arm in data["arms"] if study_named(record["study"]).figure == "lengths" else ():
        if arm["series"] and metric in arm["summary"]:
            courses.setdefault(arm["series"], []).append((arm["x"], arm["summary"][metric]["mean"]))
    form = ".1f" if metric in SHARES else ".3f"
    said = [
        f"{series} {min(points)[1]:{form}} at {min(points)[0]:,} steps, {max(points)[1]:{form}} at {max(points)[0]:,}"
        for series, points in courses.items()
        if len(points) > 1
    ]
    if said:
        yield f"Mean {METRICS[metric].label}: {'; '.join(said)}."


def _beside(found: Sequence[Difference], metric: str) -> str:
    """One of the arms, plain fine-tuning where it is among them, and how far the reference is from it."""
    each = next((one for one in found if one.title == FINE_TUNING.title), found[0])
    low, high = (None if end is None else -end for end in (each.high, each.low))
    return f"{each.title}: {_amount(replace(each, mean=-each.mean, low=low, high=high), metric)}"


def _gains(
    tested: Sequence[Difference],
    above: Sequence[Difference],
    below: Sequence[Difference],
    metric: str,
    over: str,
) -> str:
    """The sentence where the question is whether a method is worth more than plain fine-tuning."""
    reference = tested[0].reference
    if above:
        first, *others = above
        also = f"; so {'does' if len(others) == 1 else 'do'} {_listed(others, metric)}" if others else ""
        return f"{begun(first.title)} gains {_amount(first, metric)} on {reference} {over}{also}."
    nearest = max(tested, key=lambda each: each.mean)
    least = "the only one" if len(tested) == 1 else "the best of them"
    sentence = f"No method is shown to gain on {reference} {over}: {least}, {nearest.title}, differs by"
    sentence += f" {_amount(nearest, metric)}"
    return sentence + (f"; {_listed(below, metric)} {'loses' if len(below) == 1 else 'lose'}." if below else ".")


def _cost(data: Mapping[str, Any]) -> str:
    seconds: dict[str, float] = {}
    for each in stages_in(data):
        seconds.setdefault(each["stage"], each["seconds"])
    if not (whole := sum(seconds.values())) or not (base := seconds.get("finetune")):
        return "Not all is measured yet."
    parts = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    return f"The whole chain takes {whole / base:.1f} times what fine-tuning alone takes ({parts})."


def name_of(metric: str) -> str:
    """A metric in a sentence."""
    return METRICS[metric].label.removesuffix(" %") if metric in METRICS else metric


def _listed(found: Sequence[Difference], metric: str) -> str:
    named = [f"{each.title} ({_amount(each, metric)})" for each in found[:_NAMED]]
    more = len(found) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _amount(each: Difference, metric: str) -> str:
    """A difference with its interval: +2.5 points [+1.0, +4.0]."""
    digits = 1 if metric in SHARES else 3
    points = " points" if metric in SHARES else ""
    mean = f"{round(each.mean, digits) + 0.0:+.{digits}f}{points}"
    if each.low is None or each.high is None:
        return mean
    low, high = (f"{round(end, digits) + 0.0:+.{digits}f}" for end in (each.low, each.high))
    return f"{mean} [95 %: {low}, {high}]"


def is_known(study: str) -> bool:
    """Whether this version has a study of that name."""
    try:
        study_named(study)
    except UserError:
        return False
    return True
