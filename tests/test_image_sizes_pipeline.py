"""Runs on pictures of other shapes: padded, cropped, not square, and in tiles that vote."""

from __future__ import annotations

import csv
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pipeline_fixtures import FEW_STEPS, write_model

import sdfast
from sdfast.durable import read_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted
from sdfast.modalities.images.checkpoint import load_classifier, load_mae
from sdfast.modalities.images.pictures import open_picture, open_tiles
from sdfast.modalities.images.tiles import ImageTiles
from sdfast.teacher.bank import open_bank

SIZES = [(40, 30), (16, 16), (12, 10), (20, 50)]  # widths and heights
TILES = [3 * 2, 1, 1, 2 * 4]  # of 16 x 16 pixels


def write_pictures(folder: Path, count: int = 8, seed: int = 0, split: str = "") -> Path:
    """Noise over a brightness that tells the class, in four sizes."""
    random = np.random.default_rng(seed)
    for label in range(2):
        (folder / split / f"class{label}").mkdir(parents=True)
        for index in range(count):
            width, height = SIZES[index % 4]
            values = np.clip(random.normal(70 + 110 * label, 60, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(values).save(folder / split / f"class{label}" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("given")
    return {"model": write_model(root / "model"), "data": write_pictures(root / "data")}


def pipeline(given: dict[str, Path], out: Path, *overrides: str) -> sdfast.Pipeline:
    return sdfast.Pipeline(out=out, device="cpu", overrides=(*FEW_STEPS, "finetune.lr=3e-3", *overrides), **given)


def predictions(out: Path) -> dict[str, tuple[str, float]]:
    files = sorted(out.rglob("predictions*.csv"), key=lambda path: path.stat().st_mtime_ns)
    with open(files[-1], newline="") as file:
        return {row["file_name"]: (row["predicted"], float(row["probability"])) for row in csv.DictReader(file)}


def weights_of(out: Path, stage: str) -> str:
    return read_json(out / stage / "result.json")["weights"]


# Whole pictures.


@pytest.mark.parametrize(
    ("size", "resize"), [("[12,24]", "squash"), ("[12,24]", "crop"), ("[24,12]", "pad"), ("16", "crop")]
)
def test_every_shape_is_trained_saved_reloaded_and_evaluated(
    size: str, resize: str, given: dict[str, Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pipe = pipeline(given, tmp_path / "run", f"data.image_size={size}", f"data.resize={resize}")
    trained = pipe.run()
    height, width = (16, 16) if size == "16" else map(int, size.strip("[]").split(","))
    grid = (height // 4) * (width // 4)
    model = tmp_path / "run" / "finetune" / "model"
    for stage in ("pretrain", "distill"):
        loaded = load_mae(str(tmp_path / "run" / stage / "model"))
        assert loaded.shape.image_size == (height, width) and loaded.shape.patches == grid
        assert loaded.module.encoder.position_embeddings.shape[-2] == grid + 1
    assert load_mae(str(tmp_path / "run" / "distill" / "model"), image_size=(16, 20)).shape.patches == 20
    metrics = pipe.evaluate()
    assert metrics["test_loss"] == pytest.approx(trained.metrics["test_loss"], abs=1e-6)
    expected = predictions(tmp_path / "run")
    assert len(expected) == 4  # a quarter of each class
    needs_us = resize == "pad" or (resize == "crop" and height != width)
    for folder in (model, tmp_path / "run" / "distill" / "model"):
        assert ("open_picture(file, FOLDER)" in (folder / "README.md").read_text()) == needs_us
    classify = transformers.pipeline("image-classification", model=str(model))
    for name, (label, probability) in expected.items():
        picture = open_picture(given["data"] / name, model)
        assert resize == "squash" or picture.size == (width, height)
        (best, *_) = classify(picture)
        assert best["label"] == label and best["score"] == pytest.approx(probability, abs=5e-3)
    sdfast.Pipeline(config=tmp_path / "run" / "config.yaml", overrides=["data.resize=squash"]).evaluate(given["data"])
    again = predictions(tmp_path / "run")
    assert len(again) == 16
    for name, (label, probability) in expected.items():  # as it was trained, whatever the configuration says now
        assert again[name][0] == label and again[name][1] == pytest.approx(probability, abs=1e-5)


# Tiles.

TILED = ("data.tile=16", "finetune.steps=20")


@pytest.fixture(scope="module")
def tiled(given: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> sdfast.Pipeline:
    pipe = pipeline(given, tmp_path_factory.mktemp("tiled") / "run", *TILED, "pretrain.epochs=2")
    pipe.run()
    return pipe


def by_hand(data: Path, name: str) -> NDArray[np.uint8]:
    """The tiles of a picture, [k, 16, 16, 3]: as few as cover it, evenly spread."""
    with Image.open(data / name) as file:
        image = file.convert("RGB")
    corners = []
    for side in image.size:
        count = math.ceil(side / 16)
        corners.append([round(k * (side - 16) / max(count - 1, 1) + 1e-9) if side > 16 else 0 for k in range(count)])
    boxes = [(x, y, min(x + 16, image.width), min(y + 16, image.height)) for y in corners[1] for x in corners[0]]
    return np.stack([np.asarray(image.crop(box).resize((16, 16), Image.Resampling.BILINEAR)) for box in boxes])


def test_each_tile_is_a_row_and_pictures_are_split(given: dict[str, Path], tiled: sdfast.Pipeline) -> None:
    pack, train = tiled.context.pack, tiled.context.train
    assert len(train) == 12 and len(pack.split("test")) == 4
    for split in pack.splits.values():
        begins = np.cumsum(split.tiles) - split.tiles
        for name, begin, count in zip(split.names, begins, split.tiles, strict=True):
            tiles = by_hand(given["data"], name)
            assert count == len(tiles) == TILES[int(Path(name).stem) % 4]
            np.testing.assert_array_equal(split.images[begin : begin + count], tiles)
        assert split.tiles.sum() == len(split.images) == pack.manifest["splits"][_name(pack, split)]["tiles"]
    assert (
        set(train.names).isdisjoint(pack.split("test").names) and len({*train.names, *pack.split("test").names}) == 16
    )
    rows = sum(TILES[int(Path(name).stem) % 4] for name in train.names)
    view = tiled.context.train_of("finetune")
    assert isinstance(view, ImageTiles) and len(view) == rows == len(tiled.context.train_rows("finetune"))
    assert view is tiled.context.train_of("pretrain") and len(open_bank(tiled.out / "teacher")) == rows
    assert tiled.config.pretrain.steps == math.ceil(rows / 8) * 2
    expected = [
        int("class1" in name) for name, count in zip(train.names, train.tiles, strict=True) for _ in range(count)
    ]
    assert view.labels is not None and view.labels.tolist() == expected
    log = (tiled.out / "log.txt").read_text()
    assert (
        f"data: tiles: {rows} of train, {sum(len(by_hand(given['data'], n)) for n in pack.split('test').names)} of"
        in log
    )
    assert "larger than data.tile=16 x 16, which are cut into tiles: 8 of 16; there are 64 tiles in all." in log


def _name(pack: Any, split: Any) -> str:
    return next(name for name, each in pack.splits.items() if each is split)


def test_pictures_are_what_is_predicted_by_the_mean_of_their_tiles(
    given: dict[str, Path], tiled: sdfast.Pipeline
) -> None:
    metrics = tiled.evaluate()
    module, processor, names = load_classifier(tiled.out / "finetune" / "model")
    assert processor.pictures["tile"] == 16
    assert "tiles of pictures (`data.tile=16`)" in (tiled.out / "finetune" / "model" / "README.md").read_text()
    found, losses, hits = predictions(tiled.out), [], []
    assert len(found) == 4
    mean, std = (np.asarray(values)[:, None, None] for values in (processor.mean, processor.std))
    for name, (label, probability) in found.items():
        pixels = (by_hand(given["data"], name).transpose(0, 3, 1, 2) / 255 - mean) / std
        with torch.no_grad():
            logits = module.eval()(torch.from_numpy(pixels).float()).double().numpy()
        each = np.exp(logits - logits.max(1, keepdims=True))
        voted_for = (each / each.sum(1, keepdims=True)).mean(0)
        assert names[int(voted_for.argmax())] == label and voted_for.max() == pytest.approx(probability, abs=1e-5)
        losses.append(-np.log(voted_for[int("class1" in name)]))
        hits.append(label == name.split("/")[0])
        opened = np.stack(
            [np.asarray(tile) for tile in open_tiles(given["data"] / name, tiled.out / "finetune" / "model")]
        )
        np.testing.assert_array_equal(opened, by_hand(given["data"], name))
    assert metrics["test_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(hits))
    trained = read_json(tiled.out / "finetune" / "result.json")
    assert trained["metrics"]["test_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert trained["per_class"]["test"]["class0"]["support"] == 2  # pictures


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_tiles_of_pictures_with_several_classes_or_numbers_vote(
    problem: str, given: dict[str, Path], tmp_path: Path
) -> None:
    """The mean of the tiles' sigmoids, or of their outputs, is what is scored, and decides the threshold."""
    random, rows, several = np.random.default_rng(3), [], problem != "regression"
    for number in range(16):
        width, height = SIZES[number % 4]
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"{number}.png")
        values = random.integers(0, 2, 2) if several else random.normal(50, 9, 2)
        rows.append([f"{number}.png", *values, ("train", "train", "val", "test")[number // 4]])
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "a", "b", "split"], *rows])
    keys = (f"data.problem_type={problem}", "data.label_key=[a,b]", "finetune.start=init")
    pipe = pipeline({**given, "data": tmp_path / "list.csv"}, tmp_path / "run", *TILED, *keys)
    trained = pipe.finetune()
    view, wanted = pipe.context.train_of("finetune"), {name: np.array(each, float) for name, *each, _ in rows}
    assert len(pipe.context.train_rows("finetune")) == len(view) == 2 * sum(TILES)
    expected = np.repeat([wanted[name] for name in pipe.context.train.names], pipe.context.train.tiles, axis=0)
    np.testing.assert_allclose(view.labels, expected, rtol=1e-6)
    module, processor, _ = load_classifier(pipe.out / "finetune" / "model")
    mean, std = (np.asarray(values)[:, None, None] for values in (processor.mean, processor.std))
    voted: dict[str, list[NDArray[np.float64]]] = {"val": [], "test": []}
    for name, *_, split in rows[8:]:
        pixels = (by_hand(tmp_path, name).transpose(0, 3, 1, 2) / 255 - mean) / std
        with torch.no_grad():
            outputs = module.eval()(torch.from_numpy(pixels).float()).double().numpy()
        voted[split].append((1 / (1 + np.exp(-outputs)) if several else outputs).mean(axis=0))
    guess, truth = np.stack(voted["test"]), np.stack([wanted[name] for name, *_ in rows[12:]])
    by_hand_loss = ((guess - truth) ** 2).mean()
    if several:
        by_hand_loss = -np.log(np.where(truth == 1, guess, 1 - guess)).mean()
    assert trained.metrics["test_loss"] == pytest.approx(by_hand_loss, rel=1e-4)
    assert pipe.evaluate()["test_loss"] == pytest.approx(by_hand_loss, rel=1e-4)
    with open(pipe.out / "predictions.csv", newline="") as file:
        table = {row["file_name"]: row for row in csv.DictReader(file)}
    columns = ["a", "b"] if several else ["predicted_a", "predicted_b"]
    shown = np.array([[float(table[name][column]) for column in columns] for name, *_ in rows[12:]])
    np.testing.assert_allclose(shown, guess, rtol=1e-4, atol=1e-5)
    if several:
        metrics = pytest.importorskip("sklearn.metrics")
        scores = {}
        for percent in range(1, 100):
            chosen = np.stack(voted["val"]) >= percent / 100
            own = np.stack([wanted[name] for name, *_ in rows[8:12]])
            there = [place for place in range(2) if own[:, place].any() or chosen[:, place].any()]
            each = [metrics.f1_score(own[:, place], chosen[:, place], zero_division=0) for place in there]
            scores[percent] = np.mean(each) if each else 0.0
        best = max(scores.values())
        assert scores[round(100 * trained.metrics["threshold"])] == pytest.approx(best)


def test_another_source_is_evaluated_in_tiles_too(
    given: dict[str, Path], tiled: sdfast.Pipeline, tmp_path: Path
) -> None:
    own = predictions(tiled.out) or tiled.evaluate()
    sdfast.Pipeline(config=tiled.out / "config.yaml", overrides=["data.tile=null"]).evaluate(given["data"])
    other = predictions(tiled.out)
    assert len(other) == 16
    for name, (label, probability) in own.items():
        assert other[name] == (label, pytest.approx(probability, abs=1e-5))


def test_a_model_of_tiles_says_so_to_the_next_run(
    given: dict[str, Path], tiled: sdfast.Pipeline, tmp_path: Path
) -> None:
    start = {"model": tiled.out / "distill" / "model", "data": given["data"]}
    for option, said in (("seed=1", True), ("data.tile=16", False)):
        notes = pipeline(start, tmp_path / option, option).initial.notes
        assert any("it was trained with data.tile=16, and here none is cut; give" in note for note in notes) == said


def test_a_limit_is_of_pictures(given: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = pipeline(given, tmp_path / "run", "data.tile=16", "data.limit=5", "finetune.sampling=balanced")
    train = pipe.context.train
    chosen = train.limited(5, 42)
    rows = pipe.context.train_rows("finetune").numpy()
    assert len(chosen) == 5 and len(rows) == train.tiles[chosen].sum() < len(train.images)
    assert set(pipe.context.train_of("finetune").item_of[rows]) == set(chosen)
    classes = pipe.context.balanced_classes("finetune")
    assert classes is not None and len(classes) == len(rows)
    pipe = pipeline(given, tmp_path / "few", "data.tile=16", "data.labelled_limit=5")
    with caplog.at_level("INFO", logger="sdfast"):
        assert (pipe.context.train_rows("finetune").numpy() == rows).all()
    assert "finetune trains on 5 of 12 labelled rows (data.labelled_limit)" in caplog.text


def test_an_interrupted_run_on_tiles_ends_with_the_same_bits(
    given: dict[str, Path], tiled: sdfast.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def stopping(trainer: Trainer) -> Any:
        if (trainer.stage, trainer.steps_done) in (("distill", 3), ("finetune", 7)) and not stopped.get(trainer.stage):
            stopped[trainer.stage] = True
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    stopped: dict[str, bool] = {}
    monkeypatch.setattr(Trainer, "step", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted):
            pipeline(given, tmp_path / "cut", *TILED, "pretrain.epochs=2").run()
    pipeline(given, tmp_path / "cut", *TILED, "pretrain.epochs=2").run()
    for stage in ("pretrain", "distill", "finetune"):
        assert weights_of(tmp_path / "cut", stage) == weights_of(tiled.out, stage)


def test_arms_of_a_study_have_packs_of_their_own(given: dict[str, Path], tmp_path: Path) -> None:
    from sdfast.studies.store import Shared, Store

    store, rows = Store(tmp_path, Shared()), {}
    for option in ("data.tile=null", "data.tile=16", "data.resize=pad", "data.tile=16"):
        with store.opened(pipeline(given, tmp_path / "none", option).config) as context:
            rows[option] = (len(context.train), len(context.train_rows("pretrain")))
    assert rows["data.tile=null"] == rows["data.resize=pad"] == (12, 12) and rows["data.tile=16"][1] > 12
    assert len(list((tmp_path / "packs").iterdir())) == 3
