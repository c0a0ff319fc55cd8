"""The registered questions of `results/studies/regime.md`, answered from the runs of its cells.

python benchmarks/regime_table.py                     # the table; writes regime.png and .svg beside the cells
python benchmarks/regime_table.py --same runs/main    # does one's own headline cell agree with the committed one?
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sdfast import Study
from sdfast.studies.statistics import Paired, paired, smallest_shown, with_holm
from sdfast.studies.tables import aligned
from sdfast.studies.verdict import LEVEL

RESULTS = Path(__file__).parent / "results" / "studies" / "regime"
HEADLINE = "main"
FINE_TUNING, FURTHER, DISTILLED = "fine-tuning", "further pre-training", "self-distillation"
_SHOWN, _OPEN = "#0072b2", "#6b6b6b"

Values = Mapping[tuple[int, ...], float]  # by chain
Reading = Callable[[pd.DataFrame], Values]  # of a table with a row for each run


def accuracy(arm: str) -> Reading:
    """Of an arm, in percent: the mean of a chain's fine-tunings."""

    def values(runs: pd.DataFrame) -> Values:
        means = 100 * runs[runs["arm"] == arm].groupby("chain")["accuracy"].mean()
        return {(int(chain),): float(mean) for chain, mean in means.items()}

    return values


def slope(series: str) -> Reading:
    """Points of accuracy that a series gains with each doubling of its steps: the least squares of each chain."""

    def values(runs: pd.DataFrame) -> Values:
        found: dict[tuple[int, ...], float] = {}
        for chain, rows in runs[(runs["series"] == series) & (runs["x"] > 0)].groupby("chain"):
            means = 100 * rows.groupby("x")["accuracy"].mean()
            found[(int(chain),)] = statistics.linear_regression([math.log2(x) for x in means.index], list(means)).slope
        return found

    return values


def nothing(runs: pd.DataFrame) -> Values:
    """0 for each chain."""
    return {(int(chain),): 0.0 for chain in runs["chain"].unique()}


@dataclass(frozen=True)
class Question:
    """One of those that were registered.

    Attributes:
        cell: the folder of its study.
        asks: what is compared, in words.
        of, against: its two sides; the answer is the mean over the chains of their difference, in points.
    """

    cell: str
    asks: str
    of: Reading
    against: Reading = nothing


def distilled_less(other: str, cell: str) -> Question:
    """Self-distillation less another arm, in accuracy."""
    return Question(cell, f"{DISTILLED} less {other}", accuracy(DISTILLED), accuracy(other))


QUESTIONS = (
    distilled_less(FURTHER, HEADLINE),
    distilled_less(FINE_TUNING, HEADLINE),
    Question("lengths", f"{FURTHER}, for each doubling of its length", slope(FURTHER)),
    Question("lengths", f"{DISTILLED} less {FURTHER}, for each doubling", slope(DISTILLED), slope(FURTHER)),
    *(
        distilled_less(other, cell)
        for cell in ("unlabelled", "shifted", "elpv", "digits", "dinov2", "glosses", "newsgroups")
        for other in (FURTHER, FINE_TUNING)
    ),
)


def answers(folder: Path, questions: Sequence[Question] = QUESTIONS) -> dict[Question, Paired | None]:
    """What was found, corrected (Holm) for all that were registered; None where a cell has not run.

    A question without an answer counts in the correction like one with p = 1.
    """
    found: dict[str, Paired] = {}
    for number, question in enumerate(questions):
        each = None
        if (folder / question.cell).is_dir():
            runs = Study.load(folder / question.cell).to_pandas()
            each = paired(question.of(runs), question.against(runs))
        found[str(number)] = each if each is not None and each.p is not None else Paired(0, math.nan, p=1.0)
    corrected = with_holm(found).values()
    return {question: each if each.count else None for question, each in zip(questions, corrected, strict=True)}


def detectable(found: Paired) -> float:
    """Points that so many chains show with a power of 80 % at the level 0.05, uncorrected."""
    assert found.low is not None and found.high is not None
    from scipy import stats

    half = (found.high - found.low) / 2
    deviation = half * math.sqrt(found.count) / float(stats.t.ppf(1 - LEVEL / 2, found.count - 1))
    return smallest_shown(found.count, LEVEL) * deviation


def p_value(p: float | None) -> str:
    """As it is written."""
    assert p is not None
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def table(found: Mapping[Question, Paired | None]) -> list[str]:
    """Markdown: a row for each question."""
    rows = [["cell", "question", "points [95 %]", "chains", "p", "p (Holm)", "80 % power at"]]
    for question, each in found.items():
        if each is None:
            rows.append([question.cell, question.asks, "not run", "", "", "", ""])
        else:
            points = f"{each.mean:+.1f} [{each.low:+.1f}, {each.high:+.1f}]"
            numbers = [str(each.count), p_value(each.p), p_value(each.p_holm), f"{detectable(each):.1f}"]
            rows.append([question.cell, question.asks, points, *numbers])
    return aligned(rows)


def draw(found: Mapping[Question, Paired | None]) -> Figure:
    """The answers and their intervals, those that are shown (Holm) in colour."""
    rows = [(question, each) for question, each in found.items() if each is not None]
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(rows)), layout="constrained")
    place = figure.subplots()
    place.axvline(0, color="black", linewidth=0.8)
    for at, (_, each) in enumerate(rows):
        assert each.low is not None and each.high is not None
        color = _SHOWN if each.p_holm is not None and each.p_holm < LEVEL else _OPEN
        place.plot([each.low, each.high], [at, at], color=color, linewidth=2.4, solid_capstyle="round")
        place.plot(each.mean, at, "D", color=color, markersize=7, markeredgecolor="white")
    place.set_yticks(range(len(rows)), [f"{question.cell}: {question.asks}" for question, _ in rows])
    place.set_ylim(len(rows) - 0.5, -0.5)
    place.set_xlabel("points of test accuracy, mean over chains with its 95 % interval")
    place.spines[["top", "right", "left"]].set_visible(False)
    place.tick_params(axis="y", length=0)
    place.grid(axis="x", color="#e4e4e4")
    place.set_axisbelow(True)
    return figure


def same(theirs: Path, ours: Path) -> tuple[str, bool]:
    """Whether the first question of a headline cell has the same answer in two runs of it.

    Returns:
        A sentence, and whether the difference of the two means is within the 95 % interval for one (Welch).
    """
    question, found = QUESTIONS[0], []
    for folder in (theirs, ours):
        runs = Study.load(folder).to_pandas()
        of, against = question.of(runs), question.against(runs)
        found.append([of[chain] - against[chain] for chain in of.keys() & against.keys()])
        if len(found[-1]) < 2:
            raise SystemExit(f"{folder}: two chains at least are needed, and it has {len(found[-1])}.")
    from scipy import stats

    low, high = stats.ttest_ind(*found, equal_var=False).confidence_interval(1 - LEVEL)
    means, half = [statistics.fmean(each) for each in found], (high - low) / 2
    sentence = (
        f"{question.asks}: {means[0]:+.1f} points here over {len(found[0])} chains, {means[1]:+.1f} in the repository"
        f" over {len(found[1])}; they differ by {means[0] - means[1]:+.1f}, and up to {half:.1f} is noise (95 %)."
    )
    return sentence, abs(means[0] - means[1]) <= half


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="of the cells")
    parser.add_argument("--same", type=Path, metavar="STUDY", help="a headline cell of one's own")
    options = parser.parse_args()
    if options.same is not None:
        sentence, agrees = same(options.same, options.folder / HEADLINE)
        print(sentence)
        raise SystemExit(0 if agrees else 1)
    found = answers(options.folder)
    print("\n".join(table(found)))
    figure = draw(found)
    for ending in ("png", "svg"):
        figure.savefig(options.folder / f"regime.{ending}", dpi=160)


if __name__ == "__main__":
    main()
