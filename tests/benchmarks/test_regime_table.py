"""The registered questions are answered by chain, and corrected for all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import regime_table as regime
from scipy import stats

from sdfast import Study

CHAINS = 6


def write_cell(folder: Path, runs: pd.DataFrame, name: str) -> None:
    """A study's table and record, as far as they are read."""
    folder.mkdir(parents=True)
    runs.to_csv(folder / f"{name}.csv", index=False)
    (folder / f"{name}.json").write_text(json.dumps({"study": name}))


def write_main(folder: Path, gain: float, seed: int = 0) -> pd.DataFrame:
    """Two fine-tunings of each arm in each chain; self-distillation is above the others by `gain`."""
    random = np.random.default_rng(seed)
    rows = [
        {"arm": arm, "series": "", "x": None, "chain": chain, "accuracy": 0.6 + more + 0.01 * random.normal()}
        for arm, more in ((regime.FINE_TUNING, 0.0), (regime.FURTHER, 0.0), (regime.DISTILLED, gain))
        for chain in range(CHAINS)
        for _ in range(2)
    ]
    write_cell(folder, runs := pd.DataFrame(rows), "compare")
    return runs


def test_a_chain_is_the_mean_of_its_fine_tunings_and_the_test_is_paired(tmp_path: Path) -> None:
    runs = write_main(tmp_path / "main", gain=0.05)
    found = regime.answers(tmp_path)
    first, second, *others = found.values()
    means = 100 * runs.groupby(["arm", "chain"])["accuracy"].mean().unstack("arm")
    differences = means[regime.DISTILLED] - means[regime.FURTHER]
    assert first is not None and second is not None and not any(others)
    assert first.count == CHAINS and first.mean == pytest.approx(differences.mean())
    assert first.p == pytest.approx(stats.ttest_rel(means[regime.DISTILLED], means[regime.FURTHER]).pvalue)
    assert sorted([first.p_holm, second.p_holm])[0] == pytest.approx(  # type: ignore[type-var]
        min(first.p, second.p) * len(regime.QUESTIONS)  # type: ignore[type-var]
    )


def test_a_slope_is_points_for_a_doubling(tmp_path: Path) -> None:
    rows = [
        {"arm": "", "series": series, "x": 125 * 2**step, "chain": chain, "accuracy": 0.7 + each * step + 0.001 * chain}
        for series, each in ((regime.FURTHER, -0.01), (regime.DISTILLED, 0.002))
        for step in range(4)
        for chain in range(3)
    ]
    runs = pd.DataFrame([*rows, {"arm": regime.FINE_TUNING, "series": "", "x": None, "chain": 0, "accuracy": 0.1}])
    assert regime.slope(regime.FURTHER)(runs) == {(chain,): pytest.approx(-1.0) for chain in range(3)}
    assert regime.slope(regime.DISTILLED)(runs) == {(chain,): pytest.approx(0.2) for chain in range(3)}


def test_the_table_and_the_figure_have_what_was_found_and_the_rest_is_not_run(tmp_path: Path) -> None:
    write_main(tmp_path / "main", gain=0.05)
    found = regime.answers(tmp_path)
    lines = regime.table(found)
    assert len(lines) == 2 + len(regime.QUESTIONS)
    assert sum("not run" in line for line in lines) == len(regime.QUESTIONS) - 2
    assert len(regime.draw(found).axes[0].get_yticks()) == 2


def test_a_headline_of_ones_own_agrees_within_noise_or_does_not(tmp_path: Path) -> None:
    write_main(tmp_path / "main", gain=0.02)
    write_main(tmp_path / "mine", gain=0.02, seed=1)
    write_main(tmp_path / "other", gain=-0.05, seed=2)
    assert regime.same(tmp_path / "mine", tmp_path / "main")[1]
    sentence, agrees = regime.same(tmp_path / "other", tmp_path / "main")
    assert not agrees and f"over {CHAINS} chains" in sentence


def test_what_is_detectable_is_seen_with_that_power() -> None:
    random = np.random.default_rng(3)
    compared = regime.paired(
        {(n,): float(value) for n, value in enumerate(random.normal(size=16))},
        dict.fromkeys([(n,) for n in range(16)], 0.0),
    )
    assert compared is not None
    least, deviation = (
        regime.detectable(compared),
        16**0.5 * (compared.high - compared.low) / 2 / stats.t.ppf(0.975, 15),
    )
    seen = stats.ttest_1samp(random.normal(least, deviation, size=(4000, 16)), 0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


PAGE = (Path(__file__).parents[2] / "docs" / "does-it-help.md").read_text(encoding="utf-8")


def means_of(cell: str) -> pd.DataFrame:
    """A committed cell's metrics by arm and chain."""
    runs = Study.load(regime.RESULTS / cell).to_pandas()
    columns = ["accuracy", "test_loss", "train_loss", "distance"]
    return runs.groupby(["arm", "chain"])[columns].mean() * [100, 1, 1, 1]


def with_interval(differences: pd.Series[float]) -> str:
    """Their mean over the chains and its 95 % interval, as the page has them."""
    mean, (low, high) = differences.mean(), stats.ttest_1samp(differences, 0).confidence_interval()
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


@pytest.mark.parametrize("cell", ["main", "unlabelled", "digits", "glosses", "glosses-5e-4"])
def test_the_page_has_the_means_of_a_cell(cell: str) -> None:
    means = means_of(cell)
    for arm in (regime.FINE_TUNING, regime.FURTHER, regime.DISTILLED):
        of_arm = means.loc[arm]
        shown = [
            f"{of_arm[column].mean():.{digits}f} ± {of_arm[column].std():.{digits}f}"
            for column, digits in zip(means, (1, 3, 3, 1), strict=True)
        ]
        assert f"| {arm} | {' | '.join(shown)} |" in PAGE


def test_the_page_has_what_more_labels_give() -> None:
    means = [means_of(cell)["accuracy"].unstack("arm") for cell in ("labels-50", regime.HEADLINE, "labels-500")]
    for arm in (regime.FINE_TUNING, regime.FURTHER, regime.DISTILLED):
        row = " | ".join(f"{of_cell[arm].mean():.1f} ± {of_cell[arm].std():.1f}" for of_cell in means)
        assert re.search(rf"^\| {arm}(, accuracy %)? \| {re.escape(row)} \|$", PAGE, re.MULTILINE)
    for other in (regime.FURTHER, regime.FINE_TUNING):
        row = " | ".join(with_interval(of_cell[regime.DISTILLED] - of_cell[other]) for of_cell in means)
        assert f"| {regime.DISTILLED} less {other} | {row} |" in PAGE


def test_the_page_has_all_arms_on_the_chains_that_they_share() -> None:
    accuracy = means_of(regime.HEADLINE)["accuracy"].unstack("arm").dropna()
    losses = means_of(regime.HEADLINE)["test_loss"].unstack("arm").loc[accuracy.index]
    assert len(accuracy) == 6 and len(accuracy.columns) == 7
    for arm in accuracy:
        less = accuracy[arm] - accuracy[regime.FINE_TUNING]
        beside = "" if arm == regime.FINE_TUNING else f"{with_interval(less)} "
        assert f"| {accuracy[arm].mean():.1f} | {beside}| {losses[arm].mean():.3f} |" in PAGE


def test_the_page_says_what_the_committed_cells_say() -> None:
    answered = {question: each for question, each in regime.answers(regime.RESULTS).items() if each is not None}
    assert any(question.cell == regime.HEADLINE for question in answered)
    for question, each in answered.items():
        interval = f"{each.mean:+.1f} [{each.low:+.1f}, {each.high:+.1f}]"
        assert f"| {question.asks} | {interval} | {regime.p_value(each.p)} | {regime.p_value(each.p_holm)} |" in PAGE
