"""A cell's rates are chosen by the registered rule, from fine-tuning and further pre-training alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import regime
import regime_rates
from regime_rates import FINE_TUNING, FURTHER, Trials, Tried

CELL = replace(regime.CELLS["digits"], rates=None)
Found = dict[tuple[str, str, int], Tried]  # by arm, the rate that is varied, and the steps of fine-tuning


class Written(Trials):
    """Trials whose outcomes are written down."""

    def __init__(self, found: Found) -> None:
        super().__init__(CELL, "", Path("out"), jobs=1)
        self.found = found
        self.asked: list[tuple[str, regime.Rates]] = []

    def _one(self, arm: str, rates: regime.Rates) -> Tried:
        self.asked.append((arm, rates))
        varied = rates.finetune if arm == FINE_TUNING else rates.further
        return self.found[arm, varied, replace(self.cell, rates=rates).finetune_steps]


def further(steps: int) -> Found:
    """Further pre-training is best at 1e-4."""
    accuracies = {"1e-5": 60.0, "1e-4": 62.0, "5e-4": 61.0}
    return {(FURTHER, rate, steps): Tried(value, 0.9) for rate, value in accuracies.items()}


def test_the_best_of_those_that_fitted_is_taken() -> None:
    tried = {"1e-4": Tried(70.0, 0.4), "3e-4": Tried(68.0, 0.04), "1e-3": Tried(67.0, 0.01)}
    trials = Written({(FINE_TUNING, rate, 400): each for rate, each in tried.items()} | further(400))
    assert regime_rates.choose(trials, regime_rates.OF_IMAGES) == ("1e-4", "3e-4", False)
    assert {arm for arm, _ in trials.asked} == {FINE_TUNING, FURTHER}
    assert all(rates.finetune == "3e-4" for arm, rates in trials.asked if arm == FURTHER)


@pytest.mark.parametrize(("last", "chosen"), [(0.04, "1e-3"), (0.06, "1e-4")])
def test_twice_the_steps_where_none_fitted_and_then_the_best_of_all(last: float, chosen: str) -> None:
    short = {(FINE_TUNING, rate, 400): Tried(70.0, 0.2) for rate in regime_rates.OF_IMAGES}
    long = {"1e-4": Tried(71.0, 0.1), "3e-4": Tried(70.0, 0.07), "1e-3": Tried(69.0, last)}
    trials = Written(short | {(FINE_TUNING, rate, 800): each for rate, each in long.items()} | further(800))
    rates = regime_rates.choose(trials, regime_rates.OF_IMAGES)
    assert rates == ("1e-4", chosen, True)
    command = replace(CELL, rates=rates).command("", Path("out"), jobs=1)
    assert "finetune.steps=800" in command and f"finetune.lr={chosen}" in command


def test_a_trial_is_the_cell_on_its_validation_rows_and_is_read_from_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def write(command: list[str]) -> None:
        ran.append(command)
        runs = [(FINE_TUNING, 0.6, 0.02), (FINE_TUNING, 0.7, 0.04), (FURTHER, 0.8, 0.06)]
        assert command[command.index("--out") + 1] == str(tmp_path)  # trials share what is alike
        pd.DataFrame(runs, columns=["arm", "accuracy", "train_loss"]).to_csv(tmp_path / "compare.csv", index=False)
        for name in ("compare", "compare-0a1b2c3d"):  # the table of the trial before, set aside
            (tmp_path / f"{name}.json").write_text('{"study": "compare"}')

    monkeypatch.setattr(regime_rates, "sdfast", write)
    trials = Trials(CELL, "", tmp_path, jobs=2)
    tried = trials.of(FINE_TUNING, [regime.Rates("1e-5", "3e-4")])
    ((rates, each),) = tried.items()
    assert rates == ("1e-5", "3e-4", False)
    assert each.accuracy == pytest.approx(65.0) and each.train_loss == pytest.approx(0.03)
    assert trials.of(FURTHER, [regime.Rates("1e-5", "3e-4")]) == {rates: Tried(pytest.approx(80.0), 0.06)}
    chosen = [command[command.index("--methods") + 1] for command in ran]
    assert chosen == [FINE_TUNING, f"{FINE_TUNING},{FURTHER}"]
    command = ran[0]
    assert command[command.index("--data") + 1] == CELL.validation and CELL.data not in command
    assert command[command.index("--chains") + 1] == "1" and command[command.index("--seeds") + 1] == "2"
    assert trials.rows[1] == [FINE_TUNING, "", "3e-4", "400", "65.0", "0.030"]
