"""`sdfast probe`: two simple classifiers on frozen features, and where the features of train come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdfast
from sdfast.cli.main import run as command
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE
from sdfast.errors import UserError
from sdfast.inference.probe import linear_probe


def test_every_stage_is_probed_and_the_bank_gives_what_it_has(
    images: tuple[Path, Path], capsys: Any, caplog: Any
) -> None:
    out, _ = images
    with caplog.at_level("INFO", "sdfast"):
        assert command(["probe", "--out", str(out)]) == 0
    assert "pretrain: the teacher's bank has the features of 36 rows of train" in caplog.text
    assert "without the stage init" in caplog.text  # the model that was given is gone
    assert "linear" in capsys.readouterr().out
    found = json.loads((out / "probe.json").read_text())
    assert list(found["stages"]) == ["raw", "pretrain", "distill", "finetune"]
    assert found["rows"] == {"train": 36, "test": 24}
    assert list(found["stages"]["raw"]) == ["linear"] and found["stages"].pop("raw")["linear"]["accuracy"] > 0.5
    for probes in found["stages"].values():
        assert probes["knn"]["accuracy"] > 0.5 and probes["linear"]["macro_f1"] > 0.5


def test_without_the_bank_it_is_the_same(images: tuple[Path, Path], tmp_path: Path) -> None:
    out, _ = images
    shutil.copytree(out, tmp_path / "out")
    with_bank = sdfast.Pipeline(out=out, config=out / "config.yaml").probe()
    shutil.rmtree(tmp_path / "out/teacher")
    without = sdfast.Pipeline(out=tmp_path / "out", config=out / "config.yaml").probe()
    assert without.stages["pretrain"]["linear"] == pytest.approx(with_bank.stages["pretrain"]["linear"], abs=1e-4)
    table = without.to_pandas()
    assert len(table) == 7 and table.stage[0] == "raw" and list(table.columns[:3]) == ["stage", "probe", "accuracy"]


def test_means_of_words_are_probed_too(texts: tuple[Path, Path]) -> None:
    out, _ = texts
    found = sdfast.Pipeline(out=out, config=out / "config.yaml").probe("mean")
    assert list(found.stages) == ["raw", "init", "pretrain", "distill", "finetune"]
    assert found.stages["finetune"]["linear"]["accuracy"] > 0.5


def test_data_without_labels_are_refused(tmp_path: Path, images: tuple[Path, Path]) -> None:
    given = images[0].parent / "given"
    data = shutil.copytree(images[1], tmp_path / "data")
    steps = ("pretrain.steps=1", "pretrain.batch_size=8")
    pipe = sdfast.Pipeline(given, data, tmp_path / "out", overrides=steps)
    pipe.pretrain()
    with pytest.raises(UserError, match="has no test split, and no labels"):
        pipe.probe()


def test_the_linear_probe_is_that_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    train, test = random.normal(size=(60, 5)) * [1, 5, 0.1, 1, 1], random.normal(size=(20, 5))
    scale = lambda rows: (rows - train.mean(axis=0)) / train.std(axis=0)  # noqa: E731
    labels = (train[:, 0] + train[:, 1] / 5 + random.normal(size=60) * 0.3 > 0).astype(np.int64) + (train[:, 3] > 1)
    tensors = torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(test)
    found = linear_probe(*tensors, SINGLE, 3).softmax(dim=1).numpy()
    wanted = linear.LogisticRegression(tol=1e-8, max_iter=1000).fit(scale(train), labels).predict_proba(scale(test))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    several = np.stack([labels == 0, labels == 1], axis=1).astype(np.uint8)
    found = linear_probe(tensors[0], torch.from_numpy(several), tensors[2], SEVERAL, 2).sigmoid().numpy()
    for place in range(2):
        one = linear.LogisticRegression(tol=1e-8, max_iter=1000).fit(scale(train), several[:, place])
        np.testing.assert_allclose(found[:, place], one.predict_proba(scale(test))[:, 1], atol=1e-4)
    numbers = (train @ [[3.0], [0.1], [0], [1], [2]] + 1000).astype(np.float32)
    found = linear_probe(tensors[0], torch.from_numpy(numbers), tensors[2], REGRESSION, 1).numpy()
    ridge = linear.Ridge(alpha=1.0).fit(scale(train), (numbers - numbers.mean()) / numbers.std())
    np.testing.assert_allclose(
        found[:, 0], ridge.predict(scale(test)).ravel() * numbers.std() + numbers.mean(), rtol=1e-4
    )
