"""How a study ends: the best arm, whether it is told apart, what would tell, and what no model gives."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_fixtures import write_images, write_model
from scipy import integrate, stats
from study_samples import Metrics, made_up

from sdfast.cli.main import run
from sdfast.report.page import render
from sdfast.studies import raw
from sdfast.studies.declared import STUDIES, Arm, study_named
from sdfast.studies.raw import RawScore
from sdfast.studies.report import page_of
from sdfast.studies.results import Found
from sdfast.studies.settle import conclusions, settled
from sdfast.studies.statistics import deviation_range, pairs_needed, power, smallest_shown
from sdfast.studies.tables import markdown, record
from sdfast.studies.units import Chain
from sdfast.studies.verdict import begun, verdicts

PIXELS = "logistic regression on the raw pixels"


def stored(*found: Found, protocol: str = "paper", **more: Any) -> dict[str, Any]:
    """As the JSON file has it, read again."""
    about = {"protocol": protocol, "jobs": 1, "seeds": [0], "command": "sdfast study x", "versions": {}, "config": []}
    values = json.loads(json.dumps(record(found[0].study, found, device="cpu", **about, **more)))
    return dict(values)


def scores(values: dict[str, list[float]]) -> Callable[[Arm, int], Metrics]:
    """Accuracies of arms by seed, in percent; of others 50 with their own noise."""

    def metrics(arm: Arm, seed: int) -> Metrics:
        noise = float(np.random.default_rng([sum(arm.title.encode()), seed]).normal())
        return {"accuracy": (values[arm.title][seed] if arm.title in values else 50 + noise) / 100, "test_loss": 1.0}

    return metrics


# G*Power 3.1's for a paired two-sided t-test, as in many textbooks (the first three at Cohen's small, medium and large)
@pytest.mark.parametrize(
    ("effect", "level", "pairs"), [(0.2, 0.05, 199), (0.5, 0.05, 34), (0.8, 0.05, 15), (1.0, 0.05, 10)]
)
def test_pairs_that_are_needed_are_the_published_ones(effect: float, level: float, pairs: int) -> None:
    assert pairs_needed(effect, level) == pairs == pairs_needed(-effect, level)


@pytest.mark.filterwarnings("error")
def test_a_difference_far_above_its_noise_needs_two_pairs() -> None:
    assert [pairs_needed(effect, 0.05) for effect in (100.0, 1e4, 1e6)] == [2, 2, 2]


@pytest.mark.parametrize("overlap", [0.0, 0.25])
@pytest.mark.parametrize(
    ("effect", "count", "level"), [(0.5, 34, 0.05), (2.0, 5, 0.05 / 8), (1.0, 2, 0.05), (0, 4, 0.1)]
)
def test_power_is_the_probability_of_a_large_t(effect: float, count: int, level: float, overlap: float) -> None:
    shift, critical = effect / np.sqrt(1 / count + overlap), stats.t.isf(level / 2, count - 1)

    def at(spread: float) -> float:  # what is shown where the deviation comes out so much larger than it is
        shown = stats.norm.sf(critical * spread - shift) + stats.norm.cdf(-critical * spread - shift)
        return float(shown * stats.chi.pdf(spread * np.sqrt(count - 1), count - 1) * np.sqrt(count - 1))

    assert power(effect, count, level, overlap) == pytest.approx(integrate.quad(at, 0, 8)[0], abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_the_smallest_difference_that_is_shown_needs_as_many_pairs(count: int) -> None:
    least = smallest_shown(count, 0.05 / 8)
    assert power(least, count, 0.05 / 8) == pytest.approx(0.8)
    assert pairs_needed(least * 1.001, 0.05 / 8) == count
    assert (pairs_needed(least * 0.999, 0.05 / 8) or 0) > count


def test_folds_come_in_whole_divisions_and_more_of_them_may_never_do() -> None:
    needed = pairs_needed(2.0, 0.05, overlap=1 / 4, step=5)
    assert needed == 10 and power(2.0, 10, 0.05, 1 / 4) >= 0.8 > power(2.0, 5, 0.05, 1 / 4)
    assert pairs_needed(1.2, 0.05, overlap=1 / 4, step=5) is None  # 1.2 / sqrt(1 / 4) is below 2.8
    assert pairs_needed(1e-9, 0.05) is None


def test_the_deviation_of_three_is_hardly_known() -> None:
    assert deviation_range(3) == (pytest.approx(0.521, abs=1e-3), pytest.approx(6.285, abs=1e-3))


def test_a_null_result_reads_as_one_and_says_what_would_settle_it() -> None:
    seeds = range(5)
    noise = np.array([0.4, -0.5, 0.1, 0.6, -0.6])
    found = made_up(STUDIES["compare"], seeds, scores({"fine-tuning": [60.0] * 5, "MARS": [*(60.5 + noise)]}))
    values = stored(found)
    (said,) = settled(values)
    assert "MARS has the best mean, 60.5 %, not told apart from the runner-up, fine-tuning (+0.5 points, p = 0." in said
    shown = [each for each in values["data"][0]["paired"]["accuracy"].values() if each["p_holm"] < 0.05]
    deviation, level = noise.std(ddof=1), 0.05 / (8 - len(shown))  # arms around 50 are shown to lose
    needed = [pairs_needed(difference / deviation, level) for difference in (0.5, 1.0)]
    least = smallest_shown(5, level) * deviation
    assert (
        f"To tell MARS from fine-tuning with 80 % power would take {needed[0]} seeds if the difference is the one seen,"
        f" {needed[1]} if it is one point; these 5 could have shown {least:.1f} points (paired t-test at {level:.2g};"
        f" deviation of the differences {deviation:.1f} points)."
    ) in said
    assert said.endswith("--chains would count that of pre-training, and of other rows, too.")
    assert "--protocol full" not in settled(stored(found, protocol="full"))[0]
    assert said in render(page_of(Path("nowhere"), stored(found))).replace("&#39;", "'")


def test_a_difference_that_is_shown_is_told_apart_and_the_runner_up_may_not_be() -> None:
    sure = [60.0, 60.1, 60.2, 60.3]
    arms = {
        "fine-tuning": sure,
        "self-distillation": [70.1, 70.0, 70.4, 70.2],
        "further pre-training": [70.0, 70.1, 70.1, 70.2],
    }
    (said,) = settled(stored(made_up(STUDIES["compare"], range(4), scores(arms))))
    assert "told apart from fine-tuning (+10.0 points, p = " in said
    assert ", but not from the runner-up, further pre-training (+0.1 points, p = " in said
    assert "To tell self-distillation from further pre-training" in said
    assert "hardly tell" not in said  # four pairs


def test_where_all_is_told_the_least_that_could_have_been_is_said() -> None:
    arms = {"fine-tuning": [60.0, 60.1, 60.2, 60.3], "self-distillation": [70.1, 70.0, 70.4, 70.2]}
    study = STUDIES["table1"]
    methods = tuple(arm for arm in study.arms if arm.title in arms)
    found = made_up(study.__class__(**{**vars(study), "arms": methods}), range(4), scores(arms))
    (said,) = settled(stored(found))
    assert "told apart from the runner-up, fine-tuning (+10.0 points, p = " in said
    assert "The least that these 4 seeds could have shown with 80 % power is " in said


def test_fine_tuning_may_be_the_best_and_three_pairs_are_few() -> None:
    arms = {"fine-tuning": [60.0, 61.0, 62.0], "R3F": [59.0, 61.5, 60.5]}
    (said,) = settled(stored(made_up(STUDIES["compare"], range(3), scores(arms))))
    assert said.startswith("Fine-tuning has the best mean, 61.0 %, not told apart from the runner-up, R3F (+0.7 points")
    assert "which 3 pairs hardly tell: it may be 0.5 to 6 times that" in said


@pytest.mark.parametrize(("study", "seeds"), [("compare", 1), ("table4", 3), ("figure1", 3), ("cost", 1)])
def test_where_nothing_can_be_said_nothing_is(study: str, seeds: int) -> None:
    values = stored(made_up(study_named(study), range(seeds)))
    assert settled(values) == [""] and conclusions(values) == verdicts(values)


def test_an_arm_that_gave_the_very_weights_of_the_best_is_no_runner_up() -> None:
    found = made_up(
        STUDIES["compare"], range(4), scores({name: [70.0, 71.0, 69.0, 70.0] for name in ("fine-tuning", "MARS")})
    )
    values = stored(found)
    runs = {arm["title"]: arm["runs"] for arm in values["data"][0]["arms"]}
    for own, same in zip(runs["MARS"], runs["fine-tuning"], strict=True):
        own["weights"] = same["weights"]
    (said,) = settled(values)
    assert said.startswith("Fine-tuning has the best mean, 70.0 %, told apart from the runner-up, ")
    assert "MARS" not in said


def test_folds_are_called_folds_and_their_overlap_counts() -> None:
    values = stored(made_up(STUDIES["compare"], range(5)), folds=5)
    (said,) = settled(values)
    assert re.search(r"(these|would take) [\d,more than ]+ folds", said) and "seeds" not in said
    assert "--protocol full" not in said


def test_each_size_has_its_best_arm() -> None:
    def metrics(arm: Arm, seed: int) -> Metrics:
        ahead = {"fine-tuning": 2.0 * (arm.x == 20), "self-distillation": 1.0}.get(arm.series or "", 0.0)
        noise = 0.3 * float(np.random.default_rng([sum(arm.title.encode()), seed]).normal())
        return {"accuracy": (60 + ahead + noise) / 100}

    (said,) = settled(stored(made_up(STUDIES["labels"], range(4), metrics, points=(20, 50, 100))))
    assert said.startswith("Best mean: fine-tuning at n = 20, self-distillation at n = 50 and 100; told apart from")
    assert re.search(r"At n = \d+, to tell |At n = \d+, the least that these 4 seeds", said)


def test_data_sets_are_named() -> None:
    found = [made_up(STUDIES["compare"], range(3), title=title) for title in ("birds", "flowers")]
    values = stored(*found)
    assert [each.partition(": ")[0] for each in conclusions(values)] == ["birds", "flowers"]
    assert "birds: " in render(page_of(Path("nowhere"), values))


def score_at(x: float | None, accuracy: float, *limits: str) -> RawScore:
    return RawScore(x, PIXELS, {"accuracy": accuracy}, {"train": 9, "test": 9}, limits, f"{x}{accuracy}")


def test_a_raw_baseline_above_every_arm_is_said_first() -> None:
    found = made_up(STUDIES["compare"], range(3))
    found.target.raw = [score_at(None, 0.787)]
    said = conclusions(stored(found))[0]
    assert said.startswith(
        "Logistic regression on the raw pixels of the same rows is above every arm (78.7 % against 6"
    )
    assert "as it is trained here, the model is worth less than none." in said
    assert "Logistic regression on the raw pixels of the same rows: accuracy 78.7 %.\n" in markdown(
        STUDIES["compare"], [found], "paper"
    )
    found.target.raw = [score_at(None, 0.5)]
    assert conclusions(stored(found))[0].startswith("No method") or "gains" in conclusions(stored(found))[0][:40]


def test_what_not_all_arms_have_is_compared_on_what_they_share() -> None:
    """Seeds here, and chains elsewhere: MARS ran only where all score low, and is the best of those that ran there."""
    low, high = [50.0, 50.2, 50.1, 50.3], [60.0, 60.2, 60.1, 60.3]
    values = {"fine-tuning": low + high, "MARS": [54.0, 54.3, 54.2, 54.4, *high]}
    found = made_up(STUDIES["compare"], range(8), scores(values))
    found.runs["MARS"] = found.runs["MARS"][:4]
    said = conclusions(stored(found))[0]
    assert "MARS gains +4.1 points [95 %: +4.0, +4.2] on fine-tuning in accuracy, over 4 to 8 seeds." in said
    assert "MARS has the best mean over the 4 seeds that all have, 54.2 %, told apart from" in said
    tiles = dict(page_of(Path("nowhere"), stored(found)).tiles)
    assert tiles["highest accuracy: MARS"] == "54.2 %"


@pytest.mark.parametrize(("raw_scores", "mars", "above"), [((0.6, 0.9), 85.0, True), ((0.9, 0.6), 70.0, False)])
def test_a_raw_baseline_stands_beside_an_arm_on_the_rows_of_its_chains(
    raw_scores: tuple[float, float], mars: float, above: bool
) -> None:
    """MARS ran in chain 1 alone; the baseline's mean over both chains, 0.75, says nothing of it."""
    accuracies = {arm.title: [50.0, mars if arm.title == "MARS" else 50.0] for arm in STUDIES["compare"].arms}
    found = made_up(STUDIES["compare"], range(2), scores(accuracies))
    for title, runs in found.runs.items():
        found.runs[title] = [replace(run, unit=Chain(run.seed)) for run in runs][title == "MARS" :]
    found.target.raw = [replace(score_at(None, score), units=[{"chain": n}]) for n, score in enumerate(raw_scores)]
    said = verdicts(stored(found, protocol="full", chains=2))[0]
    assert said.startswith("Logistic regression on the raw pixels of the same rows is above every arm (90.0 %") == above


def test_sizes_have_a_raw_baseline_each_and_samples_are_averaged() -> None:
    found = made_up(STUDIES["labels"], range(3), points=(20, 50, 100))
    some = "taught by 5,000 of 6,000 rows"
    found.target.raw = [score_at(20, 0.9), score_at(50, 0.3), score_at(50, 0.5), score_at(100, 0.99, some)]
    values = stored(found)
    assert "above every arm at n = 20 and 100 (90.0 % against " in verdicts(values)[0]
    line = f"accuracy 90.0 % at n = 20, 40.0 % at n = 50 (mean of 2 samples of rows), 99.0 % at n = 100. It is {some}"
    assert any(f"{line} at n = 100." in note for note in values["data"][0]["notes"])
    assert [each["x"] for each in values["data"][0]["raw"]] == [20, 50, 50, 100]


def test_lengths_have_one_raw_baseline_as_their_rows_are_the_same() -> None:
    found = made_up(STUDIES["lengths"], range(3), points=(250, 500))
    best = max(arm["summary"]["accuracy"]["mean"] for arm in stored(found)["data"][0]["arms"]) / 100
    for score, above in ((best + 0.01, True), (best - 0.01, False)):
        found.target.raw = [score_at(None, score)]
        values = stored(found)
        assert verdicts(values)[0].startswith("Logistic regression on the raw pixels of the same rows") == above
        line = f"Logistic regression on the raw pixels of the same rows: accuracy {100 * score:.1f} %."
        assert line in values["data"][0]["notes"]


def test_a_study_ends_with_its_verdict_and_scores_each_sample_of_rows_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    command = ["study", "labels", "--model", str(write_model(tmp_path / "model")), "--out", str(out), "--seeds", "2"]
    command += ["--data", str(write_images(tmp_path / "images", side=16)), "--points", "4,12"]
    keys = (f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("steps=2", "batch_size=4"))
    command += [*keys, "engine.threads=1"]
    assert run(command) == 0
    printed, text = capsys.readouterr().out, (out / "labels.md").read_text()
    assert printed.startswith(text)
    found = json.loads((out / "labels.json").read_text())
    assert text.endswith(f"{found['verdict'][0]}\n") and found["verdict"] == conclusions(found)
    assert "Logistic regression on the raw pixels of the same rows: accuracy " in text
    scored = found["data"][0]["raw"]
    assert [(each["x"], each["rows"]["train"]) for each in scored] == [(4, 4), (12, 12)]
    assert [each["units"] for each in scored] == [[], []]
    kept = {path.stem: json.loads(path.read_text())["metrics"] for path in (out / raw.FOLDER).iterdir()}
    assert kept == {each["fingerprint"][:12]: each["metrics"] for each in scored}

    def never(*_: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(raw, "raw_metrics", never)
    assert run(command) == 0 and (out / "labels.md").read_text() == text
    damaged = next((out / raw.FOLDER).iterdir())
    damaged.write_text("[]")
    monkeypatch.undo()
    assert run(command) == 0 and (out / "labels.md").read_text() == text


@pytest.mark.parametrize(
    ("name", "at_the_beginning"),
    [("fine-tuning", "Fine-tuning"), ("kNN", "kNN"), ("LoRA", "LoRA"), ("words by TF-IDF", "Words by TF-IDF")],
)
def test_a_sentence_begins_with_a_capital_where_the_name_has_none(name: str, at_the_beginning: str) -> None:
    assert begun(name) == at_the_beginning
