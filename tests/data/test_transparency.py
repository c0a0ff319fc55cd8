"""Transparent pictures are blended with the background; the truth is float64 arithmetic on the samples of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_samples import pixels
from file_samples import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, PALETTE, encoded, png, tiff
from numpy.typing import NDArray
from PIL import Image, features

from sdfast.data.config import DataConfig
from sdfast.modalities.images.decode import decode
from sdfast.modalities.images.levels import flattened
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.transform import Transform

H, W = 6, 8
RED = (200, 16, 46)
Case = tuple[bytes, NDArray[np.float64], NDArray[np.float64]]  # file, colours [H, W, 1 or 3] of 255, alpha [H, W] of 1


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def samples(channels: int, largest: int = 255) -> NDArray[np.int64]:
    """[H, W, channels], with the two ends among them."""
    found = rng().integers(0, largest + 1, (H, W, channels))
    found[0, 0], found[0, 1] = 0, largest
    return found


def with_alpha(kind: str, mode: str, **options: object) -> Case:
    values = samples(len(mode)).astype(np.uint8)
    return encoded(Image.fromarray(values, mode), kind, **options), values[..., :-1] * 1.0, values[..., -1] / 255


def animated(kind: str, **options: object) -> Case:
    frames = [samples(4).astype(np.uint8), np.full((H, W, 4), 99, np.uint8)]
    first, second = (Image.fromarray(frame) for frame in frames)
    raw = encoded(first, kind, save_all=True, append_images=[second], **options)
    return raw, frames[0][..., :3] * 1.0, frames[0][..., 3] / 255


def gif() -> Case:
    index = np.arange(H * W).reshape(H, W) % 4
    palette = samples(3)[0, :4].astype(np.uint8)
    frames = [Image.fromarray(values.astype(np.uint8), "P") for values in (index, index[::-1])]
    for frame in frames:
        frame.putpalette(palette.tobytes())
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=2, disposal=2)
    return raw, palette[index] * 1.0, (index != 2) * 1.0


def palette_png(alphas: list[int]) -> Case:
    index = np.arange(H * W).reshape(H, W) % 4
    palette = samples(3)[0, :4].astype(np.uint8)
    alpha = np.array([*alphas, 255, 255, 255, 255])[:4]
    return png(index, 8, PALETTE, alphas, palette.tobytes()), palette[index] * 1.0, alpha[index] / 255


def keyed(depth: int, kind: int) -> Case:
    """One sample or colour of the file is transparent, all others are opaque."""
    channels, largest = 1 if kind == GREY else 3, (1 << depth) - 1
    values = samples(channels, largest)
    key = values[2, 3]
    values[3, 4, 0] = key[0] ^ 1  # nearly the same: of 16 bits, the upper 8 are equal
    values[3, 4, 1:] = key[1:]
    return png(values, depth, kind, key.tolist()), values * (255 / largest), (values != key).any(axis=-1) * 1.0


def deep_png(kind: int) -> Case:
    values = samples({GREY_ALPHA: 2, COLOUR_ALPHA: 4}[kind], 65535)
    return png(values, 16, kind), values[..., :-1] / 257, values[..., -1] / 65535


def premultiplied(channels: int, dtype: type) -> Case:
    largest = np.iinfo(dtype).max
    values = samples(channels, largest)
    alpha = values[..., -1] / largest
    stored = np.concatenate((np.rint(values[..., :-1] * alpha[..., None]), values[..., -1:]), axis=-1)
    colours = np.divide(
        stored[..., :-1], alpha[..., None], out=np.zeros((H, W, channels - 1)), where=alpha[..., None] > 0
    )
    return tiff(stored.astype(dtype), 1 if channels == 2 else 2, [1]), colours * (255 / largest), alpha


def unassociated(dtype: type, **options: object) -> Case:
    largest = np.iinfo(dtype).max
    values = samples(4, largest)
    raw = tiff(values.astype(dtype), 2, [2], **options)  # type: ignore[arg-type]
    return raw, values[..., :3] * (255 / largest), values[..., 3] / largest


EXACT: dict[str, Callable[[], Case]] = {
    "PNG RGBA": lambda: with_alpha("PNG", "RGBA"),
    "PNG LA": lambda: with_alpha("PNG", "LA"),
    "WebP": lambda: with_alpha("WEBP", "RGBA", lossless=True, exact=True),
    "TIFF RGBA": lambda: unassociated(np.uint8),
    "TIFF LA": lambda: with_alpha("TIFF", "LA"),
    "JPEG 2000": lambda: with_alpha("JPEG2000", "RGBA"),
    "APNG": lambda: animated("PNG"),
    "animated WebP": lambda: animated("WEBP", lossless=True, exact=True),
    "animated GIF": gif,
    "palette, one entry": lambda: palette_png([255, 0]),
    "palette, alphas": lambda: palette_png([10, 128, 0, 250]),
    "grey 1 bit": lambda: keyed(1, GREY),
    "grey 2 bits": lambda: keyed(2, GREY),
    "grey 4 bits": lambda: keyed(4, GREY),
    "grey 8 bits": lambda: keyed(8, GREY),
    "RGB 8 bits": lambda: keyed(8, COLOUR),
}
ROUNDED: dict[str, Callable[[], Case]] = {  # rounded to 8 bits once more before they are blended
    "grey 16 bits": lambda: keyed(16, GREY),
    "RGB 16 bits": lambda: keyed(16, COLOUR),
    "PNG LA 16 bits": lambda: deep_png(GREY_ALPHA),
    "PNG RGBA 16 bits": lambda: deep_png(COLOUR_ALPHA),
    "TIFF RGBA 16 bits": lambda: unassociated(np.uint16),
    "TIFF RGBA 16 bits, deflate, big-endian": lambda: unassociated(np.uint16, deflate=True, order=">"),
    "TIFF premultiplied RGBA": lambda: premultiplied(4, np.uint8),
    "TIFF premultiplied LA": lambda: premultiplied(2, np.uint8),
    "TIFF premultiplied RGBA 16 bits": lambda: premultiplied(4, np.uint16),
}


def row(
    raw: bytes | NDArray[np.uint8], channels: int = 3, **options: object
) -> tuple[NDArray[np.uint8], frozenset[str]]:
    transform = Transform(H, W, channels, (0.5,) * channels, (0.5,) * channels)
    return decode(raw, transform, DataConfig(**options), levels=(0, 65535))


def blended(case: Case, background: tuple[int, int, int]) -> NDArray[np.float64]:
    _, colours, alpha = case
    return colours * alpha[..., None] + np.array(background) * (1 - alpha[..., None])


@pytest.mark.parametrize("background", ["white", "black", "rgb(200, 16, 46)"])
@pytest.mark.parametrize("name", [*EXACT, *ROUNDED])
def test_transparent_pictures_lie_on_the_background(name: str, background: str) -> None:
    case = (EXACT | ROUNDED)[name]()
    colour = {"white": (255, 255, 255), "black": (0, 0, 0)}.get(background, RED)
    found, notes = row(case[0], background=background)
    error = np.abs(found - blended(case, colour)).max()
    assert error <= (0.5 + 1e-9 if name in EXACT else 1.5), error
    assert "transparent" in notes


def test_every_colour_and_alpha_is_blended_exactly() -> None:
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    image = Image.fromarray(np.stack([value, 255 - value, value // 2, alpha], axis=-1).astype(np.uint8))
    for background in ((255, 255, 255), (0, 127, 38)):
        found = np.asarray(flattened(image, f"rgb{background}")[0], np.float64)
        truth = np.asarray(image, np.float64)[..., :3] * (alpha / 255)[..., None]
        truth += np.array(background) * (1 - alpha / 255)[..., None]
        assert np.array_equal(found, np.rint(truth))


def test_avif() -> None:
    if not features.check("avif"):
        pytest.skip("this PIL was built without AVIF")
    raw = encoded(Image.new("RGBA", (W, H), (0, 0, 0, 0)), "AVIF")
    assert np.all(row(raw)[0] == 255) and row(raw)[1] >= {"transparent"}


@pytest.mark.parametrize("size", [(3, 4), (40, 30)])
def test_the_picture_is_blended_before_it_is_resized(size: tuple[int, int]) -> None:
    """Colours under transparent pixels must not bleed into their neighbours."""
    values = np.zeros((H, W, 4), np.uint8)
    values[:, ::2, 3], values[:, 1::2, 0] = 255, 255  # opaque black beside transparent red
    blend = np.where(values[..., 3:] == 255, values[..., :3], 255).astype(np.uint8)
    transform = Transform(*size)
    found, _ = decode(encoded(Image.fromarray(values), "PNG"), transform, DataConfig())
    truth = Image.fromarray(blend).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(truth))
    np.testing.assert_array_equal(found[..., 0], found[..., 1])  # no red


def test_one_channel_is_the_grey_of_the_blend() -> None:
    case = EXACT["PNG RGBA"]()
    luma = blended(case, RED) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(row(case[0], 1, background="#c8102e")[0][..., 0], luma, atol=1.1)


def test_a_drawing_on_nothing_is_not_one_black_square() -> None:
    drawing = np.zeros((H, W, 4), np.uint8)
    drawing[1:3, 2:5, 3] = 255
    raw = encoded(Image.fromarray(drawing), "PNG")
    found, notes = row(raw)
    assert notes == {"transparent"} and found[1, 2].tolist() == [0, 0, 0] and found[0, 0].tolist() == [255, 255, 255]
    kept, notes = row(raw, background="keep")
    assert notes == {"transparent", "blank"} and not kept.any()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_opaque_alpha_channel_changes_no_bit(mode: str, channels: int) -> None:
    plain = Image.fromarray(pixels(1, 50, 37)).convert("L" if mode == "LA" else "P" if mode[0] == "P" else "RGB")
    image = plain.copy()
    options: dict[str, object] = {}
    if mode == "P":
        options["transparency"] = bytes([255] * 256)
    else:
        image.putalpha(255)
    raw = encoded(image, "TIFF" if mode == "PA" else "PNG", **options)
    before = plain.convert("RGB" if channels == 3 else "L").resize((W, H), Image.Resampling.BILINEAR)
    found, notes = row(raw, channels)
    np.testing.assert_array_equal(found, np.asarray(before).reshape(found.shape))
    assert not notes


def test_kept_colours_are_those_of_the_file() -> None:
    for name in ("PNG RGBA", "TIFF RGBA", "WebP"):
        raw, colours, _ = EXACT[name]()
        np.testing.assert_array_equal(row(raw, background="keep")[0], colours)


def test_arrays_with_alpha_are_blended_too() -> None:
    values = samples(4).astype(np.uint8)
    found, notes = row(values)
    case = (b"", values[..., :3] * 1.0, values[..., 3] / 255)
    assert np.array_equal(found, np.rint(blended(case, (255, 255, 255)))) and notes == {"transparent"}


def test_a_fourth_band_without_a_name_is_no_alpha() -> None:
    """A TIFF that does not say what its fourth band is may hold infrared; red, green and blue are used as they are."""
    for dtype in (np.uint8, np.uint16):
        values = samples(4, np.iinfo(dtype).max)
        for extra in (None, [0]):
            found, notes = row(tiff(values.astype(dtype), 2, extra))
            np.testing.assert_array_equal(found, np.rint(values[..., :3] * (255 / np.iinfo(dtype).max)))
            assert "extra_bands" in notes and "transparent" not in notes


@pytest.mark.parametrize("kind", ["folder", "csv", "parquet", "saved data set"])
def test_every_kind_of_source_is_blended(kind: str, tmp_path: Path, build: Callable[..., ImagePack]) -> None:
    names = ["animated GIF", "palette, alphas", "PNG LA"]
    cases = [EXACT[name]() for name in names]
    source = tmp_path / "source"
    source.mkdir()
    cells = [{"bytes": raw, "path": None} for raw, *_ in cases]
    if kind == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pytest.importorskip("pyarrow").table({"image": cells}), source / "train.parquet")
    elif kind == "saved data set":
        datasets = pytest.importorskip("datasets")
        features_ = datasets.Features({"image": datasets.Image()})
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"image": cells}, features_)}).save_to_disk(source)
    else:
        for index, (raw, *_) in enumerate(cases):
            (source / f"{index}.png").write_bytes(raw)
        if kind == "csv":
            (source / "list.csv").write_text("file_name\n0.png\n1.png\n2.png\n")
    pack = build(source / "list.csv" if kind == "csv" else source, background="#c8102e")
    for image, case in zip(pack.split("train").images, cases, strict=True):
        np.testing.assert_array_equal(image, np.rint(blended(case, RED)))
    assert pack.manifest["conversions"]["transparent"] == 3
