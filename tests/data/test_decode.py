"""Hard files: each gives a row or one short reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_samples import pixels
from PIL import Image

from sdfast.data.config import DataConfig
from sdfast.data.items import Item, read_item
from sdfast.modalities.images.decode import BrokenImage, decode, decoding
from sdfast.modalities.images.transform import Transform

TRANSFORM = Transform(6, 8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def row_of(raw: bytes, **options: object) -> np.ndarray:
    return decode(raw, TRANSFORM, DataConfig(**options))[0]


def notes_of(raw: bytes) -> set[str]:
    return set(decode(raw, TRANSFORM, DataConfig())[1])


def reason_of(raw: bytes | OSError, **options: object) -> str:
    with decoding(DataConfig(**options)), pytest.raises(BrokenImage) as caught:
        decode(raw, TRANSFORM, DataConfig(**options))
    return str(caught.value)


def png_header(width: int, height: int) -> bytes:
    """A PNG of the given size whose pixels are missing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return header + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_truncated(kind: str) -> None:
    whole = encoded(Image.fromarray(pixels(0, 64, 64)), kind)
    assert row_of(whole).shape == (6, 8, 3)
    assert reason_of(whole[: len(whole) // 2]).startswith(("truncated or damaged", "not an image"))


def test_truncated_says_so() -> None:
    for kind in ("PNG", "JPEG"):
        whole = encoded(Image.fromarray(pixels(0, 64, 64)), kind)
        assert "truncated" in reason_of(whole[: len(whole) // 2])


def test_empty_and_foreign_content() -> None:
    assert reason_of(b"") == "empty (0 bytes)"
    assert reason_of(b"<html>not found</html>") == "not an image of a known format"


def test_postscript_is_not_run() -> None:
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n").startswith("not an")


def test_every_cut_and_flip_of_a_file_gives_a_row_or_a_reason() -> None:
    """No damage may raise anything but `BrokenImage`."""
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = encoded(Image.fromarray(pixels(1, 16, 16)), kind)
        outcomes = set()
        for _ in range(60):
            damaged = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
            damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
            try:
                with decoding(DataConfig()):
                    outcomes.add(decode(bytes(damaged), TRANSFORM, DataConfig())[0].shape)
            except BrokenImage:
                outcomes.add("broken")
        assert "broken" in outcomes


def test_unreadable_files_give_the_reason(tmp_path: Path) -> None:
    missing = read_item(Item("a.png", None, (tmp_path / "a.png").read_bytes))
    assert isinstance(missing, OSError)
    assert reason_of(missing) == "cannot be read (No such file or directory)"


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really_png.jpg"
    Image.fromarray(pixels(2, 6, 8)).save(path, "PNG")
    np.testing.assert_array_equal(row_of(path.read_bytes()), pixels(2, 6, 8))


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        raw = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.all(row_of(raw) == 10), kind
        assert notes_of(raw) == {"animated", "blank"}, kind


def test_cmyk_is_converted() -> None:
    cmyk = Image.new("CMYK", (8, 6), (255, 0, 0, 0))
    raw = encoded(cmyk, "TIFF")
    np.testing.assert_array_equal(row_of(raw)[0, 0], [0, 255, 255])
    assert notes_of(raw) == {"cmyk", "blank"}
    assert row_of(encoded(cmyk, "JPEG"))[0, 0, 0] < 30


def test_palette_with_transparency_is_looked_up() -> None:
    image = Image.new("P", (8, 6), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    raw = encoded(image, "PNG", transparency=1)
    np.testing.assert_array_equal(row_of(raw, background="keep")[0, 0], [0, 0, 255])
    np.testing.assert_array_equal(row_of(raw)[0, 0], [255, 255, 255])
    assert notes_of(raw) == {"transparent", "blank"}


def test_an_opaque_alpha_channel_is_no_transparency() -> None:
    assert notes_of(encoded(Image.new("RGBA", (8, 6), (1, 2, 3, 255)), "PNG")) == {"blank"}
    assert notes_of(encoded(Image.new("RGBA", (8, 6), (1, 2, 3, 254)), "PNG")) == {"blank", "transparent"}


def test_one_colour_and_nearly_one_colour_are_noted() -> None:
    """Blank is one colour; faint is a standard deviation below 1 in every channel; a line on a page is neither."""
    row = np.full((6, 8, 3), (200, 30, 40), np.uint8)
    assert notes_of(encoded(Image.fromarray(row), "PNG")) == {"blank"}
    row[2, 3, 1] += 6
    assert 0 < row[..., 1].std() < 1 and notes_of(encoded(Image.fromarray(row), "PNG")) == {"faint"}
    row[2, 3, 1] += 2
    assert row[..., 1].std() > 1 and notes_of(encoded(Image.fromarray(row), "PNG")) == set()
    row[:] = 255
    row[2] = 0
    assert notes_of(encoded(Image.fromarray(row), "PNG")) == set()


def test_exif_rotation_is_ignored_or_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    raw = encoded(Image.fromarray(pixels(5, 6, 8)), "PNG", exif=exif)
    np.testing.assert_array_equal(row_of(raw, exif_rotation="ignore"), pixels(5, 6, 8))
    np.testing.assert_array_equal(row_of(raw), pixels(5, 6, 8)[::-1, ::-1])
    assert notes_of(raw) == {"exif_rotation"}


def test_pil_turns_a_tiff_by_itself() -> None:
    tags = Image.Exif()
    tags[0x0112] = 3
    raw = encoded(Image.fromarray(pixels(5, 6, 8)), "TIFF", exif=tags)
    for rotation in ("ignore", "apply"):
        np.testing.assert_array_equal(row_of(raw, exif_rotation=rotation), pixels(5, 6, 8)[::-1, ::-1])
    assert notes_of(raw) == set()


def test_an_enormous_image_is_refused_before_it_is_decoded() -> None:
    """The file has no pixels at all: had they been asked for, the reason would be another."""
    assert reason_of(png_header(60_000, 60_000)) == "more pixels than data.max_pixels=178956970"
    assert "20000 x 10000 pixels" in reason_of(png_header(20_000, 10_000))
    assert "8 x 6 pixels are more than data.max_pixels=47" in reason_of(
        encoded(Image.new("RGB", (8, 6)), "PNG"), max_pixels=47
    )
    assert row_of(encoded(Image.new("RGB", (8, 6)), "PNG"), max_pixels=48).shape == (6, 8, 3)


def test_a_raised_bound_lifts_pils_own_and_puts_it_back() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with decoding(DataConfig(max_pixels=10**10)):
        assert Image.open(io.BytesIO(png_header(60_000, 60_000))).size == (60_000, 60_000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_pixel_arrays_are_rows_too() -> None:
    grey = pixels(6, 6, 8)[..., 0]
    row, notes = decode(grey, TRANSFORM, DataConfig())
    np.testing.assert_array_equal(row, np.repeat(grey[..., None], 3, axis=2))
    assert notes == frozenset()
