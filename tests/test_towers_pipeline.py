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

sys.path.append(str(Path(__file__).parent / "models"))
from tower_samples import expected_of, save_tower

import sdfast
from sdfast.durable import read_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted
from sdfast.modalities.images.checkpoint import load_mae

transformers = pytest.importorskip("transformers")
NAMES = ["CLIPVisionModel", "SiglipVisionModel", "IJepaModel"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", classes=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name in NAMES:
        save_tower(name, root / name, image_size=16)
    return {name: root / name for name in NAMES}


def pipeline(model: Path, data: Path, out: Path, *overrides: str, **options: Any) -> sdfast.Pipeline:
    steps = (*FEW_STEPS, "finetune.lr=3e-3", *overrides)
    return sdfast.Pipeline(model, data, out, device="cpu", overrides=steps, **options)


def weights_of(out: Path, stage: str) -> str:
    return read_json(out / stage / "result.json")["weights"]


@pytest.mark.parametrize("name", NAMES)
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
    classify = transformers.pipeline("image-classification", model=str(tmp_path / "run" / "finetune" / "model"))
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for row in rows:
        best = classify(str(data / row["file_name"]))[0]
        assert best["label"] == row["predicted"]
        assert best["score"] == pytest.approx(float(row["probability"]), abs=1e-3)


@pytest.mark.parametrize("name", ["CLIPVisionModel", "SiglipVisionModel"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    name: str, models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline(models[name], data, tmp_path / "whole").run()
    plain, stopped = Trainer.step, []

    def interrupting(trainer: Trainer) -> Any:
        if trainer.steps_done == 3 and trainer.stage not in stopped:
            stopped.append(trainer.stage)
            os.kill(os.getpid(), signal.SIGINT)
        return plain(trainer)

    monkeypatch.setattr(Trainer, "step", interrupting)
    for _ in range(3):
        with pytest.raises(Interrupted):
            pipeline(models[name], data, tmp_path / "cut").run()
    pipeline(models[name], data, tmp_path / "cut").run()
    for stage in ("pretrain", "distill", "finetune"):
        assert weights_of(tmp_path / "cut", stage) == weights_of(tmp_path / "whole", stage)


def test_zero_2(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    for name in NAMES:
        whole = pipeline(models[name], data, tmp_path / name / "0")
        whole.run()
        shared = pipeline(models[name], data, tmp_path / name / "2", zero=2)
        shared.run()
        for stage in ("pretrain", "distill"):
            one, other = (load_mae(str(tmp_path / name / zero / stage / "model")).module for zero in "02")
            for (key, tensor), again in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
                torch.testing.assert_close(again, tensor, rtol=0.0, atol=1e-4, msg=key)
