"""What a run leaves is used with transformers alone, and gives what `sdfast eval` gives."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from pipeline_fixtures import FEW_STEPS, write_images, write_model

import sdfast
from sdfast.models.checkpoint import load_mae

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("run")
    data = write_images(root / "images", classes=3, train=12, test=8, side=16)
    model = write_model(root / "model")
    sdfast.Pipeline(model, data, root / "out", overrides=(*FEW_STEPS, "finetune.steps=40", "finetune.lr=3e-3")).run()
    return root / "out", data


def test_the_pipeline_of_transformers_gives_the_labels_of_eval(run: tuple[Path, Path]) -> None:
    out, data = run
    sdfast.Pipeline(config=out / "config.yaml").evaluate()
    classify = transformers.pipeline("image-classification", model=str(out / "finetune" / "model"))
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert len({row["predicted"] for row in rows}) > 1
    for row in rows:
        best = classify(str(data / row["file_name"]))[0]
        assert best["label"] == row["predicted"]
        assert best["score"] == pytest.approx(float(row["probability"]), abs=1e-3)


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_encoder_and_decoder_are_kept_and_load_in_transformers(run: tuple[Path, Path], stage: str) -> None:
    out, data = run
    folder = out / stage / "model"
    model, info = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    image = Image.open(next((data / "test").rglob("*.png")))
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(3))
    visible_ids = noise.argsort(dim=1)[:, :4]
    ours = load_mae(str(folder)).module.eval()
    with torch.no_grad():
        theirs = model.eval()(pixels, noise=noise).logits
        predicted = ours.decoder(ours.encoder(pixels, visible_ids), visible_ids)
    torch.testing.assert_close(predicted, theirs, rtol=1e-4, atol=1e-5)
