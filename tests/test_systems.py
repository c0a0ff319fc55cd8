"""Without what Linux alone has, as on Windows and macOS, every module imports and a run is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_fixtures import write_images, write_model

PRETEND = Path(__file__).with_name("pretend_system.py")


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_imports_and_a_run_is_trained(system: str, tmp_path: Path) -> None:
    data, model, out = write_images(tmp_path / "data"), write_model(tmp_path / "model"), tmp_path / "run"
    few = ["pretrain.steps=2", "distill.steps=2", "pretrain.batch_size=8", "distill.batch_size=8"]
    where = ["--model", str(model), "--data", str(data), "--out", str(out), "--device", "cpu"]
    stage = "distill" if system == "win32" else "pretrain"
    done = subprocess.run(
        [sys.executable, str(PRETEND), system, "train", "--stage", stage, *where, *few],
        env={**os.environ, "OMP_NUM_THREADS": "2"},  # several threads, which might wait as Linux alone can tell
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((out / stage / "result.json").read_text())["steps"] == 2
