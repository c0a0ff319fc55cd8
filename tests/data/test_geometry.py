"""How pictures of any aspect come to the model's size, against Pillow by hand and against transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import pixels
from PIL import Image

from sdfast.data.config import DataConfig
from sdfast.errors import UserError
from sdfast.modalities.images.geometry import around, aspect_factor, inside, tiles
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.pictures import kept_options, open_picture, open_tiles, options_of_model
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.modalities.images.transform import Transform

BILINEAR = Image.Resampling.BILINEAR
SIZES = [(40, 90), (90, 40), (33, 32), (7, 300), (64, 32), (31, 31)]  # heights and widths


def transform(height: int, width: int, channels: int = 3, **options: Any) -> Transform:
    half = (0.5,) * channels
    return Transform(height, width, channels, half, half).with_options(DataConfig(**options))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(32, 32), (24, 48)])
def test_pad_keeps_the_aspect_in_the_middle_of_the_background(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = Image.fromarray(pixels(0, *size))
    scale = min(target[0] / size[0], target[1] / size[1])
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in size)
    expected = np.empty((*target, 3), np.uint8)
    expected[:] = (200, 16, 46)
    top, left = (target[0] - height) // 2, (target[1] - width) // 2
    expected[top : top + height, left : left + width] = np.asarray(image.resize((width, height), BILINEAR))
    found = transform(*target, resize="pad", background="#c8102e").apply(image)
    np.testing.assert_array_equal(found, expected)
    assert height == target[0] or width == target[1]


def test_padding_of_grey_is_the_lightness_of_the_background_and_of_keep_black() -> None:
    image = Image.fromarray(pixels(1, 8, 16)[..., 0])
    for background, level in (("#c8102e", 74), ("keep", 0), ("white", 255)):  # 0.299 * 200 + 0.587 * 16 + 0.114 * 46
        row = transform(16, 16, 1, resize="pad", background=background).apply(image)
        assert row.shape == (16, 16, 1) and (row[:4] == level).all() and (row[12:] == level).all()
        np.testing.assert_array_equal(row[4:12, :, 0], np.asarray(image))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(32, 32), (24, 48)])
def test_crop_keeps_the_aspect_and_takes_the_centre(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = Image.fromarray(pixels(2, *size))
    if target[0] * size[1] >= target[1] * size[0]:  # too wide
        height, width = target[0], target[0] * size[1] // size[0]
    else:
        height, width = target[1] * size[0] // size[1], target[1]
    top, left = (height - target[0]) // 2, (width - target[1]) // 2
    whole = np.asarray(image.resize((width, height), BILINEAR))
    found = transform(*target, resize="crop").apply(image)
    np.testing.assert_array_equal(found, whole[top : top + target[0], left : left + target[1]])


def test_a_strip_is_not_resized_to_be_thrown_away() -> None:
    """1 x 60,000 pixels would be 96 x 5,760,000: only the middle of it is made, with the same colours."""
    random = np.random.default_rng(0).integers(0, 256, (1, 60_000, 3), dtype=np.uint8)
    found = transform(96, 96, resize="crop").apply(Image.fromarray(random))
    assert around((60_000, 1), (96, 96)) == (5_760_000, 96)
    centre = random[0, 29_999:30_001].astype(int)  # half a pixel of each is seen
    assert np.abs(found[0, [0, -1]].astype(int) - centre).max() <= 2 and (found == found[:1]).all()


def test_the_aspect_of_the_model_is_not_touched_by_any() -> None:
    image = Image.fromarray(pixels(3, 40, 80))
    rows = [transform(16, 32, resize=resize).apply(image) for resize in ("squash", "pad", "crop", None)]
    for row in rows:
        np.testing.assert_array_equal(row, np.asarray(image.resize((32, 16), BILINEAR)))


def test_sizes_by_hand() -> None:
    assert inside((1920, 1080), (224, 224)) == (224, 126) and around((1920, 1080), (224, 224)) == (398, 224)
    assert inside((1, 9000), (28, 28)) == (1, 28)
    assert aspect_factor((1920, 1080), (224, 224)) == aspect_factor((1080, 1920), (224, 224)) == pytest.approx(16 / 9)
    assert aspect_factor((1920, 1080), (320, 180)) == 1


def test_what_is_not_asked_for_is_not_in_the_json() -> None:
    assert transform(6, 8) == transform(6, 8, resize="squash") == Transform(6, 8, 3, (0.5,) * 3, (0.5,) * 3)
    assert set(transform(6, 8).to_json()) == {"height", "width", "channels", "mean", "std", "resample"}
    for options in ({"resize": "pad", "background": "red"}, {"resize": "crop", "tile": 9}, {"tile": [3, 4]}):
        whole = transform(6, 8, **options)
        assert Transform.from_json(json.loads(json.dumps(whole.to_json()))) == whole != transform(6, 8)
    with pytest.raises(ValueError, match="resize must be one of squash, pad, crop"):
        Transform(6, 8, resize="fit")


# Tiles.


@pytest.mark.parametrize(
    ("size", "tile"), [((10, 25), (4, 10)), ((9, 9), (4, 4)), ((4, 30), (7, 8)), ((12, 8), (4, 4))]
)
def test_tiles_cover_a_picture_evenly(size: tuple[int, int], tile: tuple[int, int]) -> None:
    boxes = tiles(size, tile)
    covered = np.zeros(size[::-1], int)
    for left, top, right, bottom in boxes:
        assert right - left == min(tile[0], size[0]) and bottom - top == min(tile[1], size[1])
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1 and covered.shape == size[::-1]
    assert len(boxes) == math.ceil(size[0] / tile[0]) * math.ceil(size[1] / tile[1])
    for starts in (sorted({box[axis] for box in boxes}) for axis in (0, 1)):
        steps = np.diff(starts)
        assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_tiles_are_parts_of_the_picture_brought_to_the_models_size() -> None:
    image = Image.fromarray(pixels(4, 20, 31))
    found = transform(8, 8, tile=12).apply(image)
    boxes = [(left, top) for top in (0, 8) for left in (0, 10, 19)]  # 9.5 is rounded up
    assert found.shape == (6, 8, 8, 3) and found.dtype == np.uint8
    for row, (left, top) in zip(found, boxes, strict=True):
        part = image.crop((left, top, left + 12, top + 12)).resize((8, 8), BILINEAR)
        np.testing.assert_array_equal(row, np.asarray(part))
    small = transform(8, 8, tile=40, resize="pad").apply(image)
    np.testing.assert_array_equal(small[0], transform(8, 8, resize="pad").apply(image))
    exact = transform(12, 12, tile=12).apply(image)
    np.testing.assert_array_equal(exact[0], np.asarray(image)[:12, :12])


# What is kept for the users of a model.


def processor_of(folder: Path, size: tuple[int, int], **options: Any) -> dict[str, Any]:
    kept = kept_options(DataConfig(**options), None)
    written = ImageProcessor(*size, (0.5,) * 3, (0.25,) * 3, kept).to_json()
    (folder / "preprocessor_config.json").write_text(json.dumps(written))
    assert ImageProcessor.from_json(written) == ImageProcessor(*size, (0.5,) * 3, (0.25,) * 3, kept)
    return written


def by_transformers(folder: Path, image: Image.Image) -> Any:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return np.asarray(loaded(image, return_tensors="np")["pixel_values"][0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_the_saved_processor_does_what_transformers_can(size: tuple[int, int], resize: str, tmp_path: Path) -> None:
    processor_of(tmp_path, (32, 32), resize=resize)
    image = Image.fromarray(pixels(5, *size))
    row = transform(32, 32, resize=resize).apply(image)
    expected = (row.transpose(2, 0, 1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(by_transformers(tmp_path, image), expected, atol=1e-5)


@pytest.mark.parametrize(("target", "resize"), [((32, 32), "pad"), ((24, 48), "crop"), ((24, 48), "pad")])
def test_an_opened_picture_has_the_models_size_where_transformers_cannot(
    target: tuple[int, int], resize: str, tmp_path: Path
) -> None:
    written = processor_of(tmp_path, target, resize=resize, background="red")
    assert written["image_processor_type"] == "ViTImageProcessor" and written["sdfast_pictures"]["resize"] == resize
    for number, size in enumerate(SIZES):
        Image.fromarray(pixels(number, *size)).save(tmp_path / "a.png")
        opened = open_picture(tmp_path / "a.png", tmp_path)
        row = transform(*target, resize=resize, background="red").apply(Image.fromarray(pixels(number, *size)))
        np.testing.assert_array_equal(np.asarray(opened), row)
        expected = (row.transpose(2, 0, 1) / 255 - 0.5) / 0.25
        np.testing.assert_allclose(by_transformers(tmp_path, opened), expected, atol=1e-5)


def test_tiles_are_opened_for_a_model_of_tiles(tmp_path: Path) -> None:
    processor_of(tmp_path, (8, 8), tile=12)
    Image.fromarray(pixels(4, 20, 31)).save(tmp_path / "a.png")
    opened = open_tiles(tmp_path / "a.png", tmp_path)
    rows = transform(8, 8, tile=12).apply(Image.fromarray(pixels(4, 20, 31)))
    np.testing.assert_array_equal(np.stack([np.asarray(tile) for tile in opened]), rows)
    with pytest.raises(UserError, match=r"was trained on tiles \(data\.tile\).* give open_tiles"):
        open_picture(tmp_path / "a.png", tmp_path)
    processor_of(tmp_path, (8, 8))
    (whole,) = open_tiles(tmp_path / "a.png", tmp_path)
    assert whole.size == (8, 8) and open_picture(tmp_path / "a.png", tmp_path).size == (31, 20)


def test_only_what_is_not_the_default_is_kept_and_what_is_not_kept_was_not_done() -> None:
    assert set(kept_options(DataConfig(resize="squash"), None)) == {"background", "exif_rotation", "range"}
    kept = kept_options(DataConfig(resize="pad", tile=[3, 4]), None)
    assert (kept["resize"], kept["tile"]) == ("pad", [3, 4])
    there = options_of_model(DataConfig(), kept)
    assert (there.resize, there.tile) == ("pad", (3, 4))
    for before in (None, kept_options(DataConfig(), None)):
        old = options_of_model(DataConfig(resize="crop", tile=5), before)
        assert old.resize is None and old.tile is None


@pytest.mark.parametrize("wrong", [{"tile": 0}, {"tile": [0, 3]}, {"resize": "letterbox"}, {"tile": 1 << 20}])
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataConfig(**wrong)


# What is said.


def said(tmp_path: Path, sizes: list[tuple[int, int]], **options: Any) -> tuple[list[str], ImagePack]:
    folder = tmp_path / f"pack{len(list(tmp_path.iterdir()))}"
    (tmp_path / "data").mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        Image.fromarray(pixels(number, *size)).save(tmp_path / "data" / f"{number:02d}.png")
    sentences: list[str] = []
    chosen = DataConfig(**options)
    how = Transform(16, 16).with_options(chosen)
    pack = ImagePack.prepare(str(tmp_path / "data"), folder, how, chosen, sentences.append)
    return sentences, pack


WIDE = [(20, 20)] * 5 + [(20, 31), (40, 20), (10, 48)]


def test_many_that_are_squashed_are_said_until_it_is_meant(tmp_path: Path) -> None:
    sentences, pack = said(tmp_path, WIDE)
    assert sentences == [
        "Images whose aspect changes by a factor of more than 1.5, as they are squashed to 16 x 16: 3 of 8, most "
        "07.png, of 48 x 10, by 4.8; data.resize=pad or crop keeps it, and data.resize=squash says that it is meant."
    ]
    meant, same = said(tmp_path, WIDE, resize="squash")
    assert (
        meant == []
        and same.fingerprint == pack.fingerprint
        and same.manifest["transform"] == pack.manifest["transform"]
    )
    assert pack.manifest["conversions"] == same.manifest["conversions"] == {"other_aspect": 3}
    assert said(tmp_path, WIDE[:-1], resize="pad")[0] == []


def test_few_that_are_squashed_are_not_said_and_much_that_is_cropped_is(tmp_path: Path) -> None:
    assert said(tmp_path, WIDE[:6] + WIDE[:2])[0] == []
    sentences, _ = said(tmp_path, WIDE, resize="crop")
    assert sentences == [
        "Images of which data.resize=crop leaves out more than a third: 3 of 8, most of 07.png, of 48 x 10, of which "
        "21% is seen."
    ]


def test_tiles_and_those_of_one_colour_are_counted(tmp_path: Path) -> None:
    half = pixels(9, 20, 40)
    half[:, :20] = 7  # four tiles of eight
    (tmp_path / "data").mkdir()
    Image.fromarray(half).save(tmp_path / "data" / "half.png")
    sentences, pack = said(tmp_path, [(20, 20), (30, 10), (10, 10)], tile=10)
    assert sentences == [
        "Images larger than data.tile=10 x 10, which are cut into tiles: 3 of 4; there are 16 tiles in all.",
        "Tiles of one colour, from which nothing can be learnt: 4 of 16, in 1 images (half.png).",
    ]
    train = pack.split("train")
    assert train.tiles is not None and dict(zip(train.names, train.tiles.tolist(), strict=True)) == {
        "00.png": 4,
        "01.png": 3,
        "02.png": 1,
        "half.png": 8,
    }


def test_another_way_is_another_pack_and_the_same_way_is_not(tmp_path: Path) -> None:
    packs = [
        said(tmp_path, WIDE, **options)[1] for options in ({}, {"resize": "pad"}, {"resize": "crop"}, {"tile": 20})
    ]
    assert len({pack.fingerprint for pack in packs}) == 4
    options = DataConfig(resize="pad")
    again = ImagePack.prepare(
        str(tmp_path / "data"), packs[1].directory, Transform(16, 16).with_options(options), options, pytest.fail
    )
    assert again.fingerprint == packs[1].fingerprint
