"""A model of images without a decoder: its new one is trained first, and the encoder stays as it is meanwhile."""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from pipeline_fixtures import FEW_STEPS, SHAPE, write_images, write_model
from safetensors.torch import load_file
from test_dino_pipeline import SHAPES

import sdfast
from sdfast import launch
from sdfast.data.order import Batch
from sdfast.durable import read_json, sha256_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted
from sdfast.modalities.images.checkpoint import fresh_mae, load_mae, save_encoder
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.objectives.choose import masked_objective
from sdfast.report.records import StageRecord, read_run
from sdfast.stages.graph import Stage, finetuning
from sdfast.stages.inputs import inputs_of

KINDS = {"vit": SHAPE, "dinov2": SHAPES["registers"]}
KEYS = (*FEW_STEPS, "pretrain.head_steps=4")
Run = Callable[..., sdfast.Pipeline]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder of each kind, and images."""
    root = tmp_path_factory.mktemp("inputs")
    for kind, shape in KINDS.items():
        save_encoder(fresh_mae(shape, 1), root / kind, ImageProcessor(16, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    return {**{kind: root / kind for kind in KINDS}, "data": write_images(root / "images")}


@pytest.fixture
def pipeline(inputs: dict[str, Path], tmp_path: Path) -> Run:
    """Makes a run of a kind, in a folder of its own or a given one."""

    def make(kind: str, *overrides: str, out: str = "run") -> sdfast.Pipeline:
        keys = [*KEYS, *overrides]
        return sdfast.Pipeline(inputs[kind], inputs["data"], tmp_path / out, device="cpu", overrides=keys)

    return make


def result(run: sdfast.Pipeline, stage: str) -> dict[str, Any]:
    found = read_json(run.out / stage / "result.json")
    assert isinstance(found, dict)
    return found


def losses(run: sdfast.Pipeline, stage: str) -> list[float]:
    lines = (run.out / stage / "metrics.jsonl").read_text().splitlines()
    return [row["loss_mae"] for row in map(json.loads, lines) if "loss_mae" in row]


def head_of(run: sdfast.Pipeline) -> StageRecord:
    """As the report knows it."""
    read = read_run(run.out)
    assert read is not None
    return next(each for each in read.stages if each.kind == "head")


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_is_trained_and_the_encoder_is_as_given(kind: str, inputs: dict[str, Path], pipeline: Run) -> None:
    keys = ("pretrain.head_steps=80", "pretrain.lr=3e-3", "pretrain.norm_pix=false", "engine.log_every=1")
    run = pipeline(kind, *keys)
    given = {name: tensor.clone() for name, tensor in run.initial.module.state_dict().items()}
    run.pretrain()
    trained = load_mae(str(run.out / "head/model"))
    assert not trained.fresh_decoder
    for name, tensor in trained.module.state_dict().items():
        fixed = name.startswith("encoder.") or name == "decoder.position_embeddings"
        assert torch.equal(tensor, given[name]) == fixed, name
    mine, theirs = (load_file(at / "model.safetensors") for at in (inputs[kind], run.out / "head/model/encoder"))
    assert mine.keys() == theirs.keys() and all(torch.equal(theirs[name], tensor) for name, tensor in mine.items())
    found = losses(run, "head")
    assert len(found) == 80 and fmean(found[-10:]) < 0.9 * fmean(found[:10])
    assert result(run, "head")["metrics"]["distance"] == 0


def test_nothing_is_kept_of_the_encoders_pass(pipeline: Run) -> None:
    """The decoder is given what has no gradient, and no parameter of the encoder is the optimiser's."""
    context = pipeline("dinov2").context
    views = context.modality.masked_views(context, "head", 0)
    objective = masked_objective(copy.deepcopy(context.model.module), views, context.config, "head", 0)
    given: list[bool] = []
    objective.module.get_submodule("decoder").register_forward_pre_hook(
        lambda _, inputs: given.append(inputs[0].requires_grad)
    )
    batch = Batch(0, context.train_rows("head")[:8])
    read = context.read(context.train_of("head"))
    objective.loss(read(batch.rows), batch, objective.draw(batch), slice(0, 8))["loss"].backward()
    assert given == [False] and all(each.grad is None for each in objective.module.encoder.parameters())
    assert {name.partition(".")[0] for name, _ in objective.trained_parameters()} == {"decoder"}


def test_both_stages_start_from_it(pipeline: Run, caplog: pytest.LogCaptureFixture) -> None:
    run = pipeline("dinov2", "distill.rounds=2")
    with caplog.at_level(logging.WARNING, "sdfast"):
        run.run()
    assert "has no decoder, so a new one was made" in caplog.text and "before the encoder is" in caplog.text
    head, initial = result(run, "head"), run.initial.digest
    assert head["steps"] == 4 and head["inputs"]["start"] == initial != head["weights"]
    for stage in ("pretrain", "distill/round-1", "distill"):
        assert result(run, stage)["inputs"]["start"] == head["weights"], stage
    card = (run.out / "head/model/README.md").read_text()
    assert "its decoder newly made and trained" in card and "a new decoder, the encoder frozen" in card
    assert head_of(run).steps == 4


def test_finetuning_of_the_model_as_given_needs_none(pipeline: Run) -> None:
    run = pipeline("dinov2", "finetune.start=init")
    run.finetune()
    assert result(run, "finetune")["inputs"]["start"] == run.initial.digest and not (run.out / "head").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("pretrain.head_steps=null", 6), ("pretrain.head_steps=9", 9), ("pretrain.head_steps=0", 0)],
)
def test_how_many_steps(given: str, expected: int, pipeline: Run) -> None:
    run = pipeline("vit", given)
    assert run.context.modality.head_steps(run.config, run.initial) == expected
    longer = run.config.changed(["pretrain.steps=20000"])
    assert run.context.modality.head_steps(longer, run.initial) == (1000 if "null" in given else expected)


def test_without_steps_a_run_is_what_it_was(pipeline: Run) -> None:
    """The digest is that of the version before there was such a stage; content has other bytes on other processors."""
    run, weights, found = pipeline("dinov2", "pretrain.head_steps=0"), dict[Stage, str](), {}
    for stage in finetuning(run.context).chain():
        inputs = inputs_of(run.context, stage, weights)
        contents = {name: "its digest" for name in ("train images", "test images") if name in inputs}
        start = "as given" if inputs["start"] == run.initial.digest else inputs["start"]
        weights[stage] = sha256_json({**inputs, **contents, "start": start})
        found[stage.folder] = weights[stage][:12]
    assert found == KNOWN


KNOWN = {"pretrain": "fe1b88d20be3", "distill": "bbe1ace7ccd0", "finetune": "808c51af507a"}


def test_a_run_begun_before_says_why_it_trains_again(pipeline: Run, caplog: pytest.LogCaptureFixture) -> None:
    before = pipeline("vit", "pretrain.head_steps=0")
    before.distill()
    old = result(before, "pretrain")["weights"]
    with caplog.at_level(logging.INFO, "sdfast"):
        pipeline("vit").distill()
    assert "pretrain: runs again, because start changed" in caplog.text
    assert result(before, "pretrain")["weights"] != old and (before.out / "head/result.json").is_file()


def test_interrupted_it_ends_with_the_same_bits(pipeline: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("pretrain.head_steps=null", "pretrain.steps=4")
    whole, cut, step = pipeline("dinov2", *keys, out="whole"), pipeline("dinov2", *keys, out="cut"), Trainer.step
    whole.pretrain()

    def stopping(trainer: Trainer) -> Any:
        if trainer.stage == "head" and trainer.steps_done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stopping)
        with pytest.raises(Interrupted):
            cut.pretrain()
    head = head_of(cut)
    assert head.state == "interrupted" and head.step < head.steps == 4
    pipeline("dinov2", *keys, out="cut").pretrain()
    for stage in ("head", "pretrain"):
        assert result(cut, stage)["weights"] == result(whole, stage)["weights"]


def test_lora_begins_with_the_same_decoder(pipeline: Run) -> None:
    full, lora = pipeline("dinov2", out="full"), pipeline("dinov2", "pretrain.method=lora", out="lora")
    full.pretrain()
    lora.pretrain()
    assert result(full, "head")["fingerprint"] == result(lora, "head")["fingerprint"]
    assert result(full, "head")["weights"] == result(lora, "head")["weights"]
    assert (lora.out / "pretrain/model/adapter").is_dir() and not (lora.out / "head/model/adapter").exists()


@pytest.mark.parametrize(
    "keys",
    [
        ("pretrain.augment=crop", "pretrain.mask=bernoulli"),
        ("engine.activation_checkpointing=true", "engine.precision=bf16"),
        ("engine.accumulate=2", "engine.masked_tail=false"),
    ],
)
def test_with_other_settings(keys: tuple[str, ...], pipeline: Run) -> None:
    run = pipeline("dinov2", *keys)
    run.pretrain()
    assert result(run, "head")["metrics"]["distance"] == 0 != result(run, "pretrain")["metrics"]["distance"]


def test_a_model_with_a_decoder_has_no_such_stage(inputs: dict[str, Path], tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    weights = []
    for steps in ("null", "5"):
        out = tmp_path / steps
        run = sdfast.Pipeline(model, inputs["data"], out, overrides=[*FEW_STEPS, f"pretrain.head_steps={steps}"])
        weights.append(run.pretrain().weights)
        assert not (out / "head").exists() and result(run, "pretrain")["inputs"]["start"] == run.initial.digest
    assert weights[0] == weights[1]


def test_what_zero_saves_is_said_of_it_too(pipeline: Run) -> None:
    context = pipeline("dinov2", "zero.stage=2").context
    said = context.modality.worth_of_zero(context, "head")
    assert said is not None and said.startswith("head: ZeRO 2 over 1 process")


def test_zero_trains_the_decoder_alone(pipeline: Run) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    plain, spread = pipeline("dinov2", out="plain"), pipeline("dinov2", "zero.stage=2", out="spread")
    plain.pretrain()
    try:
        spread.pretrain()
    finally:
        launch.leave()  # the tests of this process that come after have no groups
    assert result(spread, "head")["metrics"]["distance"] == 0
    ours, theirs = (load_file(run.out / "head/model/model.safetensors") for run in (plain, spread))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0.0, atol=1e-5, msg=name)
