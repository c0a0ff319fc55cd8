"""Runs on pictures of five bands of 16 bits: normalised by their own statistics, resumed, in two processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_fixtures import FEW_STEPS, write_model
from resuming import check_resumes

import sdfast
from sdfast.cli.main import run as command
from sdfast.engine.teacher_bank import bank_targets
from sdfast.errors import UserError
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.pictures import open_picture, open_pixels
from sdfast.stages.build import build_stage
from sdfast.stages.graph import distillation

OPTIONS = ("data.channels=5", "data.pixels=uint16", "data.normalise=dataset", "data.range=percentile")
SIDE = 20


def write_bands(folder: Path, splits: dict[str, int], seed: int = 0, scale: float = 1.0) -> Path:
    """Noise of five bands, of which the third tells the class, in numbers far below 65,535."""
    random = np.random.default_rng(seed)
    for split, count in splits.items():
        for label in range(2):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for index in range(count):
                levels = np.array([300, 400, 200 + 700 * label, 90, 2000])
                values = np.clip(random.normal(levels, 60, (SIDE, SIDE, 5)), 0, None) * scale
                np.save(place / f"{split}{index}.npy", np.moveaxis(values, -1, 0).astype(np.uint16))
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return write_model(root / "model"), write_bands(root / "sat", {"train": 12, "test": 6})


@pytest.fixture(scope="module")
def run(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    model, data = inputs
    sdfast.Pipeline(model, data, out, overrides=[*FEW_STEPS, *OPTIONS, "finetune.steps=40", "finetune.lr=3e-3"]).run()
    return out


def predictions(file: Path) -> dict[str, tuple[str, float]]:
    with open(file, newline="") as lines:
        return {row["file_name"]: (row["predicted"], float(row["probability"])) for row in csv.DictReader(lines)}


def test_the_pack_keeps_16_bits_and_the_models_say_how(run: Path, inputs: tuple[Path, Path]) -> None:
    pack = ImagePack.open(run / "pack")
    train = pack.split("train")
    assert train.images.dtype == np.uint16 and train.images.shape == (24, 16, 16, 5)
    every = np.concatenate([np.load(file) for file in sorted(inputs[1].rglob("*.npy"))], axis=1).reshape(5, -1)
    np.testing.assert_allclose(pack.levels, np.percentile(every, [1, 99], axis=1).T, rtol=1e-6)
    unit = np.asarray(train.images, np.float64).reshape(-1, 5) / 65535
    for stage in ("pretrain", "distill", "finetune"):
        folder = run / stage / "model"
        value = json.loads((folder / "preprocessor_config.json").read_text())
        np.testing.assert_allclose(value["image_mean"], unit.mean(0), rtol=1e-12)
        np.testing.assert_allclose(value["image_std"], unit.std(0), rtol=1e-9)
        assert value["sdfast_pictures"]["pixels"] == "uint16"
        np.testing.assert_allclose(value["sdfast_pictures"]["range"], pack.levels, rtol=1e-12)
        assert json.loads((folder / "config.json").read_text())["num_channels"] == 5


def test_transformers_gives_what_eval_gives(run: Path, inputs: tuple[Path, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = run / "finetune" / "model"
    sdfast.Pipeline(config=run / "config.yaml").evaluate(to=run / "own.csv")
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    expected = predictions(run / "own.csv")
    assert len(expected) == 12 and len({label for label, _ in expected.values()}) == 2
    for name, (label, probability) in expected.items():
        with torch.no_grad():
            best = model(open_pixels(inputs[1] / name, folder)).logits.softmax(-1)[0].max(-1)
        assert model.config.id2label[int(best.indices)] == label
        assert float(best.values) == pytest.approx(probability, abs=2e-6)
    whole = transformers.ViTMAEForPreTraining.from_pretrained(run / "pretrain" / "model")
    assert whole.config.num_channels == 5 and whole.decoder.decoder_pred.out_features == 4 * 4 * 5
    with pytest.raises(UserError, match="takes 5 channels, and PIL has no such picture; give open_pixels"):
        open_picture(inputs[1] / next(iter(expected)), folder)


def test_eval_makes_the_pixels_of_another_source_as_in_training(run: Path, tmp_path: Path) -> None:
    """Its own percentiles would be others, and the configuration may say another type by now."""
    other = write_bands(tmp_path / "other", {"test": 4}, seed=5, scale=1.4)
    sdfast.Pipeline(config=run / "config.yaml", overrides=["data.pixels=uint8"]).evaluate(other)
    pack = ImagePack.open(next(run.rglob("eval-pack*")))
    assert pack.split("test").images.dtype == np.uint16 and pack.levels == ImagePack.open(run / "pack").levels


def test_a_run_is_found_done_and_another_normalisation_is_another_run(run: Path, inputs: tuple[Path, Path]) -> None:
    results = sorted(run.rglob("result.json"))
    before = [file.stat().st_mtime_ns for file in (*results, run / "pack" / "manifest.json")]
    again = sdfast.Pipeline(*inputs, run, overrides=[*FEW_STEPS, *OPTIONS, "finetune.steps=40", "finetune.lr=3e-3"])
    again.run()
    assert [file.stat().st_mtime_ns for file in (*results, run / "pack" / "manifest.json")] == before
    inputs_of = again.modality.inputs(again.context, "pretrain")
    assert inputs_of["pixels"] == "uint16" and inputs_of["mean and std"][0] != [0.5] * 5


@pytest.mark.parametrize("mode", ["live", "bank"])
def test_a_stage_resumes_bit_for_bit(mode: str, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    steps = ("pretrain.steps=3", "distill.steps=12", "distill.batch_size=8", "pretrain.augment=flip")
    views = ["teacher.views=2"] if mode == "bank" else []
    given = [*OPTIONS, *steps, f"teacher.mode={mode}", *views]
    pipeline = sdfast.Pipeline(inputs[0], inputs[1], tmp_path / "out", overrides=given)
    teacher = pipeline.pretrain()
    context, stage = pipeline.context, distillation(pipeline.context)
    modality, config = context.modality, context.config
    loaded = modality.reload(teacher.model)
    if mode == "bank":
        recipe = modality.recipe(config, context.device, loaded, context.pack)
        assert recipe.transform.mean == context.model.processor.mean  # they are in the bank's identity
        source: Any = bank_targets(pipeline.build_bank(), recipe, config.teacher.residency)
    else:
        source = modality.live_teacher(config, context.device, loaded)
    check_resumes(
        lambda folder: build_stage(context, stage, context.model.module, folder, teacher=source, resume=True), tmp_path
    )


def test_two_processes_end_where_one_does(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    steps = [each.replace("=6", "=2") for each in FEW_STEPS]
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "sdfast"]
    arguments = [
        "train",
        "--model",
        *map(str, (inputs[0], "--data", inputs[1])),
        *OPTIONS,
        *steps,
        "finetune.dropout=0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(sdfast.__file__).parents[1])}
    done = subprocess.run(
        [*words, *arguments, "--zero", "2", "--out", str(tmp_path / "two")],
        env={**environment, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("data: normalised by the train split's mean") == 1
    assert command([*arguments, "--out", str(tmp_path / "one")]) == 0
    results = [json.loads((tmp_path / out / "finetune/result.json").read_text()) for out in ("one", "two")]
    assert results[1]["metrics"] == pytest.approx(results[0]["metrics"], abs=1e-4)


def test_a_study_compares_them(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    steps = [each.replace("=6", "=2") for each in FEW_STEPS]
    words = ["study", "compare", "--model", str(inputs[0]), "--data", str(inputs[1]), "--out", str(tmp_path)]
    more = ["--methods", "fine-tuning,self-distillation", "--seeds", "2", "engine.threads=1"]
    assert command([*words, *more, *OPTIONS, *steps]) == 0
    assert len(list((tmp_path / "packs").iterdir())) == 1
    (pack,) = (tmp_path / "packs").iterdir()
    statistics = ImagePack.open(pack).statistics
    for file in (tmp_path / "stages").rglob("preprocessor_config.json"):
        value = json.loads(file.read_text())
        assert (tuple(value["image_mean"]), tuple(value["image_std"])) == statistics
