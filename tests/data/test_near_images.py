"""Pictures of test that nearly equal one of train: made by PIL from others, and pictures that only look alike."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from sdfast.data.near import pairs_with_equal_keys
from sdfast.modalities.images.near import hashes, nearest
from sdfast.modalities.images.pack import ImagePack

Build = Callable[..., ImagePack]
FASHION = Path(__file__).resolve().parents[2] / "sdfast/bundled/fashion-mnist"


def scene(seed: int, side: int = 96) -> Image.Image:
    """A picture of a few soft shapes and some grain."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray(np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": as_jpeg,
    "smaller": lambda image: image.resize((48, 48), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((200, 200), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", [16, 32, 64])
def test_changed_pictures_are_found_and_others_are_not(change: str, side: int) -> None:
    def array(images: list[Image.Image]) -> NDArray[np.uint8]:
        return np.stack([np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images])

    scenes = [scene(seed) for seed in range(40)]
    others = [CHANGES[change](image) for image in scenes[::2]] + [scene(seed) for seed in range(100, 120)]
    found = nearest(hashes(array(scenes)), hashes(array(others)))
    assert all(other < 20 and row == 2 * other for row, other in found)
    assert len(found) >= 18


def test_pieces_and_types() -> None:
    images = np.stack([np.asarray(scene(seed, 24)) for seed in range(30)])
    whole = hashes(images)
    assert nearest(whole, hashes(images[10:15])) == [(10 + row, row) for row in range(5)]
    threaded = hashes(images, 2)
    assert np.array_equal(whole.bits, threaded.bits) and np.array_equal(whole.small, threaded.small)
    for other in (images.astype(np.uint16) * 257, images.astype(np.float16) / 255):
        assert nearest(whole, hashes(other)) == [(row, row) for row in range(30)]
    four = np.concatenate((images, images[..., :1]), axis=3)
    assert nearest(hashes(four), hashes(four[3:4])) == [(3, 0)]
    assert nearest(hashes(images[:0]), whole) == nearest(whole, hashes(images[:0])) == []


def test_blank_and_nearly_blank_pictures_are_no_pairs() -> None:
    random = np.random.default_rng(0)
    blank = np.full((20, 32, 32, 3), 200, np.uint8) + random.integers(0, 6, (20, 32, 32, 3), dtype=np.uint8)
    ramp = np.broadcast_to(np.linspace(100, 106, 32)[:, None, None], (20, 32, 32, 3)).astype(np.uint8)
    for images in (blank, ramp, np.zeros((20, 32, 32, 1), np.uint8)):
        assert nearest(hashes(images), hashes(images)) == []


def test_nothing_of_the_bundled_pictures_is_near() -> None:
    train, test = (
        np.frombuffer(
            gzip.decompress((FASHION / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
        ).reshape(-1, 28, 28, 1)[:1000]
        for name in ("train", "t10k")
    )
    assert nearest(hashes(train), hashes(test)) == []
    thumbnails = [images.reshape(-1, 784).astype(float) for images in (train, test)]
    correlation = np.corrcoef(*thumbnails)[:1000, 1000:]
    assert (correlation > 0.95).sum() > 100  # though so many are alike


def write(folder: Path, images: dict[str, Image.Image]) -> Path:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    return folder


def test_a_pack_says_how_many_and_is_the_same(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {f"train/{'ab'[seed % 2]}/{seed}.png": scene(seed) for seed in range(12)}
    test = {f"test/{'ab'[seed % 2]}/{seed}.png": scene(50 + seed) for seed in range(6)}
    test |= {"test/a/again.jpg": as_jpeg(scene(2)), "test/b/bright.png": ImageEnhance.Brightness(scene(5)).enhance(1.1)}
    pack = build(write(tmp_path / "photos", train | test))
    (said,) = (warning for warning in pack.warnings if "nearly equal" in warning)
    assert said.startswith(
        "Images of test that nearly equal one of train (nearly the same picture, but for size, compression, brightness "
        "or contrast): 2 of 8 (the first: train/a/2.png (train) and test/a/again.jpg (test))."
    )
    assert pack.manifest["duplicates"]["near"] == {"train, test": 2}
    monkeypatch.setattr(ImagePack.builder, "nearest", lambda self, one, other: [])
    (tmp_path / "out").rename(tmp_path / "before")
    without = build(tmp_path / "photos")
    assert without.fingerprint == pack.fingerprint and not any("nearly equal" in each for each in without.warnings)


def test_rows_that_were_held_out_are_compared_and_copies_are_not_counted(tmp_path: Path, build: Build) -> None:
    images = {f"{'ab'[seed % 2]}/{seed}.png": scene(seed % 8) for seed in range(16)}  # each twice
    images |= {f"{'ab'[seed % 2]}/{seed}_bright.png": CHANGES["brighter"](scene(seed)) for seed in range(8)}
    pack = build(write(tmp_path / "photos", images), test_fraction=0.5)

    def scenes(split: str, bright: bool) -> set[int]:
        names = [Path(name).stem for name in pack.split(split).names]
        return {int(name.split("_")[0]) % 8 for name in names if ("bright" in name) == bright}

    near = sum(scene in scenes("train", False) for scene in scenes("test", True))
    near += 2 * sum(scene in scenes("train", True) for scene in scenes("test", False))  # both copies
    assert near and pack.manifest["duplicates"]["near"] == {"train, test": near}


def test_pairs_with_equal_keys_are_all_of_them() -> None:
    random = np.random.default_rng(0)
    keys, others = (random.integers(0, 50, count).astype(np.uint64) for count in (300, 200))
    found = {pair for block in pairs_with_equal_keys(keys, others) for pair in zip(*map(list, block), strict=True)}
    assert found == {(row, other) for row in range(300) for other in range(200) if keys[row] == others[other]}
    assert list(pairs_with_equal_keys(keys, others[:0])) == list(pairs_with_equal_keys(keys[:0], others)) == []
