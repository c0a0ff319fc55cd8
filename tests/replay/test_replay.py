"""A run whose loss stops being finite keeps its step, and `sdfast replay` names what was planted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from safetensors.torch import load_file
from text_fixtures import write_text_model, write_texts
from torch import Tensor

from sdfast import Pipeline
from sdfast.cli.main import run as command
from sdfast.engine.faults import FiniteSteps
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted, RunError, UserError
from sdfast.replay import run as replay_module
from sdfast.stages import train
from sdfast.store import checkpoint

NAN = float("nan")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return write_model(folder / "model"), write_images(folder / "images")


@pytest.fixture
def pipeline(sources: tuple[Path, Path], tmp_path: Path) -> Callable[..., Pipeline]:
    def make(*keys: str) -> Pipeline:
        return Pipeline(*sources, tmp_path / "run", overrides=[*FEW_STEPS, *keys])

    return make


def files(folder: Path) -> dict[str, bytes]:
    """All but logs and what is kept of the fault."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("log.txt", ".lock") and path.parent.name != "fault"
    }


def test_the_step_is_told_without_reading_from_the_device() -> None:
    FiniteSteps(torch.device("meta"), 3).see(torch.zeros((), device="meta"))
    finite = FiniteSteps(torch.device("cpu"), 3)
    for loss in (1.0, 2.0, NAN, 1.0):
        finite.see(torch.tensor(loss))
    assert finite.read() == 5


def test_a_learning_rate_that_is_too_high(
    pipeline: Callable[..., Pipeline], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, keys = tmp_path / "run", ("pretrain.lr=1e25", "engine.log_every=6")
    with pytest.raises(RunError) as first:
        pipeline(*keys).pretrain()
    assert "stopped being finite at step 2; lower pretrain.lr (now 1e+25)" in str(first.value)
    assert str(first.value).endswith(f"`sdfast replay --out {out}` runs that step again and names what is not finite.")
    kept = json.loads((out / "pretrain/fault/fault.json").read_text())
    assert (kept["stage"], kept["step"], kept["found_at"], kept["goes_on_from"]) == ("pretrain", 2, 6, 0)
    assert len(kept["rows"]) == 8 and all(name.endswith(".png") for name in kept["names"])
    assert kept["loss_when_found"]["loss"] == "nan" and kept["precision"] == "fp32" and kept["versions"]["torch"]
    pixels = load_file(out / "pretrain/fault/inputs.safetensors")["inputs"]
    assert pixels.shape == (8, 16, 16, 3) and pixels.dtype == torch.uint8
    before = files(out)
    capsys.readouterr()
    assert command(["replay", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "weights have exploded" in said and "pretrain.lr=0.001" in said and "gradient norms" in said
    assert files(out) == before
    found = json.loads((out / "pretrain/fault/replay.json").read_text())
    assert found["cause"] == "rate"
    weights = load_file(out / "pretrain/fault/weights.safetensors")
    assert all(value.isfinite().all() for value in weights.values()) and found["tensor"] in weights
    with pytest.raises(RunError) as again:
        pipeline(*keys).pretrain()
    assert str(again.value) == str(first.value)
    assert pipeline("pretrain.lr=1e-4").pretrain().steps == 6
    with pytest.raises(UserError, match=r"pretrain\.lr has changed since"):
        pipeline("pretrain.lr=1e-4").replay()


def test_a_weight_that_the_stage_starts_from(
    pipeline: Callable[..., Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_of = train.sources_of

    def unsound(*given: Any) -> Any:  # a file with such a weight is refused when it is read
        start, teacher = found_of(*given)
        with torch.no_grad():
            start.get_parameter("encoder.blocks.0.fc1.bias")[3] = NAN
        return start, teacher

    for module in (train, replay_module):
        monkeypatch.setattr(module, "sources_of", unsound)
    with pytest.raises(RunError, match="at step 1;"):
        pipeline().pretrain()
    _, found = pipeline().replay()
    assert (found.cause, found.tensor) == ("weights", "encoder.blocks.0.fc1.bias")
    assert "which pretrain starts from, is not finite" in found.sentence
    (tmp_path / "run/pretrain/fault/fault.json").write_text("{}")
    with pytest.raises(UserError, match=r"fault\.json cannot be used"):
        pipeline().replay()


def stopped(pipeline: Pipeline, step: int) -> None:
    """Interrupt pretrain after a step."""
    take = Trainer.step

    def taken(self: Trainer) -> dict[str, Tensor]:
        if self.steps_done == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return take(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", taken)
        with pytest.raises(Interrupted):
            pipeline.pretrain()


def test_a_weight_of_a_checkpoint(pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    stopped(pipeline("engine.checkpoint_steps=2"), 4)
    folder, name = tmp_path / "run/pretrain/checkpoints", "encoder.blocks.1.fc1.weight"
    opened = checkpoint.Checkpoint.open(folder / "step-00000004")
    state: dict[str, Any] = {each: opened.read(each).clone() for each in opened.names}
    state[f"module/{name}"][3, 5] = NAN
    inputs = checkpoint.inputs_of(folder)
    assert inputs is not None
    values = {key: value for key, value in opened.values.items() if value is not None}
    checkpoint.save(folder, 4, inputs, ((each, lambda each=each: state[each]) for each in state), values, 2)
    with pytest.raises(RunError, match="at step 5"):
        pipeline("engine.checkpoint_steps=2").pretrain()
    _, found = pipeline("engine.checkpoint_steps=2").replay()
    assert (found.cause, found.tensor) == ("checkpoint", name)
    assert "losses on the way, to the last bit those of metrics.jsonl: 1" in found.tried
    assert found.remedies == [f"rm -r {folder / 'step-00000004'}", "run the same command again"]
    assert "1 of 2048 not finite" in found.sentence


def test_what_does_not_come_again(
    pipeline: Callable[..., Pipeline], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="no fault is kept"):
        pipeline().replay()
    take = Trainer.step

    def poisoned(self: Trainer) -> dict[str, Tensor]:
        if self.steps_done == 2:
            with torch.no_grad():
                self.objective.module.get_parameter("encoder.norm.weight").fill_(NAN)
        return take(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", poisoned)
        with pytest.raises(RunError, match="at step 3"):
            pipeline().pretrain()
    assert command(["replay", "--out", str(tmp_path / "run"), "--stage", "pretrain"]) == 1
    assert "The step is finite now: the fault is not reproduced." in capsys.readouterr().out
    assert command(["replay", "--out", str(tmp_path / "run"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["cause"] is None
    assert command(["replay", "--out", str(tmp_path / "run"), "--stage", "pretrian"]) == 2
    assert "did you mean 'pretrain'" in capsys.readouterr().err


def test_a_row_of_the_bank(
    pipeline: Callable[..., Pipeline],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened = train.bank_targets

    def damaged(*given: Any) -> Any:
        teacher = opened(*given)
        teacher.features[5, 2] = NAN  # type: ignore[attr-defined]
        return teacher

    monkeypatch.setattr(train, "bank_targets", damaged)
    with pytest.raises(RunError, match=r"the loss of distill stopped being finite at step [123];"):
        pipeline("engine.log_every=1").distill()
    kept = json.loads((tmp_path / "run/distill/fault/fault.json").read_text())
    assert command(["replay", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert kept["names"][kept["rows"].index(5)] in said and "the teacher bank's features" in said.lower()
    assert f"sdfast cache verify --out {tmp_path / 'run'}" in said


def test_a_learning_rate_of_texts_in_a_stage_of_its_own(tmp_path: Path) -> None:
    model, texts = write_text_model(tmp_path / "model"), write_texts(tmp_path / "texts")
    keys = [*FEW_STEPS, "finetune.lr=1e22", "engine.log_every=1"]
    pipeline = Pipeline(model, texts, tmp_path / "run", overrides=keys)
    with pytest.raises(RunError, match="the loss of finetune stopped being finite"):
        pipeline.finetune(start="init", seed=7, name="finetune-7")
    assert set(load_file(tmp_path / "run/finetune-7/fault/inputs.safetensors")) == {"ids", "lengths"}
    fault, found = Pipeline(model, texts, tmp_path / "run", overrides=keys).replay()
    assert fault["stage"] == "finetune" and found.cause == "rate"
    assert any(remedy.endswith("finetune.lr=0.001") for remedy in found.remedies)
    assert any("largest weight" in each for each in found.tried)
