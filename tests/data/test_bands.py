"""Pictures of any number of bands and of more than 8 bits: what is in the pack is what numpy makes of the samples."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_samples import pixels
from file_samples import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, png, tiff
from numpy.typing import NDArray
from PIL import Image

from sdfast.data.config import DataConfig
from sdfast.errors import UserError
from sdfast.modalities.images.decode import BrokenImage, decode, decoding
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.reader import Normalise, image_reader
from sdfast.modalities.images.transform import Transform

H, W = 6, 8
Said = list[str]


def samples(bands: int, dtype: str = "uint16", largest: int = 65535, seed: int = 0) -> NDArray[Any]:
    """[H, W, bands] of random numbers from 0 to `largest`."""
    drawn = np.random.default_rng(seed).integers(0, largest, (H, W, bands), endpoint=True)
    return drawn.astype(dtype)


def npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def transform(channels: int, pixels: str = "uint8", height: int = H, width: int = W) -> Transform:
    return Transform(height, width, channels, (0.0,) * channels, (1.0,) * channels, pixels=pixels)


def row(raw: bytes, channels: int, pixels: str = "uint8", **options: Any) -> NDArray[Any]:
    with decoding(DataConfig()):
        return decode(raw, transform(channels, pixels), DataConfig(**options))[0]


def notes(raw: bytes, channels: int, pixels: str = "uint8", **options: Any) -> frozenset[str]:
    with decoding(DataConfig()):
        return decode(raw, transform(channels, pixels), DataConfig(**options))[1]


def reason(raw: bytes, channels: int = 3, **options: Any) -> str:
    with decoding(DataConfig()), pytest.raises(BrokenImage) as caught:
        decode(raw, transform(channels), DataConfig(**options), levels=(0, 65535))
    return str(caught.value)


def dicom(array: NDArray[Any], kind: str = "MONOCHROME2", stored: int = 16, **more: Any) -> bytes:
    """A DICOM file of samples [H, W] or [frames, H, W], or [H, W, 3] of RGB."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    colour = kind == "RGB"
    data.Rows, data.Columns = array.shape[:2] if colour else array.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if colour else 1, kind
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.PixelRepresentation = array.dtype.itemsize * 8, int(array.dtype.kind == "i")
    data.BitsStored, data.HighBit = min(stored, data.BitsAllocated), min(stored, data.BitsAllocated) - 1
    if array.ndim == 3 and not colour:
        data.NumberOfFrames = len(array)
    for name, value in more.items():
        setattr(data, name, value)
    data.PixelData = array.tobytes()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def saved_by_tifffile(array: NDArray[Any], **options: Any) -> bytes:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


# Arrays of numpy.


@pytest.mark.parametrize("bands", [2, 4, 5, 13])
@pytest.mark.parametrize("first", [False, True])
def test_arrays_of_any_number_of_bands(bands: int, first: bool) -> None:
    whole = samples(bands)
    raw = npy(np.moveaxis(whole, -1, 0) if first else whole)
    assert np.array_equal(row(raw, bands, "uint16", range=[0, 65535]), whole)
    eighth = row(raw, bands, range=[0, 65535])
    assert np.abs(eighth - whole / 257).max() <= 0.5 + 1e-6
    half = row(raw, bands, "float16", range=[0, 65535])
    assert half.dtype == np.float16 and np.array_equal(half, (whole / 65535).astype(np.float16))
    assert notes(raw, bands, range=[0, 65535]) == {"bands16", "first_axis" if first else "last_axis"}


def test_which_axis_is_the_bands() -> None:
    """The one with as many entries as there are channels; else the shorter; of equal ones the last."""
    cube = np.random.default_rng(1).integers(0, 255, (32, 4, 4)).astype(np.uint8)  # bands first, as asked for
    assert "first_axis" in decode(npy(cube), transform(32, height=4, width=4), DataConfig())[1]
    assert "last_axis" in decode(npy(cube), transform(4, height=32, width=4), DataConfig())[1]
    square = np.random.default_rng(1).integers(0, 255, (6, 8, 6)).astype(np.uint8)
    assert np.array_equal(row(npy(square), 6), square)
    few = np.random.default_rng(1).integers(0, 255, (5, H, W)).astype(np.uint8)  # neither has two
    assert np.array_equal(row(npy(few), 2), np.moveaxis(few, 0, -1)[..., :2]) and "bands_5" in notes(npy(few), 2)


def test_arrays_of_8_bits_are_what_a_picture_of_them_is() -> None:
    for channels, shape in ((3, (10, 12, 3)), (1, (10, 12))):
        array = pixels(3)[..., 0] if channels == 1 else pixels(3)
        assert array.shape == shape
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        for size in ("uint8", "uint16"):
            assert np.array_equal(row(npy(array), channels, size), row(file.getvalue(), channels, size))


def test_flags_and_small_numbers_and_any_order_of_bytes() -> None:
    flags = samples(1)[..., 0] > 30000
    assert np.array_equal(row(npy(flags), 1)[..., 0], np.where(flags, 255, 0))
    big = samples(5).astype(">u2")
    assert np.array_equal(row(npy(big), 5, "uint16", range=[0, 65535]), big)
    assert np.array_equal(row(npy(np.asfortranarray(big)), 5, "uint16", range=[0, 65535]), big)
    floats = np.random.default_rng(0).random((H, W, 4), dtype=np.float32)
    assert np.array_equal(row(npy(floats), 4, "float16", range=[0, 1]), floats.astype(np.float16))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 4, 4, 3), np.uint8), "an array of 4 x 4 x 4 x 3; a picture is [height, width], or these and an"),
        (np.zeros(7, np.uint8), "an array of 7; a picture"),
        (np.zeros((4, 4), complex), "an array of complex128, and pixels are numbers"),
        (np.zeros((4, 4), "U3"), "an array of <U3, and pixels are numbers"),
        (np.zeros((4, 0), np.uint8), "an array of 4 x 0;"),
        (np.zeros((H, W, 2), np.uint8), "it has 2 bands, and the model takes 3; set data.channels=2"),
        (np.zeros((H, W), np.float32), "floating-point pixels have no known range; set data.range=[LOW,HIGH]"),
        (np.zeros((2000, 2000), np.uint8), "4,000,000 pixels are more than data.max_pixels=1000000"),
    ],
)
def test_arrays_that_are_no_pictures_say_why(array: NDArray[Any], said: str) -> None:
    assert reason(npy(array), max_pixels=1_000_000).startswith(said)


def test_objects_are_never_unpickled_and_cut_arrays_are_damaged() -> None:
    file = io.BytesIO()
    np.save(file, np.array([[{}]], dtype=object), allow_pickle=True)
    assert reason(file.getvalue()) == "an array of object, and pixels are numbers"
    whole = npy(samples(3))
    assert reason(whole[:-1]).startswith("truncated or damaged")
    assert reason(whole[:20]).startswith("an array of numpy with a damaged header")
    huge = npy(np.zeros((4, 4), np.uint8)).replace(b"(4, 4)", b"(9999, 9999)")
    assert reason(huge).startswith(("truncated or damaged", "an array of numpy with a damaged header"))


# Ranges.


def test_a_range_for_each_band_and_numbers_that_are_none() -> None:
    whole = samples(5, "float32", 1000)
    pairs = [[0, 1000], [100, 200], [0, 1], [-5, 5000], [999, 1000]]
    low, high = np.array(pairs, float).T
    unit = np.clip((whole - low) / (high - low), 0, 1)
    found = row(npy(whole), 5, "uint16", range=pairs)
    assert np.abs(found - unit * 65535).max() <= 0.5 + 0.01
    assert np.abs(row(npy(whole), 5, range=pairs) - unit * 255).max() <= 0.5 + 1e-3
    assert "clipped" in notes(npy(whole), 5, range=pairs)
    assert reason(npy(whole), 5, range=pairs[:2]) == "it has 5 bands, and data.range is 2 pairs"
    before, at = row(npy(whole), 5, range=pairs), 5 * (2 * W + 3) + 1
    whole[2, 3, 1] = np.nan
    said = "it has pixels that are not a number; data.nan=NUMBER fills them"
    assert reason(npy(whole), 5, range=pairs) == said
    filled = row(npy(whole), 5, range=pairs, nan=160)
    assert filled[2, 3, 1] == 153 and "filled" in notes(npy(whole), 5, range=pairs, nan=160)
    assert np.array_equal(np.delete(filled, at), np.delete(before, at))
    whole[2, 3, 1] = np.inf
    assert row(npy(whole), 5, range=pairs)[2, 3, 1] == 255 and "clipped" in notes(npy(whole), 5, range=pairs)


def folder(root: Path, arrays: list[NDArray[Any]]) -> Path:
    for index, array in enumerate(arrays):
        path = root / "ab"[index % 2] / f"{index:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy(array))
    return root


def prepared(tmp_path: Path, source: Path, to: Transform, said: Said | None = None, **options: Any) -> ImagePack:
    pack = tmp_path / "out" / "pack"
    return ImagePack.prepare(str(source), pack, to, DataConfig(**options), [].append if said is None else said.append)


def every_row(pack: ImagePack) -> dict[str, NDArray[Any]]:
    return {
        name: image for split in pack.splits.values() for name, image in zip(split.names, split.images, strict=True)
    }


def test_percentiles_of_a_source_are_those_of_numpy(tmp_path: Path) -> None:
    arrays = [samples(5, "float32", 1000 * (1 + index), seed=index) for index in range(12)]
    source, said = folder(tmp_path / "sat", arrays), list[str]()
    pack = prepared(tmp_path, source, transform(5, "uint16"), said, range="percentile")
    together = np.stack(arrays).reshape(-1, 5)
    expected = np.percentile(together, [1, 99], axis=0).T
    np.testing.assert_allclose(pack.levels, expected, rtol=1e-6)
    low, high = expected.T
    for name, image in every_row(pack).items():
        unit = np.clip((arrays[int(name[2:4])] - low) / (high - low), 0, 1)
        assert np.abs(image - unit * 65535).max() <= 0.6
    (sentence,) = [one for one in said if "whose samples" in one]
    assert f"from {expected[0, 0]:,.6g} to {expected[0, 1]:,.6g} of band 1, from" in sentence
    assert "become 0 to 65,535 (data.range=percentile: the 1st and 99th percentile of all samples)" in sentence
    again = prepared(tmp_path, source, transform(5, "uint16"), said := [], range="percentile")
    assert not said and again.levels == pack.levels


def test_many_images_are_sampled_for_percentiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdfast.modalities.images import pack as packs

    monkeypatch.setattr(packs, "_MOST_DRAWN", 1 << 13)
    ramp = np.linspace(0, 1000, 64 * 64, dtype=np.float32).reshape(64, 64)
    source = folder(tmp_path / "ramps", [ramp + index for index in range(4)])
    ((low, high),) = prepared(tmp_path, source, transform(1), range="percentile").levels  # type: ignore[misc]
    assert abs(low - 11.5) < 8 and abs(high - 991.5) < 8


def test_a_range_of_8_bits_is_said_to_do_nothing(tmp_path: Path) -> None:
    said: Said = []
    source = folder(tmp_path / "small", [samples(4, "uint8", 255, seed) for seed in range(6)])
    pack = prepared(tmp_path, source, transform(4), said, range="percentile")
    assert "data.range is for images of more than 8 bits, and there are none: 8 bits stay as they are." in said
    assert pack.levels is None


def test_dropped_and_repeated_bands_are_counted(tmp_path: Path) -> None:
    arrays = [samples(6, "uint8", 255, seed) for seed in range(3)] + [samples(1, "uint8", 255, 9)[..., 0]]
    said: Said = []
    pack = prepared(tmp_path, folder(tmp_path / "sat", arrays), transform(5), said)
    which = "3 (a/00.npy, a/02.npy, b/01.npy)"
    assert f"Images of 6 bands, of which the first 5 are used (data.channels=6 takes all): {which}." in said
    assert "Images of one band, which is repeated for each of the 5 channels: 1 (b/03.npy)." in said
    rows = every_row(pack)
    assert np.array_equal(rows["a/02.npy"], arrays[2][..., :5])
    assert np.array_equal(rows["b/03.npy"], arrays[3][..., None].repeat(5, -1))


def test_eight_bits_that_lose_something_name_the_key(tmp_path: Path) -> None:
    source, said = folder(tmp_path / "deep", [samples(1, seed=seed)[..., 0] for seed in range(6)]), list[str]()
    prepared(tmp_path, source, transform(3), said, pixels="uint8")
    assert any("become 0 to 255" in one and "data.pixels=uint16 keeps what 8 bits lose" in one for one in said)
    prepared(tmp_path, source, transform(3, "uint16"), said := [], pixels="uint16")
    assert any("become 0 to 65,535" in one for one in said) and not any("data.pixels" in one for one in said)


def test_arrays_beside_pictures_are_no_pictures(tmp_path: Path) -> None:
    """Labels and features of a folder of pictures are often saved so."""
    source = folder(tmp_path / "both", [samples(3, "uint8", 255, seed) for seed in range(4)])
    Image.fromarray(pixels(1)).save(source / "a" / "only.png")
    said: Said = []
    assert len(prepared(tmp_path, source, transform(3), said).split("train")) == 1
    assert said[0] == "Files in both that are not images and were passed over: 4 (the first: a/00.npy)."


# More than 8 bits of the formats that PIL reads, in packs that hold them.


def test_16_bits_are_kept_exactly() -> None:
    grey, colour = samples(1), samples(3, seed=2)
    full = {"range": [0, 65535]}
    assert np.array_equal(row(png(grey, 16, GREY), 1, "uint16", **full), grey)
    assert np.array_equal(row(png(grey, 16, GREY), 3, "uint16", **full), grey.repeat(3, -1))
    assert np.array_equal(row(png(colour, 16, COLOUR), 3, "uint16", **full), colour)
    assert np.array_equal(row(tiff(colour, 2, deflate=True), 3, "uint16", **full), colour)
    luma = row(png(colour, 16, COLOUR), 1, "uint16", **full)[..., 0]
    assert np.abs(luma - colour @ np.array([0.299, 0.587, 0.114])).max() <= 0.5 + 0.01
    twelve = samples(3, largest=4095)
    found = decode(png(twelve, 16, COLOUR), transform(3, "uint16"), DataConfig(), levels=(0, 4095))[0]
    assert len(np.unique(found)) == len(np.unique(twelve)) and np.abs(found - twelve * (65535 / 4095)).max() <= 0.51


def test_pictures_of_8_bits_in_a_deep_pack_are_the_same_picture() -> None:
    file = io.BytesIO()
    Image.fromarray(pixels(5, H, W)).save(file, "PNG")
    plain = row(file.getvalue(), 3)
    assert np.array_equal(row(file.getvalue(), 3, "uint16"), plain.astype(np.uint16) * 257)
    np.testing.assert_allclose(row(file.getvalue(), 3, "float16"), plain / 255, atol=2**-11)
    images = torch.from_numpy(plain.copy())[None]
    for kind in ("uint16", "float16"):
        deep = torch.from_numpy(row(file.getvalue(), 3, kind))[None]
        mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
        torch.testing.assert_close(Normalise(mean, std)(deep), Normalise(mean, std)(images), rtol=0, atol=4e-3)


def test_a_resize_keeps_what_lies_between_8_bit_levels() -> None:
    """PIL's bilinear filter on the samples as floating point, rounded once; on 8 bits of each band PIL's own rows."""
    whole = samples(5)
    small = decode(npy(whole), transform(5, "uint16", 3, 4), DataConfig(range=[0, 65535]))[0]
    for band in range(5):
        image = Image.fromarray(whole[..., band].astype(np.float32)).resize((4, 3), Image.Resampling.BILINEAR)
        assert np.abs(small[..., band] - np.asarray(image)).max() <= 0.5 + 0.01
    few = samples(5, "uint8", 255)
    small = decode(npy(few), transform(5, "uint8", 3, 4), DataConfig())[0]
    for band in range(5):
        image = Image.fromarray(few[..., band]).resize((4, 3), Image.Resampling.BILINEAR)
        assert np.array_equal(small[..., band], np.asarray(image))


def test_four_channels_take_alpha_as_a_band_and_three_blend_it() -> None:
    whole = samples(4)
    raw, full = png(whole, 16, COLOUR_ALPHA), {"range": [0, 65535]}
    assert np.array_equal(row(raw, 4, "uint16", **full), whole)
    alpha = np.floor(whole[..., 3:] / 257 + 0.5) / 255
    blended = whole[..., :3] * alpha + (1 - alpha) * 65535
    assert np.abs(row(raw, 3, "uint16", **full) - blended).max() <= 0.5 + 0.01
    assert "transparent" in notes(raw, 3, "uint16", **full)
    two = samples(2)
    assert np.array_equal(row(png(two, 16, GREY_ALPHA), 2, "uint16", **full), two)
    few = samples(4, "uint8", 255)
    assert np.array_equal(row(png(few, 8, COLOUR_ALPHA), 4), few)
    infrared = tiff(few, 2, [0])  # a fourth band that is said to be none of colour
    pytest.importorskip("tifffile", reason="tifffile is not installed")
    assert np.array_equal(row(infrared, 4), few) and notes(infrared, 4) == frozenset()
    nameless = tiff(few, 2)
    assert np.array_equal(row(nameless, 4), few) and notes(nameless, 4) == frozenset()


def test_blank_and_faint_go_by_the_share_of_white() -> None:
    for kind in ("uint8", "uint16", "float16"):
        flat = np.full((H, W, 5), 30000, np.uint16)
        assert "blank" in notes(npy(flat), 5, kind, range=[0, 65535])
        flat[0, 0] += 300  # more than one of 255 levels, in one pixel
        assert "faint" in notes(npy(flat), 5, kind, range=[0, 65535])
        assert not {"blank", "faint"} & notes(npy(samples(5)), 5, kind, range=[0, 65535])


# TIFF.


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_five_bands(planar: str, compression: str | None) -> None:
    whole = samples(5)
    array = whole if planar == "contig" else np.moveaxis(whole, -1, 0)
    raw = saved_by_tifffile(array, planarconfig=planar, photometric="minisblack", compression=compression)
    assert np.array_equal(row(raw, 5, "uint16", range=[0, 65535]), whole)
    three = row(raw, 3, "uint16", range=[0, 65535])
    assert np.array_equal(three, whole[..., :3])
    assert {"bands_5", "colour16"} <= notes(raw, 3, "uint16", range=[0, 65535])
    assert "the model takes 6; set data.channels=5" in reason(raw, 6)


@pytest.mark.parametrize("first", [True, False])
def test_tiff_of_a_page_for_each_band(first: bool) -> None:
    """As tifffile and ImageJ write [bands, height, width] and [height, width, bands] when nothing is said."""
    whole = samples(5)
    raw = saved_by_tifffile(np.moveaxis(whole, -1, 0) if first else whole, photometric="minisblack")
    assert np.array_equal(row(raw, 5, "uint16", range=[0, 65535]), whole)


def test_tiff_of_floats_and_of_planes_of_16_bits() -> None:
    floats = np.random.default_rng(0).random((H, W, 3), dtype=np.float32)
    raw = saved_by_tifffile(floats, photometric="rgb")
    assert np.array_equal(row(raw, 3, "float16", range=[0, 1]), floats.astype(np.float16))
    pytest.importorskip("tifffile", reason="tifffile is not installed")
    whole = samples(3)
    assert np.array_equal(row(tiff(whole, 2, planes=True), 3, "uint16", range=[0, 65535]), whole)
    deflated = tiff(whole, 2, planes=True, deflate=True)  # of which PIL gives the upper bytes
    assert np.array_equal(row(deflated, 3, "uint16", range=[0, 65535]), whole)
    assert notes(deflated, 3) == {"cut16"} and "cut16" not in notes(deflated, 3, "uint16", range=[0, 65535])


def test_tiff_lies_as_its_tag_says_and_white_may_be_zero() -> None:
    whole = samples(5)
    turned = {2: whole[:, ::-1], 3: whole[::-1, ::-1], 4: whole[::-1], 5: whole.swapaxes(0, 1)}
    turned |= {6: np.rot90(whole, -1), 7: np.rot90(whole, -1)[::-1], 8: np.rot90(whole)}
    for tag, expected in turned.items():
        raw = saved_by_tifffile(
            whole, photometric="minisblack", planarconfig="contig", extratags=[(274, "H", 1, tag, True)]
        )
        to = transform(5, "uint16", *expected.shape[:2])
        assert np.array_equal(decode(raw, to, DataConfig(range=[0, 65535]))[0], expected), tag
    raw = saved_by_tifffile(whole, photometric="miniswhite", planarconfig="contig")
    assert np.array_equal(row(raw, 5, "uint16", range=[0, 65535]), 65535 - whole)


def test_without_the_packages_a_sentence_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = dicom(samples(1)[..., 0]) if "pydicom" in sys.modules or _there("pydicom") else None
    for name in ("tifffile", "pydicom"):
        monkeypatch.setitem(sys.modules, name, None)
    raw = tiff(samples(5), 1)
    assert reason(raw, 5) == (
        'a TIFF of 5 bands of 16-bit samples, which tifffile reads: pip install "sdfast[tiff]", or save red, green and '
        "blue, or one band, with 8 or 16 bits"
    )
    if scan is not None:
        assert reason(scan) == 'a DICOM file, which pydicom reads: pip install "sdfast[dicom]"'


def _there(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


# DICOM.


def test_dicom_is_rescaled_by_slope_and_intercept() -> None:
    stored = samples(1, "int16", 3000)[..., 0]
    raw = dicom(stored, RescaleSlope=2, RescaleIntercept=-1024)
    low, high = -1000.0, 400.0
    unit = np.clip((stored * 2.0 - 1024 - low) / (high - low), 0, 1)
    assert np.abs(row(raw, 1, "uint16", range=[low, high])[..., 0] - unit * 65535).max() <= 0.51
    assert reason(raw).startswith("pixels of -1,0") and "outside 0..65535, have no known range" in reason(raw)
    assert notes(raw, 1, range=[low, high]) == {"grey16", "clipped"}


def test_dicom_of_12_bits_has_their_range_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    stored = samples(1, largest=700)[..., 0]
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        root = tmp_path / kind
        root.mkdir()
        (root / "a.dcm").write_bytes(dicom(stored, kind, 12))
        said: Said = []
        pack = prepared(root, root, transform(1, "uint16"), said)
        assert pack.levels == (0, 4095)
        unit = stored / 4095 if kind == "MONOCHROME2" else 1 - stored / 4095
        assert np.abs(pack.split("train").images[0, ..., 0] - unit * 65535).max() <= 0.51
        assert ("DICOM images of MONOCHROME1, which are inverted: 1 (a.dcm)." in said) == (kind == "MONOCHROME1")
        plain = row(dicom(stored, kind, 12), 1, range=[0, 4095])[..., 0]
        assert np.abs(plain - unit * 255).max() <= 0.51


def test_dicom_of_8_bits_colours_and_frames() -> None:
    grey, colour = samples(1, "uint8", 255)[..., 0], samples(3, "uint8", 255)
    assert np.array_equal(row(dicom(grey, stored=8), 1)[..., 0], grey)
    assert np.array_equal(row(dicom(grey, "MONOCHROME1", 8), 1)[..., 0], 255 - grey)
    assert np.array_equal(row(dicom(colour, "RGB", 8), 3), colour)
    frames = np.moveaxis(samples(4), -1, 0).copy()
    raw = dicom(frames)
    assert np.array_equal(row(raw, 1, "uint16", range=[0, 65535])[..., 0], frames[0])
    assert "animated" in notes(raw, 1, range=[0, 65535])
    assert "rotation" not in str(reason(raw[:200]))
    assert reason(raw[:-9]).startswith(("truncated or damaged", "a DICOM file that pydicom cannot decode here"))


# From the pack to the model.


@pytest.mark.parametrize("kind", ["uint16", "float16"])
def test_rows_come_to_the_device_and_are_normalised(tmp_path: Path, kind: str) -> None:
    arrays = [samples(5, seed=seed) for seed in range(6)]
    source = folder(tmp_path / "sat", arrays)
    pack = prepared(tmp_path, source, transform(5, kind), range=[0, 65535], test_fraction=0)
    train = pack.split("train")
    rows = torch.tensor([4, 0, 4])
    images = image_reader(train, torch.device("cpu"))(rows)
    assert images.dtype == getattr(torch, kind) and tuple(images.shape) == (3, H, W, 5)
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    seen = Normalise(mean, std)(images).double().numpy()
    for place, index in enumerate(rows):
        unit = arrays[int(train.names[index][2:4])] / 65535
        expected = np.moveaxis((unit - mean) / std, -1, 0)
        np.testing.assert_allclose(seen[place], expected, atol=1e-5 if kind == "uint16" else 5e-3)
    half = Normalise(mean, std).to(torch.float16)(images)
    np.testing.assert_allclose(half.double().numpy(), seen, atol=2e-2)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16"])
def test_statistics_are_those_of_numpy_over_train(tmp_path: Path, kind: str) -> None:
    arrays = [samples(5, seed=seed) for seed in range(12)]
    for array in arrays:
        array[..., 2] = 1000  # never changes
    pack = prepared(tmp_path, folder(tmp_path / "sat", arrays), transform(5, kind), range=[0, 65535], pixels=kind)
    white = {"uint8": 255, "uint16": 65535, "float16": 1}[kind]
    unit = np.asarray(pack.split("train").images, np.float64).reshape(-1, 5) / white
    mean, std = pack.statistics
    assert len(pack.split("test")) > 0 and len(unit) == len(pack.split("train")) * H * W
    np.testing.assert_allclose(mean, unit.mean(0), rtol=1e-12)
    np.testing.assert_allclose(np.delete(std, 2), np.delete(unit.std(0), 2), rtol=1e-10)
    assert std[2] == 1.0


def test_the_type_of_pixels_is_part_of_a_pack(tmp_path: Path) -> None:
    source = folder(tmp_path / "sat", [samples(3, seed=seed) for seed in range(6)])
    plain = prepared(tmp_path, source, transform(3), range=[0, 65535], pixels="uint8")
    assert (
        "pixels" not in plain.manifest["transform"] and not {"pixels", "normalise"} & plain.manifest["options"].keys()
    )
    deep = prepared(tmp_path, source, transform(3, "uint16"), range=[0, 65535], pixels="uint16")
    assert deep.manifest["transform"]["pixels"] == "uint16" and deep.fingerprint != plain.fingerprint
    assert ImagePack.open(deep.directory).transform == transform(3, "uint16")


@pytest.mark.parametrize("wrong", ["data.pixels=uint32", "data.normalise=yes", "data.channels=0", "data.channels=5000"])
def test_wrong_values_are_one_sentence(wrong: str) -> None:
    from sdfast.config import Config

    with pytest.raises(UserError, match=wrong.partition("=")[0]):
        Config().changed([wrong])


# Bands of another aspect, and in tiles.


def test_bands_are_padded_cropped_and_cut_band_by_band() -> None:
    whole, small = samples(5, "uint8", 255), {"height": 4, "width": 4}
    options = DataConfig(resize="pad", background="#ff8000")
    padded = decode(npy(whole), transform(5, **small).with_options(options), options)[0]
    luma = round(0.299 * 255 + 0.587 * 128)
    for band in range(5):  # 6 x 8 becomes 3 x 4
        image = Image.fromarray(whole[..., band]).resize((4, 3), Image.Resampling.BILINEAR)
        assert np.array_equal(padded[:3, :, band], np.asarray(image)) and (padded[3, :, band] == luma).all()
    deep, options = samples(5), DataConfig(tile=(6, 4), pixels="uint16", range=(0, 65535))
    tiles = decode(npy(deep), transform(5, height=6, width=4).with_options(options), options)[0]
    assert tiles.dtype == np.uint16 and np.array_equal(tiles, np.stack([deep[:, :4], deep[:, 4:]]))
    options = DataConfig(resize="crop", pixels="uint16", range=(0, 65535))
    cropped = decode(npy(deep), transform(5, height=6, width=6).with_options(options), options)[0]
    assert np.array_equal(cropped, deep[:, 1:7])
