"""Runs from vision towers: all stages, stopped and resumed, with ZeRO; what they leave works in transformers."""

from __future__ import annotations

import csv
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pipeline_fixtures import FEW_STEPS, write_images
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent / "models"))
from tower_samples import expected_of, save_tower

import sdfast
from sdfast.durable import read_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted
from sdfast.modalities.images.checkpoint import load_mae

transformers = pytest.importorskip("transformers")
CLIP = "CLIPVisionModel"
MODELS: dict[str, dict[str, Any]] = {
    CLIP: {},
    "SiglipVisionModel": {},
    "IJepaModel": {},
    "BeitModel": {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0},
}

STANDS_FOR_IT = {CLIP: "`pooler_output`, the CLS", "BeitModel": "`pooler_output`."}
STANDS_FOR_IT |= dict.fromkeys(("SiglipVisionModel", "IJepaModel"), "the mean of all tokens")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", classes=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, settings in MODELS.items():
        save_tower(name, root / name, image_size=16, **settings)
    return {name: root / name for name in MODELS}


def pipeline(model: Path, data: Path, out: Path, *overrides: str, **options: Any) -> sdfast.Pipeline:
    steps = (*FEW_STEPS, "finetune.lr=3e-3", *overrides)
    return sdfast.Pipeline(model, data, out, device="cpu", overrides=steps, **options)


def weights_of(out: Path, stage: str) -> str:
    return read_json(out / stage / "result.json")["weights"]


@pytest.mark.parametrize("name", MODELS)
def test_a_run_leaves_what_transformers_reads(name: str, models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    pipe = pipeline(models[name], data, tmp_path / "run")
    trained = pipe.run()
    assert pipe.evaluate()["test_loss"] == pytest.approx(trained.metrics["test_loss"], abs=1e-6)
    for stage in ("pretrain", "distill"):
        folder = tmp_path / "run" / stage / "model"
        model = transformers.AutoModel.from_pretrained(folder / "encoder")
        processor = transformers.AutoImageProcessor.from_pretrained(folder / "encoder")
        images = processor(images=Image.open(next((data / "test").rglob("*.png"))), return_tensors="pt").pixel_values
        ours = load_mae(str(folder)).module.double().eval().encoder
        tokens, matched = expected_of(name, model.eval(), images.double())
        with torch.no_grad():
            torch.testing.assert_close(ours(images.double()), tokens, rtol=0.0, atol=1e-9)
            torch.testing.assert_close(ours.features(images.double(), "cls"), matched, rtol=0.0, atol=1e-9)
        card = (folder / "README.md").read_text()
        assert f"a `{type(model).__name__}`" in card and STANDS_FOR_IT[name] in card
    card = (tmp_path / "run/finetune/model/README.md").read_text()
    assert (".vision_model" in card) == name.endswith("VisionModel")
    classify = transformers.pipeline("image-classification", model=str(tmp_path / "run" / "finetune" / "model"))
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for row in rows:
        best = classify(str(data / row["file_name"]))[0]
        assert best["label"] == row["predicted"]
        assert best["score"] == pytest.approx(float(row["probability"]), abs=1e-3)


@pytest.fixture(scope="module")
def whole(models: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    pipeline(models[CLIP], data, out).run()
    return out


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    whole: Path, models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, stopped = Trainer.step, []

    def interrupting(trainer: Trainer) -> Any:
        if trainer.steps_done == 3 and trainer.stage not in stopped:
            stopped.append(trainer.stage)
            os.kill(os.getpid(), signal.SIGINT)
        return plain(trainer)

    monkeypatch.setattr(Trainer, "step", interrupting)
    for _ in range(4):
        with pytest.raises(Interrupted):
            pipeline(models[CLIP], data, tmp_path / "cut").run()
    pipeline(models[CLIP], data, tmp_path / "cut").run()
    for stage in ("head", "pretrain", "distill", "finetune"):
        assert weights_of(tmp_path / "cut", stage) == weights_of(whole, stage)


def test_zero_2(whole: Path, models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Also where the last norm of a classifier is not trained."""
    pytest.importorskip("deepspeed")
    pipeline(models[CLIP], data, tmp_path / "run", zero=2).run()
    for stage in ("distill", "finetune"):
        one, other = (load_file(out / stage / "model/model.safetensors") for out in (whole, tmp_path / "run"))
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            if "k_proj.bias" not in key:  # without effect, so that its gradient is rounding noise
                torch.testing.assert_close(other[key], tensor, rtol=0.0, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", [CLIP, "BeitModel"])
def test_lora(name: str, models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    pipeline(models[name], data, tmp_path / "run", "distill.method=lora", "finetune.method=lora").run()
