"""Runs that start from a DINOv2 with registers or a DINOv3: all stages, shortcuts, resumed, in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_fixtures import write_images
from safetensors.torch import load_file

import sdfast
from sdfast.cli.main import run as command
from sdfast.durable import read_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted
from sdfast.modalities.images.checkpoint import fresh_mae, load_classifier, load_mae, save_mae
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.models.blocks import Style, TransformerShape
from sdfast.teacher.bank import open_bank

STAGES = ("pretrain", "distill", "finetune")
STEPS = [f"{stage}.{key}" for stage in STAGES for key in ("steps=4", "batch_size=8")]
_SIZES = {"image_size": (16, 16), "patch_size": 4, "channels": 3, "norm_eps": 1e-5}
_DECODER = TransformerShape(16, 1, 2, 32)
_GATED = Style("silu", gated=True)
_KEYLESS = Style("silu", gated=True, key_bias=False)
_DINOV3 = {"kind": "dinov3_vit", "registers": 2, "learned_positions": False, "rotary": 100.0}
SHAPES = {
    "dinov2-swiglu": ViTShape(
        encoder=TransformerShape(32, 2, 2, 48, _GATED), decoder=_DECODER, kind="dinov2", **_SIZES
    ),
    "registers": ViTShape(
        encoder=TransformerShape(32, 2, 2, 64), decoder=_DECODER, kind="dinov2_with_registers", registers=2, **_SIZES
    ),
    "dinov3": ViTShape(encoder=TransformerShape(32, 2, 2, 48, _KEYLESS), decoder=_DECODER, **_DINOV3, **_SIZES),
}
ALL = pytest.mark.parametrize("kind", SHAPES)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind, and images."""
    root = tmp_path_factory.mktemp("inputs")
    for number, (kind, shape) in enumerate(SHAPES.items()):
        model = fresh_mae(shape, number)
        save_mae(model, root / kind, ImageProcessor(16, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    return {**{kind: root / kind for kind in SHAPES}, "data": write_images(root / "images")}


@pytest.fixture(scope="module")
def runs(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, sdfast.Pipeline]:
    """A run of each kind."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    for kind in SHAPES:
        found[kind] = pipeline(inputs, kind, root / kind)
        found[kind].run()
    return found


def pipeline(inputs: dict[str, Path], kind: str, out: Path, *overrides: str) -> sdfast.Pipeline:
    return sdfast.Pipeline(inputs[kind], inputs["data"], out, device="cpu", overrides=[*STEPS, *overrides])


def weights_of(out: Path, stage: str) -> str:
    return read_json(out / stage / "result.json")["weights"]


@ALL
def test_every_stage_is_trained_saved_and_evaluated(kind: str, runs: dict[str, sdfast.Pipeline]) -> None:
    run, shape = runs[kind], SHAPES[kind]
    for stage in STAGES[:2]:
        loaded = load_mae(str(run.out / stage / "model"))
        assert loaded.shape == shape and not any("decoder" in note for note in loaded.notes)
    assert load_classifier(run.out / "finetune" / "model")[0].shape.kind == shape.kind
    assert len(open_bank(run.out / "teacher")) == 24
    expected = read_json(run.out / "finetune" / "result.json")["metrics"]["test_loss"]
    assert run.evaluate()["test_loss"] == pytest.approx(expected, abs=1e-6)


@ALL
def test_transformers_uses_what_a_run_leaves_as_its_card_says(kind: str, runs: dict[str, sdfast.Pipeline]) -> None:
    transformers = pytest.importorskip("transformers")
    out = runs[kind].out
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    encoder = transformers.AutoModel.from_pretrained(out / "distill/model/encoder")
    ours = load_mae(str(out / "distill/model")).module
    torch.testing.assert_close(encoder(images).last_hidden_state, ours.encoder(images), rtol=0.0, atol=1e-5)
    name = type(encoder).__name__
    assert f"`{name}`" in (out / "distill/model/README.md").read_text()
    card, folder = (out / "finetune/model/README.md").read_text(), out / "finetune/model"
    logits = load_classifier(folder)[0].eval()(images)
    if kind != "dinov3":
        theirs = transformers.AutoModelForImageClassification.from_pretrained(folder)
        torch.testing.assert_close(theirs(images).logits, logits, rtol=0.0, atol=1e-5)
        assert 'pipeline("image-classification"' in card
        return
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    pictures = [np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)]
    scope: dict[str, Any] = {"image": pictures[0]}
    exec(code, scope)
    pixels = (torch.from_numpy(pictures[0] / 255).permute(2, 0, 1)[None].float() - 0.5) / 0.25
    expected = load_classifier(folder)[0].eval()(pixels)
    torch.testing.assert_close(scope["logits"], expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("dinov2-swiglu", "cls"), ("registers", "patch"), ("registers", "all"), ("dinov3", "cls"), ("dinov3", "all")],
)
def test_shortcuts_and_bank_change_nothing(kind: str, tokens: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    """The packed step, the last block for CLS alone (not by one query under rotary positions), the bank."""
    off = [f"engine.{name}=false" for name in ("packed", "cls_tail", "masked_tail")]
    losses = {}
    for name, options in {"on": [], "off": [*off, "teacher.mode=live"]}.items():
        run = pipeline(inputs, kind, tmp_path / name, f"distill.tokens={tokens}", "engine.log_every=1", *options)
        run.distill()
        rows = [json.loads(line) for line in (tmp_path / name / "distill/metrics.jsonl").read_text().splitlines()]
        losses[name] = [[row["loss_mae"], row["loss_distill"]] for row in rows if "loss_mae" in row]
    assert len(losses["on"]) == 4
    np.testing.assert_allclose(losses["on"], losses["off"], rtol=2e-4, atol=1e-6)


@ALL
def test_an_interrupted_run_ends_with_the_same_bits(
    kind: str,
    inputs: dict[str, Path],
    runs: dict[str, sdfast.Pipeline],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, stopped = Trainer.step, set()

    def stopping(trainer: Trainer) -> Any:
        if trainer.steps_done == 2 and trainer.stage in STAGES[1:] and trainer.stage not in stopped:
            stopped.add(trainer.stage)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted):
            pipeline(inputs, kind, tmp_path / "cut").run()
    pipeline(inputs, kind, tmp_path / "cut").run()
    assert stopped == set(STAGES[1:])
    for stage in STAGES:
        assert weights_of(tmp_path / "cut", stage) == weights_of(runs[kind].out, stage)


def test_two_processes_end_where_one_does(inputs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    options = [*STEPS, "finetune.dropout=0", "engine.threads=1"]
    arguments = ["train", "--model", str(inputs["dinov3"]), "--data", str(inputs["data"]), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(sdfast.__file__).parents[1])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "sdfast"]
    done = subprocess.run(
        [*launch, *arguments, "--zero", "2", "--out", str(tmp_path / "two")],
        env={**environment, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert command([*arguments, "--out", str(tmp_path / "one")]) == 0
    one, two = (load_file(tmp_path / out / "finetune/model/model.safetensors") for out in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.0, atol=1e-5, msg=name)
