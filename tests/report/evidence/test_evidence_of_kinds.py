"""Evidence of runs of every kind of model, rows and labels is whole, and nothing is said that is not so."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline_fixtures import write_images, write_model
from text_fixtures import WORDS, write_text_model, write_texts

from sdfast import Pipeline
from sdfast.modalities.images.checkpoint import fresh_mae, save_encoder, save_mae
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.models.blocks import Style, TransformerShape
from sdfast.report.evidence import make_evidence, mistakes, panels
from sdfast.report.evidence.mistakes import read_predictions

STEPS = [
    f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("steps=2", "batch_size=8", "warmup=0")
]
WHOLE, GATED = ["layers", "map", "mistakes"], Style("silu", gated=True, key_bias=False)
PLAIN: dict[str, Any] = {
    "image_size": (16, 16),
    "patch_size": 4,
    "channels": 3,
    "encoder": TransformerShape(32, 2, 2, 48),
    "decoder": TransformerShape(16, 1, 2, 32),
}


@pytest.fixture(autouse=True)
def _nothing_failed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("sdfast.report.evidence.make.draw", lambda *_: {})  # they take long, and are all alike
    yield
    assert "report: some of what it shows" not in caplog.text, caplog.text


def evidence(run: Pipeline, stage: Any = "finetune") -> dict[str, Any]:
    """The panels by key, with the JSON of what is kept in `kept`."""
    run.run(stage)
    make_evidence(run.context, run.out, run.results)
    found: dict[str, Any] = {panel.key: panel for panel in panels(run.out)}
    return {**found, "kept": {path.stem: json.loads(path.read_text()) for path in (run.out / "report").glob("*.json")}}


def shown(found: dict[str, Any]) -> list[str]:
    return [key for key in found if key != "kept"]


def image_model(folder: Path, encoder_only: bool = False, **fields: Any) -> Path:
    shape = ViTShape(**{**PLAIN, **fields})
    height, width = shape.image_size
    processor = ImageProcessor(height, width, (0.5,) * shape.channels, (0.25,) * shape.channels)
    (save_encoder if encoder_only else save_mae)(fresh_mae(shape, 0), folder, processor)
    return folder


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            {
                "kind": "dinov3_vit",
                "registers": 2,
                "learned_positions": False,
                "rotary": 100.0,
                "encoder": TransformerShape(32, 2, 2, 48, GATED),
            },
            id="DINOv3",
        ),
        pytest.param({"image_size": (8, 24), "channels": 1}, id="wide and grey"),
    ],
)
def test_kinds_of_image_models(fields: dict[str, Any], tmp_path: Path) -> None:
    model, data = image_model(tmp_path / "model", **fields), write_images(tmp_path / "data")
    run = Pipeline(model, data, tmp_path / "run", overrides=STEPS)
    assert shown(evidence(run)) == ["reconstructions", *WHOLE]
    assert run.context.model.module.training  # stages that follow find it as it was


def test_a_decoder_that_was_made_anew_is_said(tmp_path: Path) -> None:
    model, data = image_model(tmp_path / "model", encoder_only=True), write_images(tmp_path / "data")
    keys = ("finetune.method=lora", "distill.mae_weight=0", "pretrain.norm_pix=false", "pretrain.mask=bernoulli")
    found = evidence(Pipeline(model, data, tmp_path / "run", overrides=[*STEPS, *keys]))
    assert shown(found) == ["reconstructions", *WHOLE]
    body = found["reconstructions"].body
    assert "newly made" in body and "distill.mae_weight is 0" in body and "deviation" not in body
    assert list(found["kept"]["masked"]["models"]) == ["initial", "head", "pretrain", "distill"]


def test_images_without_labels_and_tiles(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(10):
        size = (48, 16 + 8 * (number % 3), 3)
        Image.fromarray(random.integers(0, 256, size, np.uint8)).save(tmp_path / "data" / f"{number}.png")
    run = Pipeline(
        write_model(tmp_path / "model"), tmp_path / "data", tmp_path / "run", overrides=[*STEPS, "data.tile=16"]
    )
    found = evidence(run, "distill")
    assert shown(found) == ["reconstructions", "layers", "map"]
    assert found["kept"]["map"]["colours"] == {"by": "nothing"}
    assert len(found["kept"]["masked"]["rows"]) == min(8, len(run.context.pack.splits[found["kept"]["map"]["split"]]))


def table(folder: Path, kind: str) -> Path:
    """Rows with two classes that may both apply, and two numbers."""
    random, rows = np.random.default_rng(0), list[list[Any]]()
    folder.mkdir()
    for number in range(32):
        tags = [name for name in ("red", "bright") if random.random() < 0.6]
        if kind == "images":
            pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            content = f"{number}.png"
        else:
            content = " ".join(WORDS[place] for place in random.integers(0, 40, 8)) + f" {number}"
        split = ("train", "train", "val", "test")[number % 4]
        rows.append([content, split, ";".join(tags) or "[]", random.normal(50, 9), random.normal()])
    with open(folder / "list.csv", "w", newline="") as file:
        header = ["file_name" if kind == "images" else "text", "split", "label", "level", "shift"]
        csv.writer(file).writerows([header, *rows])
    return folder / "list.csv"


@pytest.mark.parametrize("kind", ["images", "texts"])
@pytest.mark.parametrize(
    ("problem", "key"),
    [
        ("multi_label_classification", "data.label_separator=semicolon"),
        ("regression", "data.label_key=[level,shift]"),
    ],
)
def test_several_classes_and_numbers(problem: str, key: str, kind: str, tmp_path: Path) -> None:
    model = (write_model if kind == "images" else write_text_model)(tmp_path / "model")
    keys = [*STEPS, f"data.problem_type={problem}", key, "finetune.start=init"]
    run = Pipeline(model, table(tmp_path / "data", kind), tmp_path / "run", overrides=keys)
    found = evidence(run)
    assert shown(found) == ["map", "mistakes"]
    rows, predictions = found["kept"]["mistakes"]["rows"], read_predictions(run.out)
    assert predictions is not None and predictions.logits.shape == (8, 2) == predictions.labels.shape
    errors = [row["error"] for row in rows]
    assert len(rows) == 8 and errors == sorted(errors, reverse=True)
    names = predictions.names.tolist()
    place, colours = names.index(rows[0]["name"]), found["kept"]["map"]["colours"]
    if problem == "regression":
        assert [value for _, value, _ in rows[0]["numbers"]] == pytest.approx(predictions.labels[place].tolist())
        assert [value for _, _, value in rows[0]["numbers"]] == pytest.approx(predictions.logits[place].tolist())
        assert colours["by"] == "number" and colours["name"] == "level"
    else:
        kept = [name for name, _ in rows[0]["true"]]
        assert kept == [
            name for name, on in zip(run.context.pack.class_names, predictions.labels[place], strict=True) if on
        ]
        assert colours["several"] and set(colours["row"]) <= {0, 1, -1}


def test_a_new_head_long_texts_and_modernbert(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = write_text_model(tmp_path / "model", "modernbert")
    tensors = load_file(model / "model.safetensors")
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith(("head.", "decoder."))}
    save_file(bare, model / "model.safetensors", {"format": "pt"})
    keys = [*STEPS, "data.max_length=12", "data.chunk_votes=true", "pretrain.head_steps=2"]
    run = Pipeline(model, write_texts(tmp_path / "data"), tmp_path / "run", overrides=keys)
    found = evidence(run)
    assert shown(found) == ["words", *WHOLE] and "newly made" in found["words"].body
    assert list(found["kept"]["masked"]["models"]) == ["initial", "head", "pretrain", "distill"]
    predictions, result = read_predictions(run.out), run.results[-1]
    assert predictions is not None  # of documents, whose chunks vote
    accuracy = (predictions.logits.argmax(1) == predictions.labels).mean()
    assert accuracy == pytest.approx(result.metrics["accuracy"]) and len(predictions.labels) == 12


def test_names_and_words_of_a_person_are_escaped(tmp_path: Path) -> None:
    hostile, texts = "<b>&\"'", tmp_path / "data"
    write_texts(texts)
    for path in texts.iterdir():
        path.write_text(path.read_text().replace("class0", "<script>").replace("class1", hostile.replace('"', "")))
    model = write_text_model(tmp_path / "model")
    found = evidence(Pipeline(model, texts, tmp_path / "run", overrides=STEPS))
    assert shown(found) == ["words", *WHOLE]
    assert all("<script>" not in found[key].body for key in shown(found))
    assert "&lt;script&gt;" in found["map"].body


def test_umap_is_made_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a stand-in: the package compiles itself for a minute."""
    seen: list[dict[str, Any]] = []

    class UMAP:
        def __init__(self, **options: Any) -> None:
            seen.append(options)

        def fit_transform(self, features: Any) -> Any:
            return features[:, :2]

    model, data = write_text_model(tmp_path / "model"), write_texts(tmp_path / "data")
    run = Pipeline(model, data, tmp_path / "run", overrides=[*STEPS, "finetune.start=init"])
    run.finetune()
    monkeypatch.setitem(sys.modules, "umap", None)
    make_evidence(run.context, run.out, run.results, umap=True)
    assert "map: UMAP needs `pip install umap-learn`" in caplog.text
    caplog.clear()
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    make_evidence(run.context, run.out, run.results, umap=True)
    assert seen == [{"n_neighbors": 11, "random_state": 0, "n_jobs": 1}] * 2
    kept = (run.out / "report" / "map.json").read_bytes()
    assert "UMAP" in next(panel for panel in panels(run.out) if panel.key == "map").body
    make_evidence(run.context, run.out, run.results)
    make_evidence(run.context, run.out, run.results, umap=True)
    assert len(seen) == 2 and (run.out / "report" / "map.json").read_bytes() == kept


def test_of_very_many_test_rows_some_are_classified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistakes, "_MOST", {"cpu": 6})
    data = write_images(tmp_path / "data", classes=3)
    run = Pipeline(write_model(tmp_path / "model"), data, tmp_path / "run", overrides=[*STEPS, "finetune.start=init"])
    found, predictions = evidence(run), read_predictions(run.out)
    assert predictions is not None and not predictions.all_rows
    assert sorted(predictions.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert "6 rows of test (a choice by content)" in found["mistakes"].lead
