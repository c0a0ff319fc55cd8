"""A finished model keeps how its pictures were made: `sdfast eval` and `open_picture` go by it, on any source."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from file_samples import GREY, png, tiff
from numpy.typing import NDArray
from PIL import Image
from pipeline_fixtures import FEW_STEPS, write_model

import sdfast
from sdfast.data.config import DataConfig
from sdfast.errors import UserError
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.pictures import kept_options, open_picture, options_of_model

S = 16


def write_pictures(folder: Path, splits: tuple[str, ...], largest: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Drawings on nothing and scans of 16 bits in two classes, and each as it looks on green within 0 to 4,095."""
    random, seen = np.random.default_rng(seed), {}
    for split in splits:
        for index in range(16):
            name = Path(split) / f"class{index % 2}" / f"{index:02d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if index % 4 < 2:
                drawing = np.zeros((S, S, 4), np.uint8)
                drawing[..., 3] = random.choice([0, 90, 255], (S, S), p=[0.6, 0.1, 0.3])
                drawing[: 8 * (index % 2), :, :3] = 80
                Image.fromarray(drawing).save(folder / name)
                alpha = drawing[..., 3:] / 255
                seen[name.as_posix()] = drawing[..., :3] * alpha + np.array([0, 128, 0]) * (1 - alpha)
            else:
                values = random.integers(0, largest * (index % 2 + 1) // 2, (S, S, 1))
                values[0, 0] = largest
                (folder / name).write_bytes(png(values, 16, GREY))
                seen[name.as_posix()] = np.clip(values / 4095, 0, 1).repeat(3, -1) * 255
    return seen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("run")
    write_pictures(root / "data", ("train", "test"), 4000, 0)
    overrides = (*FEW_STEPS, "finetune.steps=30", "finetune.lr=3e-3", "data.background=green")
    sdfast.Pipeline(write_model(root / "model"), root / "data", root / "out", overrides=overrides).run()
    return root / "out", root


def predictions(out: Path) -> dict[str, tuple[str, float]]:
    files = sorted(out.rglob("predictions*.csv"), key=lambda path: path.stat().st_mtime_ns)
    with open(files[-1], newline="") as file:
        return {row["file_name"]: (row["predicted"], float(row["probability"])) for row in csv.DictReader(file)}


def test_each_stages_folder_says_how_its_pictures_were_made(run: tuple[Path, Path]) -> None:
    out, _ = run
    for stage in ("pretrain", "distill", "finetune"):
        processor = json.loads((out / stage / "model" / "preprocessor_config.json").read_text())
        assert processor["sdfast_pictures"] == {
            "background": "green",
            "exif_rotation": "apply",
            "range": [0, 4095],
            "pixels": "uint16",
        }


def test_eval_makes_the_pictures_of_another_source_as_in_training(run: tuple[Path, Path]) -> None:
    """Its own range would be 0 to 1,023, or 0 to 65,535, and the configuration may say another background by now."""
    out, root = run
    for largest in (700, 20_000):
        seen = write_pictures(root / f"other{largest}", ("test",), largest, largest)
        sdfast.Pipeline(config=out / "config.yaml", overrides=["data.background=red"]).evaluate(
            root / f"other{largest}"
        )
        pack = ImagePack.open(next(out.rglob("eval-pack*")))
        split = pack.split("test")
        assert len(split) == 16 and pack.levels == (0, 4095)
        for name, row in zip(split.names, split.images, strict=True):
            assert np.abs(row / 257 - seen[name]).max() <= 0.5 + 1e-6, name


def test_an_opened_picture_makes_the_pipeline_of_transformers_agree_with_eval(run: tuple[Path, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    out, root = run
    model = out / "finetune" / "model"
    sdfast.Pipeline(config=out / "config.yaml").evaluate()
    classify = transformers.pipeline("image-classification", model=str(model))
    expected = predictions(out)
    assert len(expected) == 16
    differs = 0
    for name, (label, probability) in expected.items():
        best = classify(open_picture(root / "data" / name, model))[0]
        assert best["label"] == label and best["score"] == pytest.approx(probability, abs=1e-3)
        plain = classify(str(root / "data" / name))[0]
        differs += plain["label"] != label or abs(plain["score"] - probability) > 1e-2
    assert differs  # by itself it drops alpha, and clips 16 bits


def test_an_opened_picture_is_as_the_run_saw_it(run: tuple[Path, Path], tmp_path: Path) -> None:
    out, _ = run
    for name, seen in write_pictures(tmp_path, ("x",), 3000, 7).items():
        found = open_picture(tmp_path / name, out / "finetune" / "model")
        assert found.mode == "RGB" and np.abs(np.asarray(found) - seen).max() <= 0.5 + 1e-6


def test_a_model_that_says_nothing_was_trained_as_it_was_before(tmp_path: Path) -> None:
    old = options_of_model(DataConfig(background="blue", split_seed=3), None)
    assert (old.background, old.range, old.exif_rotation, old.split_seed) == ("keep", (0, 65535), "apply", 3)
    new = options_of_model(DataConfig(), kept_options(DataConfig(exif_rotation="ignore"), None))
    assert (new.background, new.range, new.exif_rotation) == ("white", "auto", "ignore")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    image = Image.new("RGBA", (S, S), (9, 8, 7, 0))
    image.save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png", tmp_path).getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize("kept", ["white", {"background": "no colour"}, {"range": [2, 1]}, [], {"background": 3}])
def test_a_damaged_entry_is_one_sentence(kept: object) -> None:
    with pytest.raises(UserError, match=r"sdfast_pictures in the model's preprocessor_config\.json does not"):
        options_of_model(DataConfig(), kept)


def test_what_is_no_picture_or_no_model_is_one_sentence(run: tuple[Path, Path], tmp_path: Path) -> None:
    model = run[0] / "finetune" / "model"
    with pytest.raises(UserError, match=r"a.png: cannot be read \(No such file or directory\)\."):
        open_picture(tmp_path / "a.png", model)
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"a.png: not an image of a known format\."):
        open_picture(tmp_path / "a.png", model)
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json"):
        open_picture(tmp_path / "a.png", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"sdfast_pictures": kept_options(DataConfig(), None)})
    )
    (tmp_path / "f.tif").write_bytes(tiff(np.ones((S, S, 1), np.float32), 1))
    with pytest.raises(UserError, match="floating-point pixels have no known range"):
        open_picture(tmp_path / "f.tif", tmp_path)
    (tmp_path / "d.tif").write_bytes(tiff(np.full((S, S, 1), 700, np.uint16), 1))
    assert open_picture(tmp_path / "d.tif", tmp_path).getpixel((0, 0)) == (174,) * 3  # 700 of 1,023
