"""More than 8 bits: one stated range for a whole source; the truth is float64 arithmetic on the samples of the file."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from data_samples import pixels, write_image
from file_samples import COLOUR, GREY, encoded, pgm, png, tiff
from numpy.typing import NDArray
from PIL import Image

from sdfast.data.config import DataConfig
from sdfast.errors import UserError
from sdfast.modalities.images.decode import BrokenImage, NoRange, decode, decoding
from sdfast.modalities.images.levels import to_8_bit
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.transform import Transform

Build = Callable[..., ImagePack]
H, W = 6, 8
FULL = (0.0, 65535.0)


def samples(largest: int, channels: int = 1, smallest: int = 0) -> NDArray[np.int64]:
    """[H, W, channels], with the two ends among them."""
    found = np.random.default_rng(largest + channels).integers(smallest, largest + 1, (H, W, channels))
    found[0, 0], found[0, 1] = smallest, largest
    return found


def truth(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.float64]:
    """The stretched samples, not yet rounded."""
    return np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1) * 255


def row(raw: bytes, **options: object) -> NDArray[np.uint8]:
    return decode(raw, Transform(H, W), DataConfig(**options))[0]


def reason(raw: bytes, levels: tuple[float, float] | None = None, **options: object) -> str:
    with decoding(DataConfig()), pytest.raises(BrokenImage) as caught:
        decode(raw, Transform(H, W), DataConfig(**options), levels=levels)
    return str(caught.value)


FILES: dict[str, Callable[[NDArray[np.int64]], bytes]] = {
    "PNG": lambda values: png(values, 16, GREY),
    "TIFF": lambda values: tiff(values.astype(np.uint16), 1),
    "TIFF, big-endian": lambda values: tiff(values.astype(np.uint16), 1, order=">"),
    "TIFF, deflate": lambda values: tiff(values.astype(np.uint16), 1, deflate=True),
    "TIFF, 32 bits": lambda values: tiff(values.astype(np.uint32), 1),
    "TIFF, signed": lambda values: tiff((values >> 1).astype(np.int16), 1),
    "PGM": lambda values: pgm(values[..., 0], 65535),
    "JPEG 2000": lambda values: encoded(Image.fromarray(values[..., 0].astype(np.uint16)), "JPEG2000"),
    "PNG RGB": lambda values: png(values.repeat(3, -1), 16, COLOUR),
    "TIFF RGB": lambda values: tiff(values.repeat(3, -1).astype(np.uint16), 2),
    "TIFF RGB, big-endian": lambda values: tiff(values.repeat(3, -1).astype(np.uint16), 2, order=">"),
    "TIFF RGB, deflate": lambda values: tiff(values.repeat(3, -1).astype(np.uint16), 2, deflate=True),
    "TIFF RGB, deflate, big-endian": lambda values: tiff(
        values.repeat(3, -1).astype(np.uint16), 2, deflate=True, order=">"
    ),
}


@pytest.mark.parametrize("levels", [FULL, (0, 4095), (1000, 3000), (0.5, 65535.5)])
@pytest.mark.parametrize("name", FILES)
def test_samples_are_stretched_by_the_range(name: str, levels: tuple[float, float]) -> None:
    values = samples(65535)
    stored = values >> 1 if name == "TIFF, signed" else values
    found, notes = decode(FILES[name](values), Transform(H, W), DataConfig(range=levels))
    assert np.abs(found - truth(stored, *levels)).max() <= 0.5 + 1e-6
    assert "colour16" in notes if "RGB" in name else "grey16" in notes
    assert ("clipped" in notes) == (stored.max() > levels[1] or stored.min() < levels[0])


@pytest.mark.parametrize("largest", [255, 1023, 4095, 65535])
def test_every_sample_of_a_usual_range_is_rounded_to_the_nearest(largest: int) -> None:
    values = np.arange(largest + 1, dtype=np.uint16)
    exact = [round(255 * sample / largest) for sample in range(largest + 1)]  # no ties: the divisor is odd
    assert to_8_bit(values, (0, largest)).tolist() == exact


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_large_pictures_give_what_small_ones_do(kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (300, 300)).astype(kind)
    for levels in (FULL, (1000.5, 3000.0)):
        found = to_8_bit(values, levels)
        assert found.dtype == np.uint8
        assert np.array_equal(found, np.stack([to_8_bit(line, levels) for line in values]))


def test_the_full_range_gives_what_it_always_gave() -> None:
    values = np.arange(65536)
    assert np.array_equal(to_8_bit(values.astype(np.uint16), FULL), (values + 128) // 257)


def test_colours_of_12_bits_keep_their_levels() -> None:
    """The upper bytes alone would leave sixteen."""
    values = np.arange(4096).reshape(64, 64, 1).repeat(3, -1)
    transform = Transform(64, 64)
    found = decode(png(values, 16, COLOUR), transform, DataConfig(), levels=(0, 4095))[0]
    assert len(np.unique(found)) == 256


def test_floating_point_with_a_range_of_its_own() -> None:
    values = np.linspace(-0.25, 1.25, H * W, dtype=np.float32).reshape(H, W, 1)
    assert np.abs(row(tiff(values, 1), range=[0, 1]) - truth(values, 0, 1)).max() <= 0.5 + 1e-4
    values[2, 2] = np.nan
    assert reason(tiff(values, 1), range=[0, 1]) == "it has pixels that are not a number; data.nan=NUMBER fills them"


def test_pixels_without_a_known_range_are_refused() -> None:
    for levels in (None, FULL):  # what others of the source have says nothing of it
        assert reason(tiff(np.ones((H, W, 1), np.float32), 1), levels) == (
            "floating-point pixels have no known range; set data.range=[LOW,HIGH] or percentile, or save it with 8 "
            "or 16 bits a channel"
        )
    assert reason(tiff(np.full((H, W, 1), -5, np.int16), 1)).startswith("pixels of -5 to -5, outside 0..65535, have no")
    assert "65,536" in reason(tiff(np.full((H, W, 1), 65536, np.uint32), 1))
    with pytest.raises(NoRange):
        row(png(samples(9), 16, GREY))


# The range of a source.


def folder(root: Path, largest: int = 4095, files: int = 12) -> dict[str, NDArray[np.int64]]:
    """Pictures of 16 bits in a folder a class; one of them has `largest`, the others less than half of it."""
    held = {}
    for index in range(files):
        values = samples(largest if index == 3 else largest // 3, channels=index + 1)[..., :1]
        path = root / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(values, 16, GREY))
        held[f"{path.parent.name}/{path.name}"] = values
    return held


def test_one_range_for_the_whole_source(tmp_path: Path, build: Build) -> None:
    held = folder(tmp_path / "scans")
    pack = build(tmp_path / "scans", pixels="uint8")
    assert pack.levels == (0, 4095) and pack.manifest["range"] == [0, 4095]
    assert pack.manifest["options"]["range"] == "auto"
    for split in ("train", "test"):
        for name, image in zip(pack.split(split).names, pack.split(split).images, strict=True):
            assert np.abs(image - truth(held[name], 0, 4095)).max() <= 0.5 + 1e-6
    assert pack.warnings[0] == (
        "Grey images of more than 8 bits, whose samples from 0 to 4,095 become 0 to 255 (data.range=auto: the largest "
        "of the source is 4,095, in b/03.png; data.pixels=uint16 keeps what 8 bits lose): "
        "12 (a/00.png, a/02.png, a/04.png and 9 more)."
    )
    inode = (pack.directory / "manifest.json").stat().st_ino
    for kind in ("uint8", None):  # a pack that is there stays as it is where nothing else is asked for
        assert build(tmp_path / "scans", pixels=kind).levels == (0, 4095)
        assert (pack.directory / "manifest.json").stat().st_ino == inode


@pytest.mark.parametrize(("range_", "high"), [("auto", 4095), ([0, 4095], 4095), ("percentile", None)])
def test_a_source_of_more_than_8_bits_is_a_pack_of_16(
    tmp_path: Path, build: Build, range_: object, high: int | None
) -> None:
    held = folder(tmp_path / "scans")
    plain = tmp_path / "scans" / "a" / "plain.png"
    eight = samples(255, channels=30)[..., :1]
    Image.fromarray(eight[..., 0].astype(np.uint8)).save(plain)
    pack = build(tmp_path / "scans", range=range_)
    inode, train = (pack.directory / "manifest.json").stat().st_ino, pack.split("train")
    assert train.images.dtype == np.uint16 and pack.manifest["transform"]["pixels"] == "uint16"
    assert any("become 0 to 65,535" in one for one in pack.warnings) and "data.pixels" not in "".join(pack.warnings)
    if high is not None:
        every = {
            name: row for split in pack.splits.values() for name, row in zip(split.names, split.images, strict=True)
        }
        for name, values in held.items():
            assert np.abs(every[name] - values * (65535 / high)).max() <= 0.5 + 0.01
        assert np.array_equal(every["a/plain.png"][..., 0], eight[..., 0] * 257)
    for kind in ("uint16", None):
        assert build(tmp_path / "scans", range=range_, pixels=kind).fingerprint == pack.fingerprint
        assert (pack.directory / "manifest.json").stat().st_ino == inode
    assert build(tmp_path / "scans", range=range_, pixels="uint8").split("train").images.dtype == np.uint8


@pytest.mark.parametrize(
    ("largest", "range_", "levels"),
    [(256, "auto", 511), (200, "auto", 255), (40000, "auto", 65535), (4095, [0, 1000], 1000)],
)
def test_the_least_ceiling_or_the_given_range(
    tmp_path: Path, build: Build, largest: int, range_: object, levels: int
) -> None:
    held = folder(tmp_path / "scans", largest)
    pack = build(tmp_path / "scans", range=range_, pixels="uint8" if levels != 255 else None)
    assert pack.levels == (0, levels) and pack.split("train").images.dtype == np.uint8
    for name, image in zip(pack.split("train").names, pack.split("train").images, strict=True):
        assert np.abs(image - truth(held[name], 0, levels)).max() <= 0.5 + 1e-6
    clipped = "Images with samples outside data.range, which are cut off: 12 (a/00.png, a/02.png, a/04.png and 9 more)."
    assert (clipped in pack.warnings) == (range_ != "auto")
    again = build(tmp_path / "scans", range=[0, 7])
    assert again.levels == (0, 7) and again.fingerprint != pack.fingerprint


def test_a_declared_range_holds(tmp_path: Path, build: Build) -> None:
    """A PGM says its largest value, a TIFF of 12 bits has it: dark pictures stay dark."""
    dark = samples(300)
    (tmp_path / "dark").mkdir()
    (tmp_path / "dark" / "a.pgm").write_bytes(pgm(dark[..., 0], 1000))
    pack = build(tmp_path / "dark", pixels="uint8")
    assert pack.levels == FULL
    assert np.abs(pack.split("train").images[0] - truth(dark, 0, 1000)).max() <= 0.5 + 0.01
    packed = np.zeros((H, W, 2), np.uint16)  # two samples of 12 bits in three bytes
    packed[..., :] = dark
    first, second = packed[:, ::2, 0], packed[:, 1::2, 0]
    body = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    raw = tiff(body.reshape(H, -1, 1), 1, bits=12)
    (tmp_path / "dark" / "a.pgm").unlink()
    (tmp_path / "dark" / "b.tif").write_bytes(raw)
    pack = build(tmp_path / "dark", pixels="uint8")
    assert pack.levels == (0, 4095)
    assert np.abs(pack.split("train").images[0] - truth(dark, 0, 4095)).max() <= 0.5 + 1e-6


def test_broken_files_do_not_disturb_the_search_for_the_range(tmp_path: Path, build: Build) -> None:
    folder(tmp_path / "scans")
    (tmp_path / "scans" / "a" / "zz.png").write_bytes(b"")
    (tmp_path / "scans" / "a" / "zz.tif").write_bytes(tiff(np.ones((H, W, 1), np.float32), 1))
    pack = build(tmp_path / "scans", max_broken=0.2)
    assert pack.levels == (0, 4095) and len(pack.manifest["skipped"]) == 2
    mended = build(tmp_path / "scans", max_broken=0.2, range=[0, 4095])  # now the range of the second is known
    assert len(mended.manifest["skipped"]) == 1


def test_a_pack_without_deep_or_transparent_images_is_as_it_was(tmp_path: Path, build: Build) -> None:
    """A manifest from before the two options is still up to date where no image needs them."""
    for index in range(8):
        write_image(tmp_path / "pets" / "ab"[index % 2] / f"{index}.png", index)
    pack = build(tmp_path / "pets")
    assert not {"background", "range"} & set(pack.manifest["options"]) and "range" not in pack.manifest
    inode = (pack.directory / "manifest.json").stat().st_ino
    build(tmp_path / "pets")
    assert (pack.directory / "manifest.json").stat().st_ino == inode
    # What was packed before with transparent pictures is not what it would be now.
    Image.new("RGBA", (W, H), (1, 2, 3, 4)).save(tmp_path / "pets" / "a" / "z.png")
    pack = build(tmp_path / "pets", background="keep")
    manifest = json.loads((pack.directory / "manifest.json").read_text())
    assert manifest["options"].pop("background") == "keep"
    (pack.directory / "manifest.json").write_text(json.dumps(manifest))
    again = build(tmp_path / "pets")
    assert again.manifest["options"]["background"] == "white" and again.fingerprint != pack.fingerprint
    assert build(tmp_path / "pets", background="keep").fingerprint == pack.fingerprint


# What else a file may hold.


def test_eight_bands_are_one_sentence_and_no_log(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    raw = tiff(np.zeros((H, W, 8), np.uint8), 2, [0] * 5)
    assert reason(raw) == (
        'a TIFF of 8 bands of 8-bit samples, which tifffile reads: pip install "sdfast[tiff]", or save red, green and '
        "blue, or one band, with 8 or 16 bits"
    )
    assert "1 band of 64-bit floating-point samples" in reason(tiff(np.zeros((H, W, 1)), 1))
    assert reason(raw[:30]) == "not an image of a known format"
    rng = np.random.default_rng(0)
    whole = encoded(Image.fromarray(pixels(0, 64, 64)), "TIFF", compression="jpeg")
    for _ in range(40):
        damaged = bytearray(whole[: int(rng.integers(40, len(whole)))])
        damaged[int(rng.integers(len(damaged)))] ^= 64
        with decoding(DataConfig()), contextlib.suppress(BrokenImage):
            decode(bytes(damaged), Transform(H, W), DataConfig())
    assert capfd.readouterr().err == "" and not caplog.records
    assert logging.getLogger("PIL").level == logging.NOTSET


def test_planes_that_the_decoder_would_garble_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    values = samples(65535, 3).astype(np.uint16)
    assert "a TIFF of 3 bands of 16-bit samples, which tifffile reads" in reason(tiff(values, 2, planes=True))
    flat = (values >> 8).astype(np.uint8)
    np.testing.assert_array_equal(row(tiff(flat, 2, planes=True)), flat)
    found, notes = decode(tiff(values, 2, planes=True, deflate=True), Transform(H, W), DataConfig())
    assert np.array_equal(found, flat) and notes == {"cut16"}


def test_colour_spaces_and_profiles_are_noted() -> None:
    def notes(image: Image.Image, kind: str, **options: object) -> frozenset[str]:
        return decode(encoded(image, kind, **options), Transform(H, W), DataConfig())[1]

    photo = Image.fromarray(pixels(3, H, W))
    assert notes(photo.convert("CMYK"), "TIFF") == {"cmyk"}
    assert notes(photo, "PNG", icc_profile=b"Display P3") == {"colour_profile"}
    assert notes(photo, "PNG", icc_profile=b"sRGB IEC61966-2.1") == notes(photo, "PNG") == frozenset()
    assert notes(photo, "JPEG", icc_profile="sRGB built-in".encode("utf-16-be")) == frozenset()
    assert notes(photo.convert("1"), "PNG") == frozenset()
    deep_ink = tiff(samples(65535, 4).astype(np.uint16), 5)
    assert decode(deep_ink, Transform(H, W), DataConfig())[1] == {"cmyk", "cut16"}


def test_inverted_inks_of_adobe_are_turned_back() -> None:
    """A CMYK JPEG with Adobe's marker stores 255 - ink; white paper must not become black."""
    raw = encoded(Image.new("CMYK", (W, H), (0, 0, 0, 0)), "JPEG")
    assert b"Adobe" in raw and row(raw).min() > 250


def test_lab_and_ycbcr_become_rgb() -> None:
    grey = Image.merge("LAB", [Image.new("L", (W, H), value) for value in (255, 128, 128)])
    raw = encoded(grey, "TIFF")
    assert Image.open(io.BytesIO(raw)).mode == "LAB" and row(raw).min() > 250
    red = encoded(Image.new("YCbCr", (W, H), (76, 85, 255)), "TIFF")
    if int(PIL.__version__.partition(".")[0]) < 13:  # which cannot read what it wrote
        with pytest.raises(BrokenImage, match="truncated"):
            row(red)
        return
    assert np.abs(row(red).astype(int) - (254, 0, 0)).max() <= 2


def test_a_source_of_infrared_says_so(tmp_path: Path, build: Build) -> None:
    (tmp_path / "sat").mkdir()
    (tmp_path / "sat" / "a.tif").write_bytes(tiff(samples(255, 4).astype(np.uint8), 2, [0]))
    assert build(tmp_path / "sat").warnings == [
        "Images with more bands than red, green, blue and alpha, or one grey, which are not used (data.channels=N "
        "takes N bands): 1 (a.tif)."
    ]


@pytest.mark.parametrize(
    "wrong", [[5, 5], [7, 3], [0], [0, 1, 2], "full", ["a", "b"], [0, float("inf")], 3, None, [], [[0, 1], [3, 2]]]
)
def test_ranges_that_are_none_are_refused(wrong: object) -> None:
    from sdfast.config import resolve

    with pytest.raises(UserError, match=r"data.range.* must be auto, percentile, two numbers, \[LOW,HIGH\], the lower"):
        resolve(options={"data": {"range": wrong}})
