"""`study compare --folds`: what is tested where, and the numbers of the table by numpy and scipy."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pipeline_fixtures import write_model
from scipy import stats

from sdfast.cli.main import run
from sdfast.studies.statistics import interval, paired

STEPS = [f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("steps=2", "batch_size=8")]
ARMS = "fine-tuning,further-pre-training"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Scans of twelve patients, without a test split."""
    root = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    for patient in range(12):
        for number in range(1 + patient % 3):
            folder = root / "scans" / "ab"[(patient + number) % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"patient{patient}_{number}.png")
    return ["--model", str(write_model(root / "model")), "--data", str(root / "scans")]


def study(inputs: list[str], out: Path, *more: str) -> int:
    keys = [*STEPS, "engine.threads=1", r"data.group=(patient\d+)_"]
    return run(["study", "compare", *inputs, "--out", str(out), "--methods", ARMS, *keys, *more])


@pytest.fixture(scope="module")
def repeated(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("repeated")
    assert study(inputs, out, "--folds", "3", "--repeats", "2") == 0
    return out


def patients(names: list[str]) -> set[str]:
    return {Path(name).name.split("_")[0] for name in names}


def test_every_row_is_tested_once_in_each_division_and_no_patient_is_on_both_sides(repeated: Path) -> None:
    tested: dict[int, list[str]] = {}
    for pack in (repeated / "packs").iterdir():
        rule = json.loads((pack / "manifest.json").read_text())["split_rule"]
        test, train = (json.loads((pack / f"{split}-names.json").read_text()) for split in ("test", "train"))
        assert len(test) + len(train) == 24 and not patients(test) & patients(train)
        tested.setdefault(rule["split_seed"], []).extend(test)
    assert set(tested) == {42, 43}
    assert all(set(Counter(names).values()) == {1} and len(names) == 24 for names in tested.values())


def test_further_pre_training_is_each_folds_own(repeated: Path) -> None:
    record = json.loads((repeated / "compare.json").read_text())
    assert Counter(stage["stage"] for stage in record["data"][0]["stages"]) == {"pretrain": 6}
    assert record["folds"] == 3 and record["seeds"] == [0]


def test_the_table_is_over_folds_and_paired_by_fold(repeated: Path) -> None:
    runs = pd.read_csv(repeated / "compare.csv")
    assert (
        runs.groupby("arm")[["split_seed", "fold"]]
        .apply(lambda each: set(map(tuple, each.to_numpy())))
        .map(lambda places: places == {(seed, fold) for seed in (42, 43) for fold in range(3)})
        .all()
    )
    table = runs.pivot(index=["split_seed", "fold"], columns="arm", values="accuracy") * 100
    text = (repeated / "compare.md").read_text()
    for arm in table:
        assert f"{table[arm].mean():.1f} ± {table[arm].std():.1f}" in text
    record = json.loads((repeated / "compare.json").read_text())["data"][0]
    for column, scale in (("accuracy", 100), ("test_loss", 1)):
        wide = runs.pivot(index=["split_seed", "fold"], columns="arm", values=column) * scale
        difference = wide["further pre-training"] - wide["fine-tuning"]
        found = record["paired"][column]["further pre-training"]
        assert found["count"] == 6 and found["mean"] == pytest.approx(difference.mean())
        error = difference.std() * np.sqrt(1 / 6 + 1 / 2)  # 8 test rows for 16 of train
        if found["p"] is not None:
            assert found["p"] == pytest.approx(2 * stats.t.sf(abs(difference.mean() / error), 5))
            half = stats.t.ppf(0.975, 5) * error
            assert found["high"] - found["low"] == pytest.approx(2 * half)
    assert "over 6 folds: each of 3 is tested once in each of 2 divisions (data.split_seed=42 to 43)." in text
    assert "paired by fold" in text


def test_fewer_repeats_leave_the_table_and_more_seeds_are_averaged(repeated: Path, inputs: list[str]) -> None:
    before = (repeated / "compare.md").read_text()
    assert study(inputs, repeated, "--folds", "3") == 0
    assert (repeated / "compare.md").read_text() == before
    assert study(inputs, repeated, "--folds", "3", "--repeats", "2", "--seeds", "2") == 0
    text = (repeated / "compare.md").read_text()
    assert "over 6 folds" in text and "(data.split_seed=42 to 43), as the mean of 2 seeds." in text
    runs = pd.read_csv(repeated / "compare.csv")
    assert len(runs) == 2 * 6 * 2
    for arm, each in runs.groupby("arm"):
        means = 100 * each.groupby(["split_seed", "fold"])["accuracy"].mean()
        assert f"| {arm}".ljust(8) in text and f"{means.mean():.1f} ± {means.std():.1f}" in text


def test_options_that_say_nothing(inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study", "compare", *inputs, "--out", str(tmp_path / "a"), "--repeats", "2"]) == 2
    assert "give --folds too" in capsys.readouterr().err
    assert run(["study", "table1", *inputs, "--out", str(tmp_path / "b"), "--folds", "3"]) == 2
    assert "--folds is of study compare" in capsys.readouterr().err
    assert study(inputs, tmp_path / "c", "--folds", "20") == 2
    assert "too few groups of images with a label for data.folds=20; they fill 12" in capsys.readouterr().err


def test_overlap_widens_the_interval_by_hand() -> None:
    values = [1.0, 2.0, 4.0, 3.0]
    low, high = interval(values, 1 / 3) or (0.0, 0.0)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 3) * np.std(values, ddof=1) * np.sqrt(1 / 4 + 1 / 3))
    both = paired({(42, n): value for n, value in enumerate(values)}, {(42, n): 0.0 for n in range(4)}, 1 / 3)
    plain = paired(dict(enumerate(values)), dict.fromkeys(range(4), 0.0))
    assert both is not None and plain is not None and both.p is not None and plain.p is not None
    assert plain.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue) and both.p > plain.p
