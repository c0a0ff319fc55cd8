"""A fold of grouped rows, trained by two processes: the rows, and the model, are those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from launching import command, finished
from PIL import Image
from pipeline_fixtures import FEW_STEPS, write_model

from sdfast.cli.main import run


def test_two_processes_train_on_the_rows_of_one(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    random = np.random.default_rng(0)
    for patient in range(10):
        for number in range(3):
            folder = tmp_path / "scans" / "ab"[(patient + number) % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"patient{patient}_{number}.png")
    keys = [*FEW_STEPS, "finetune.dropout=0", r"data.group=(patient\d+)_", "data.folds=3", "data.fold=1"]
    given = ["--model", str(write_model(tmp_path / "model")), "--data", str(tmp_path / "scans"), *keys]
    done = finished(command(2, tmp_path / "two", given))
    assert done.returncode == 0, done.stderr
    assert run(["train", "--out", str(tmp_path / "one"), *given]) == 0
    names, metrics = [], []
    for out in (tmp_path / "two", tmp_path / "one"):
        names.append([json.loads((out / "pack" / f"{split}-names.json").read_text()) for split in ("train", "test")])
        metrics.append(json.loads((out / "finetune" / "result.json").read_text())["metrics"])
    assert names[0] == names[1]
    train, test = ({Path(name).name.split("_")[0] for name in split} for split in names[0])
    assert not train & test and len(train | test) == 10
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)
