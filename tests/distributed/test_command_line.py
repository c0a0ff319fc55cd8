"""`sdfast train` as several processes: a new user's commands, processes that die, launchers, and no DeepSpeed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import child_environment, command, finished, killed_in_distill
from pipeline_fixtures import write_images, write_model
from safetensors.torch import load_file

import sdfast
from sdfast.cli.main import run

STEPS = 60


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    model, images = write_model(folder / "model"), write_images(folder / "images")
    steps = [f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in (f"steps={STEPS}",)]
    batches = [f"{stage}.batch_size=8" for stage in ("pretrain", "distill", "finetune")]
    return ["--model", str(model), "--data", str(images), *steps, *batches, "finetune.dropout=0"]


@pytest.fixture(scope="module")
def whole(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes train when nothing happens."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    out = tmp_path_factory.mktemp("whole") / "run"
    done = finished(command(2, out, inputs))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("run directory") == 1 and done.stdout.count("test_loss") == 1  # one process talks
    return out


def far(one: Path, other: Path, stage: str) -> float:
    """Largest difference of two models' weights, as a share of the largest weight; the keys' biases, which have no
    gradient but rounding, apart."""
    weights, others = (load_file(path / stage / "model" / "model.safetensors") for path in (one, other))
    names = [name for name in weights if not name.endswith("key.bias")]
    return max(float((weights[n] - others[n]).abs().max()) for n in names) / max(
        float(weights[n].abs().max()) for n in names
    )


def test_one_process_ends_where_two_do(whole: Path, inputs: list[str], tmp_path: Path) -> None:
    assert run(["train", "--out", str(tmp_path / "one"), *inputs]) == 0
    assert far(whole, tmp_path / "one", "finetune") < 1e-4
    metrics = [json.loads((out / "finetune" / "result.json").read_text()) for out in (whole, tmp_path / "one")]
    assert metrics[0]["metrics"] == pytest.approx(metrics[1]["metrics"], abs=1e-4)


def test_tiles_are_trained_and_vote_in_two_processes_as_in_one(inputs: list[str], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    steps = [f"{stage}.steps=12" for stage in ("pretrain", "distill", "finetune")]
    arguments = [*inputs, *steps, "data.tile=12", "data.resize=crop"]  # four tiles of each picture
    done = finished(command(2, tmp_path / "two", arguments))
    assert done.returncode == 0, done.stderr
    assert run(["train", "--out", str(tmp_path / "one"), *arguments]) == 0
    assert far(tmp_path / "two", tmp_path / "one", "finetune") < 1e-4
    results = [json.loads((tmp_path / out / "finetune" / "result.json").read_text()) for out in ("two", "one")]
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=1e-4)
    assert [sum(map(sum, result["confusion_matrix"]["test"])) for result in results] == [12, 12]


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_dies_and_the_run_goes_on_in_two_and_in_one(
    killed: int, whole: Path, inputs: list[str], tmp_path: Path
) -> None:
    arguments = [*inputs, "engine.checkpoint_steps=5", "engine.log_every=1"]
    step = random.Random(killed).randrange(5, STEPS - 15)
    said = killed_in_distill(command(2, tmp_path / "run", arguments), tmp_path / "run", killed, step)
    assert said.count("sdfast: another process of this job died") == 1 and said.count("the same command continues") == 1
    again = finished(command(2 if killed else 1, tmp_path / "run", arguments, zero=2 if killed else 0))
    assert again.returncode == 0, again.stderr
    assert "distill: resuming at step" in again.stderr
    if killed:  # as many processes: the same bits
        weights, others = (load_file(out / "finetune/model/model.safetensors") for out in (whole, tmp_path / "run"))
        assert all(torch.equal(value, others[name]) for name, value in weights.items())
    else:
        assert far(whole, tmp_path / "run", "distill") < 1e-4


def test_srun_is_a_launcher(inputs: list[str], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
    words = command(1, tmp_path / "run", ["--stage", "pretrain", *inputs], zero=1)
    tasks = [
        subprocess.Popen(
            words,
            env=child_environment(**step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (task.communicate(timeout=120)[0] for task in tasks)
    assert [task.returncode for task in tasks] == [0, 0], first + second
    assert "pretrain 60/60" in first and second == ""


def test_bad_input_is_said_once(inputs: list[str], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    done = finished(command(2, tmp_path / "run", ["--data", str(tmp_path / "absent")]))
    assert done.returncode != 0
    assert done.stderr.count("sdfast: ") == 1 and "absent" in done.stderr
    assert f"{Path(sdfast.__file__).parent}/" not in done.stderr  # torchrun's own traceback names none of our files


def test_zero_without_deepspeed_is_one_sentence(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert run(["train", "--zero", "2", "--out", str(tmp_path / "run"), *inputs]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "pip install" in said[0] and "--zero 0" in said[0]
    assert run(["train", "--stage", "pretrain", "--out", str(tmp_path / "run"), *inputs]) == 0


def test_zero_in_one_process(inputs: list[str], tmp_path: Path, whole: Path) -> None:
    words = ["train", "--zero", "2", "--out", str(tmp_path / "run"), *inputs]
    assert run([*words, "--stage", "pretrain"]) == 0
    assert run([*words, "--stage", "distill"]) == 0  # a second command of the same process
    assert far(whole, tmp_path / "run", "distill") < 1e-4
