"""What would settle a comparison: the best arm, whether it is told apart from others, and how many runs would tell."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from sdfast.studies.declared import COST, FINE_TUNING, study_named
from sdfast.studies.results import SHARES
from sdfast.studies.statistics import (
    MOST_PAIRS,
    Paired,
    deviation_range,
    paired,
    pairs_needed,
    smallest_shown,
    with_holm,
)
from sdfast.studies.stored import Data, fixed
from sdfast.studies.units import kind_of
from sdfast.studies.verdict import LEVEL, SCORES, begun, differences, listed_sizes, method, name_of, verdicts

_FEW = 4  # pairs, of fewer of which the deviation is little known

Arm = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two arms on the same rows, one less the other.

    Attributes:
        first, second: the arms, as a record has them.
        runner_up: whether the second has the best mean of the others.
        found: their differences; the correction is the table's where the table compares them, else that for all pairs
            of arms of the same size.
        deviation: of the differences; None of one.
        level: that Holm's correction leaves for this comparison beside those that are shown.
    """

    first: Arm
    second: Arm
    runner_up: bool
    found: Paired
    deviation: float | None
    level: float

    @property
    def told_apart(self) -> bool:
        """Whether the difference is more than noise."""
        return self.found.p_holm is not None and self.found.p_holm < LEVEL


def conclusions(record: Mapping[str, Any]) -> list[str]:
    """What a study ends with, for each data set: its verdict, and what would settle it."""
    return [" ".join(filter(None, each)) for each in zip(verdicts(record), settled(record), strict=True)]


def settled(record: Mapping[str, Any]) -> list[str]:
    """For each data set the best arm, and what would tell it from the others; empty where nothing can be said."""
    return [_settled(Data(Path(), record, values)) for values in record["data"]]


def _settled(data: Data) -> str:
    study = study_named(data.record["study"])
    if study.name == COST.name or data.metric not in SCORES or (study.axis is not None and not study.of_sizes):
        return ""
    compared = _Compared(data)
    if not any(pair.found.p is not None for pair in compared.pairs):
        return ""
    best = _of_sizes(compared) if study.of_sizes else _best(compared)
    pair = _open_question(compared)
    return " ".join(filter(None, [best, _power(pair, data), _caution(data)]))


class _Compared:
    """The arms of a data set by size, from the best mean on, and their differences.

    Attributes:
        means: of each arm with a run, by title, over the seeds, folds or chains that all of its size share.
        shared: how many these are, by size.
        ranked: these arms, by where they are on the axis.
        pairs: of the best arm of each size with fine-tuning and with the runner-up.
    """

    def __init__(self, data: Data) -> None:
        self.data, metric, of_sizes = data, data.metric, study_named(data.record["study"]).of_sizes
        self.kind = kind_of(data.record)
        self.ranked: dict[float | None, list[Arm]] = {}
        for arm in data.arms:
            if metric in arm["summary"]:
                self.ranked.setdefault(arm["x"] if of_sizes else None, []).append(arm)
        self.ranked = {x: arms for x, arms in sorted(self.ranked.items(), key=lambda each: each[0] or 0) if arms[1:]}
        self.means, self.shared = dict[str, float](), dict[float | None, int]()
        for x, arms in self.ranked.items():
            means, self.shared[x] = data.shared_means(arms, metric)
            self.means |= means
            arms.sort(key=lambda arm: -self.means[arm["title"]])
        self._values = {arm["title"]: data.places(arm, metric) for arms in self.ranked.values() for arm in arms}
        self._all = self._corrected(pair for arms in self.ranked.values() for pair in combinations(arms, 2))
        compared = differences(data.record, data.values, metric)
        self._table = {frozenset((each.title, each.reference)): each.p for each in compared if each.p is not None}
        self.of = {x: self._of(arms) for x, arms in self.ranked.items()}

    @property
    def pairs(self) -> list[Pair]:
        """Those of all sizes."""
        return [pair for pairs in self.of.values() for pair in pairs]

    def _of(self, arms: Sequence[Arm]) -> list[Pair]:
        """The best with fine-tuning, then with the runner-up; once where they are the same.

        An arm of the very weights of the best is no other.
        """
        best, others = arms[0], [arm for arm in arms[1:] if _weights(arm) != _weights(arms[0])]
        wanted = [arm for arm in others if is_fine_tuning(arm)]
        wanted += [arm for arm in others[:1] if arm not in wanted]
        return [pair for each in wanted if (pair := self._pair(best, each, each is others[0])) is not None]

    def _corrected(self, pairs: Iterable[tuple[Arm, Arm]]) -> dict[tuple[str, str], Paired]:
        """Each pair's differences, with Holm's correction over all of them."""
        found: dict[tuple[str, str], Paired] = {}
        for names in ((first["title"], second["title"]) for first, second in pairs):
            values, others = (self._values[name] for name in names)
            if (difference := paired(values, others, self.data.overlap, self.kind)) is not None:
                found[names] = difference
        return with_holm(found)

    def _pair(self, first: Arm, second: Arm, runner_up: bool) -> Pair | None:
        names = first["title"], second["title"]
        if (found := self._all.get(names)) is None:
            return None
        tested = {frozenset(pair): each.p_holm for pair, each in self._all.items() if each.p_holm is not None}
        if (pair := frozenset(names)) in self._table:
            tested, found = self._table, replace(found, p_holm=self._table[pair])
        shown = sum(p < LEVEL for other, p in tested.items() if other != pair)
        values = [self._values[name] for name in names]
        differences = [values[0][place] - values[1][place] for place in values[0].keys() & values[1].keys()]
        deviation = statistics.stdev(differences) if found.p is not None else None
        return Pair(first, second, runner_up, found, deviation, LEVEL / max(1, len(tested) - shown))


def _weights(arm: Arm) -> list[Any]:
    """Digests of the weights of an arm's runs; an earlier version's fingerprints, which none has in common."""
    return [run.get("weights", run["fingerprint"]) for run in arm["runs"]]


def is_fine_tuning(arm: Arm) -> bool:
    """Whether it is plain fine-tuning, of some size."""
    return method(arm) == FINE_TUNING.title


def _best(compared: _Compared) -> str:
    """Which arm has the best mean, and which of the others it is told apart from."""
    metric = compared.data.metric
    ((_, arms),) = compared.ranked.items()
    pairs = compared.of[None]
    told = " and from ".join(_other(pair, metric) for pair in pairs if pair.told_apart)
    untold = " or from ".join(_other(pair, metric) for pair in pairs if not pair.told_apart)
    words = [f"told apart from {told}"] if told else []
    words += [("but not from " if told else "not told apart from ") + untold] if untold else []
    most, shared = max(map(compared.data.count, arms)), compared.shared[None]
    over = f" over the {shared} {compared.kind}s that all have" if 0 < shared < most else ""
    score = _score(compared.means[arms[0]["title"]], metric)
    return f"{begun(method(arms[0]))} has the best mean{over}, {score}, {', '.join(words)}."


def _other(pair: Pair, metric: str) -> str:
    """The other arm of a pair, with the difference and its corrected p-value."""
    name = method(pair.second)
    if pair.runner_up:
        name = f"the runner-up, {name}"
    p, note = pair.found.p_holm, pair.found.note
    why = note if p is None else f"p = {p:.3f}" if p >= 0.001 else f"p = {p:.0e}"
    return f"{name} ({_amount(pair.found.mean, metric, '+')}, {why})"


def _of_sizes(compared: _Compared) -> str:
    """The best arm of each size, and the sizes at which it is told apart from fine-tuning."""
    sizes: dict[str, list[float]] = {}
    for x, arms in compared.ranked.items():
        sizes.setdefault(method(arms[0]), []).append(x or 0)
    best = ", ".join(f"{name} at {listed_sizes(points)}" for name, points in sizes.items())
    above = [x or 0 for x, pairs in compared.of.items() if pairs and is_fine_tuning(pairs[0].second)]
    told = [x or 0 for x, pairs in compared.of.items() if pairs and x in above and pairs[0].told_apart]
    if not above:
        return f"Best mean: {best}."
    where = "at none of these sizes" if not told else f"at {listed_sizes(told)}"
    return f"Best mean: {best}; told apart from {FINE_TUNING.title} {where}."


def _open_question(compared: _Compared) -> Pair:
    """The largest difference that is not shown: from fine-tuning, else from the runner-up; else the largest of all."""
    tested = [pair for pair in compared.pairs if pair.found.p is not None]
    undecided = [pair for pair in tested if not pair.told_apart]
    chosen = [pair for pair in undecided if is_fine_tuning(pair.second)] or undecided or tested
    return max(chosen, key=lambda pair: abs(pair.found.mean))


def _power(pair: Pair, data: Data) -> str:
    """How many runs would show a difference, and what these could have shown."""
    metric, count, deviation = data.metric, pair.found.count, pair.deviation
    assert deviation is not None
    unit = kind_of(data.record) + "s"
    at = "" if not study_named(data.record["study"]).of_sizes else f"At {listed_sizes([pair.first['x']])}, "
    least = _amount(smallest_shown(count, pair.level, data.overlap) * deviation, metric)
    basis = f"(paired t-test at {pair.level:.2g}; deviation of the differences {_amount(deviation, metric)}"
    if count < _FEW:
        low, high = deviation_range(count)
        basis += f", which {count} pairs hardly tell: it may be {low:.1f} to {high:.0f} times that"
    basis += ")"
    if pair.told_apart:
        sentence = f"{at}the least that these {count} {unit} could have shown with 80 % power is {least} {basis}."
        return sentence[0].upper() + sentence[1:]
    step = data.record.get("folds") or 1
    wanted = [f"{_runs(pair.found.mean, pair, data, step)} {unit} if the difference is the one seen"]
    if metric in SHARES:
        wanted.append(f"{_runs(1.0, pair, data, step)} if it is one point")
    sentence = f"{at}to tell {method(pair.first)} from {method(pair.second)} with 80 % power would take "
    sentence += f"{', '.join(wanted)}; these {count} could have shown {least} {basis}."
    return sentence[0].upper() + sentence[1:]


def _runs(difference: float, pair: Pair, data: Data, step: int) -> str:
    assert pair.deviation is not None
    needed = pairs_needed(difference / pair.deviation, pair.level, data.overlap, step)
    return f"more than {MOST_PAIRS:,}" if needed is None else f"{needed:,}"


def _caution(data: Data) -> str:
    """What the noise is that was counted, where another pre-training would add to it."""
    record = data.record
    pre_trained = any(arm["start"] != "init" for arm in data.arms)
    if record.get("protocol") != "paper" or record.get("folds") or not pre_trained:
        return ""
    alone = "The noise counted is that of fine-tuning alone"
    return f"{alone}; --chains would count that of pre-training, and of other rows, too."


def _score(mean: float, metric: str) -> str:
    return fixed(mean, metric) + (" %" if metric in SHARES else f" ({name_of(metric)})")


def _amount(value: float, metric: str, sign: str = "") -> str:
    return fixed(value, metric, sign) + (" points" if metric in SHARES else "")
