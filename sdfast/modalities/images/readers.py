"""Files that PIL does not read: arrays of numpy, TIFF of any number of bands (tifffile), and DICOM (pydicom)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdfast.modalities.images.bands import bands_to_keep
from sdfast.modalities.images.levels import Deep

if TYPE_CHECKING:
    from tifffile import TiffPage

UNKNOWN = "not an image of a known format"
NPY, TIFFS = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
FRAMES, BANDS_FIRST, BANDS_LAST, INVERTED = "animated", "first_axis", "last_axis", "inverted"


@dataclass(frozen=True)
class Read:
    """A picture that was read, its bands cut to those that the model can see.

    Attributes:
        deep: the picture.
        bands: that the file has.
        notes: what a person may not expect of it: `FRAMES`, `BANDS_FIRST`, `BANDS_LAST`, `INVERTED`.
    """

    deep: Deep
    bands: int
    notes: frozenset[str]


def reader_of(raw: bytes) -> Callable[[bytes, int, int], Read] | None:
    """What reads a file that is no picture for PIL at all, by its first bytes; None for any other."""
    if raw.startswith(NPY):
        return read_npy
    return read_dicom if raw[128:132] == b"DICM" else None


def read_npy(raw: bytes, channels: int, max_pixels: int) -> Read:
    """An array [H, W], [H, W, B] or [B, H, W] of numbers, as numpy.save writes it.

    Of three axes the bands' is the one of the first and the last that has `channels` entries; where both or none has,
    the shorter, and of equal ones the last.

    Raises:
        ValueError: it is no such array, or has more pixels than allowed.
    """
    file = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    except Exception as error:  # a damaged header raises anything
        raise ValueError(f"an array of numpy with a damaged header ({_line(error)})") from error
    size = " x ".join(map(str, shape)) or "one number"
    if dtype.kind not in "buif":
        raise ValueError(f"an array of {dtype}, and pixels are numbers")
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"an array of {size}; a picture is [height, width], or these and an axis of bands")
    axis = _axis_of_bands(shape, channels)
    _check_size(math.prod(shape) // (1 if axis is None else shape[axis]), max_pixels)
    if math.prod(shape) * dtype.itemsize > len(raw) - file.tell():
        raise OSError(f"{len(raw):,} bytes are too few for {size} of {dtype}")
    file.seek(0)
    found = np.load(file, allow_pickle=False)
    return _of_array(found, axis, channels)


def read_tiff(raw: bytes, channels: int, max_pixels: int) -> Read:
    """The first picture of a TIFF, with all its bands, interleaved or one after the other, upright.

    Pages of one band each are bands where they are as many as `channels`, and frames otherwise.

    Raises:
        ModuleNotFoundError: there is no tifffile.
        ValueError: it has more pixels than allowed, or samples that are no real numbers.
    """
    import tifffile

    try:
        opened = tifffile.TiffFile(io.BytesIO(raw))
        opened.series[0].keyframe  # noqa: B018 - directories are read when they are asked for
    except Exception as error:  # damaged ones raise anything
        raise ValueError(UNKNOWN) from error
    with opened as file:
        series, page = file.series[0], file.series[0].keyframe
        _check_size(page.imagelength * page.imagewidth, max_pixels)
        if page.samplesperpixel > 1 or series.ndim < 3:
            found = _decoded(page)
            found = found if found.ndim < 3 else found.reshape(found.shape[-3:])
            planes = page.planarconfig == 2 and found.ndim == 3
            axis = None if found.ndim == 2 else 0 if planes else 2
            more = len(file.pages) > 1
        else:
            shape = tuple(size for size in series.shape if size > 1)
            axis = _axis_of_bands(shape, channels) if len(shape) == 3 and channels in (shape[0], shape[-1]) else None
            more, found = axis is None and len(file.pages) > 1, _decoded(page if axis is None else series)
            found = found.reshape(shape if axis is not None else found.shape[-2:])
        inverted, turned = page.photometric == 0, int(page.tags.valueof(274, 1))
        bits, extra = int(page.bitspersample), tuple(int(kind) for kind in page.extrasamples)
    if found.dtype.kind not in "buif":
        raise ValueError(f"a TIFF of {found.dtype} samples, and pixels are real numbers")
    found = found if axis in (None, 2) else np.moveaxis(found, axis, -1)
    found = _upright(found, turned)
    alpha = None
    bands = found.shape[2] if found.ndim == 3 else 1
    if bands in (2, 4) and bands != channels and extra in ((1,), (2,)) and found.dtype.kind == "u":
        share = found[..., -1] / np.iinfo(found.dtype).max
        alpha, found = np.floor(share * 255 + 0.5).astype(np.uint8), found[..., :-1]
        if extra == (1,):  # colours that are multiplied by alpha
            largest = np.iinfo(found.dtype).max
            plain = np.divide(found, share[..., None], out=np.zeros(found.shape), where=share[..., None] > 0)
            found = np.minimum(np.rint(plain), largest).astype(found.dtype)
        found = found[..., 0] if bands == 2 else found
    read = _of_array(found, None if found.ndim == 2 else 2, channels, npy=False)
    declared = (1 << bits) - 1 if 8 < bits < 16 and found.dtype.kind == "u" else None
    notes = read.notes | ({FRAMES} if more else set())
    return Read(replace(read.deep, declared=declared, inverted=inverted, alpha=alpha), read.bands, frozenset(notes))


def read_dicom(raw: bytes, channels: int, max_pixels: int) -> Read:
    """The first frame of a DICOM file, as its modality means it: rescaled by slope and intercept, MONOCHROME1 inverted.

    Windows are not applied.

    Raises:
        ValueError: there is no pydicom, no picture in the file, or one of more pixels than allowed.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
    except ModuleNotFoundError:
        raise ValueError('a DICOM file, which pydicom reads: pip install "sdfast[dicom]"') from None

    data = pydicom.dcmread(io.BytesIO(raw))
    if "Rows" not in data or "Columns" not in data or "PixelData" not in data:
        raise ValueError("a DICOM file without a picture")
    _check_size(int(data.Rows) * int(data.Columns), max_pixels)
    frames, kind = int(data.get("NumberOfFrames", 1) or 1), str(data.get("PhotometricInterpretation", ""))
    try:
        found = pixel_array(data, index=0)
    except Exception as error:  # it names the packages that could, or what is damaged
        raise ValueError(f"a DICOM file that pydicom cannot decode here ({_line(error)})") from error
    declared = None
    if kind == "PALETTE COLOR":
        found = apply_color_lut(found, data)
    elif found.ndim == 2:
        plain, stored = found, int(data.get("BitsStored", 16))
        found = apply_modality_lut(found, data)
        if np.array_equal(found, plain):
            found, declared = plain, (1 << stored) - 1 if 8 < stored < 16 and plain.dtype.kind == "u" else None
        elif found.dtype.kind == "f" and np.array_equal(found, np.rint(found)):
            found = found.astype(np.int64)
    read = _of_array(found, None if found.ndim == 2 else 2, channels, npy=False)
    notes = {note for note, holds in ((FRAMES, frames > 1), (INVERTED, kind == "MONOCHROME1")) if holds}
    return Read(replace(read.deep, declared=declared, inverted=kind == "MONOCHROME1"), read.bands, frozenset(notes))


def _axis_of_bands(shape: tuple[int, ...], channels: int) -> int | None:
    """Which of the axes of an array is the bands', 0 or 2; None of two."""
    if len(shape) == 2:
        return None
    first, last = shape[0], shape[2]
    if (first == channels) != (last == channels):
        return 0 if first == channels else 2
    return 0 if first < last else 2


def _of_array(found: NDArray[Any], axis: int | None, channels: int, npy: bool = True) -> Read:
    """An array with its bands last, as many as can be used."""
    found = found.astype(found.dtype.newbyteorder("="))
    if found.dtype.kind == "b":
        found = found.astype(np.uint8) * np.uint8(255)
    elif found.dtype == np.float16:
        found = found.astype(np.float32)
    if axis is None:
        return Read(Deep(found), 1, frozenset())
    found = np.moveaxis(found, axis, -1)
    deep = Deep(found if found.shape[2] > 1 else found[..., 0])
    note = {BANDS_FIRST if axis == 0 else BANDS_LAST} if npy else set[str]()
    return Read(deep.first(bands_to_keep(deep.bands, channels)), deep.bands, frozenset(note))


def _decoded(part: TiffPage | Any) -> NDArray[Any]:
    """The samples of a page or a series.

    Raises:
        ValueError: the compression needs a further package.
    """
    try:
        return np.asarray(part.asarray())
    except ValueError as error:
        if "imagecodecs" in str(error):
            name = getattr(getattr(part, "keyframe", part), "compression", None)
            raise ValueError(f"a TIFF compressed by {getattr(name, 'name', name)}: pip install imagecodecs") from error
        raise OSError(_line(error)) from error


def _upright(found: NDArray[Any], orientation: int) -> NDArray[Any]:
    """[H, W, ...] turned and mirrored from how a TIFF's orientation tag says that it lies."""
    if orientation in (2, 3):
        found = found[:, ::-1]
    if orientation in (3, 4):
        found = found[::-1]
    if orientation in (5, 6, 7, 8):
        found = found.swapaxes(0, 1)
        if orientation in (6, 7):
            found = found[:, ::-1]
        if orientation in (7, 8):
            found = found[::-1]
    return np.ascontiguousarray(found)


def _check_size(pixels: int, most: int) -> None:
    if pixels > most:
        raise ValueError(f"{pixels:,} pixels are more than data.max_pixels={most}")


def _line(error: Exception) -> str:
    """The first line of what an error says, without the blanks of a table."""
    return " ".join(str(error).split())[:200] or type(error).__name__
