"""Images that are hostile or unlucky."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from stress.hostile_files import MB, SPECIAL, Inputs, Write, bytes_of, special_file, zip_file
from stress.hostile_tables import parquets, tables


def _png(width: int, height: int, rows: int, more: bytes = b"") -> bytes:
    """A PNG of zeros that claims a size and holds so many rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    packed = b"\x78\xda" + _deflated_zeros(width + 1, rows) + struct.pack(">I", (rows * (width + 1) % 65521) << 16 | 1)
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _deflated_zeros(count: int, times: int) -> bytes:
    """A deflate stream of so many zeros, made of one block."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(count if times else 0)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * times + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def _text_chunk() -> bytes:
    packed = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(200 * MB), 9)
    return struct.pack(">I", len(packed) - 4) + packed + struct.pack(">I", zlib.crc32(packed))


def _tiff(width: int, height: int) -> bytes:
    tags = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, 2**31 - 1),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def _small(format_: str) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (20, 20), (90, 20, 200)).save(made, format_)
    return made.getvalue()


def _gif() -> bytes:
    made = io.BytesIO()
    frames = [Image.new("L", (16, 16), number % 250) for number in range(3000)]
    frames[0].save(made, "GIF", save_all=True, append_images=frames[1:])
    return made.getvalue()


_FILES: dict[str, bytes | Callable[[], bytes]] = {
    "empty": b"",
    "one byte": b"\x89",
    "a zip file": zip_file,
    "HTML": b"<html><body>404</body></html>",
    "PNG cut in half": _small("PNG")[:60],
    "PNG of 60,000 x 60,000 zeros": lambda: _png(60_000, 60_000, 60_000),
    "PNG of 13,000 x 13,000 zeros": lambda: _png(13_000, 13_000, 13_000),
    "PNG that claims 2^31 - 1 columns": lambda: _png(2**31 - 1, 1, 0),
    "PNG of no pixels": lambda: _png(0, 0, 0),
    "PNG with 200 MB of text": lambda: _png(16, 16, 16, _text_chunk()),
    "PNG with a wrong check sum": _small("PNG").replace(b"IDAT", b"IDAU", 1),
    "JPEG cut in half": _small("JPEG")[:300],
    "TIFF of 2^31 x 2^31": _tiff(2**31 - 1, 2**31 - 1),
    "TIFF that claims 10,000 x 10,000": _tiff(10_000, 10_000),
    "TIFF whose first directory is itself": b"II*\0" + struct.pack("<I", 4),
    "GIF of 3,000 frames": _gif,
    "WEBP cut in half": _small("WEBP")[:40],
    "BMP of negative sizes": _small("BMP")[:18] + struct.pack("<ii", -5, -(2**31)) + _small("BMP")[26:],
    "PPM that claims 10^9 x 10^9": b"P6 1000000000 1000000000 255\n",
    "EPS that loops": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n{} loop\n%%EOF\n",
    "1 x 60,000": lambda: _png(1, 60_000, 60_000),
    "a pickle": b"cposix\nsystem\n(S'touch pickled'\ntR.",
}


def _among(kind: str, write: Write) -> Write:
    """A copy of good data, and this within."""

    def both(folder: Path) -> None:
        shutil.copytree(folder / kind, folder / "evil")
        write(folder)

    return both


def _broken_name(name: bytes) -> Write:
    def write(folder: Path) -> None:
        place = os.fsencode(folder / "evil/train/class0")
        (Path(os.fsdecode(place)) / os.fsdecode(name)).write_bytes(_small("PNG"))

    return write


def _idx(count: int, *sizes: int, data: bytes = b"", kind: int = 8) -> bytes:
    return struct.pack(">BBBB", 0, 0, kind, 1 + len(sizes)) + struct.pack(f">{1 + len(sizes)}I", count, *sizes) + data


def _idx_set(images: bytes | Callable[[], bytes], labels: bytes | None = None) -> Write:
    def write(folder: Path) -> None:
        (folder / "evil").mkdir()
        good = _idx(20, data=bytes(number % 2 for number in range(20))) if labels is None else labels
        for split in ("train", "t10k"):
            made = images if isinstance(images, bytes) else images()
            (folder / f"evil/{split}-images-idx3-ubyte.gz").write_bytes(made)
            (folder / f"evil/{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(good))

    return write


def _zeros(head: bytes, megabytes: int) -> bytes:
    """A gzip file of many members."""
    return gzip.compress(head) + gzip.compress(bytes(16 * MB), 9) * (megabytes // 16)


def image_inputs() -> Inputs:
    """Everything that --data may be, of images."""
    place = "evil/train/class0"
    found: Inputs = {}
    for how, data in _FILES.items():
        for suffix in ("png", "jpg") if how in ("empty", "a zip file") else ("png",):
            found[f"{suffix}: {how}"] = ("evil", _among("data", bytes_of(f"{place}/x.{suffix}", data)))
    for target in SPECIAL:
        name = f"{place}/{'x' if target == 'x' else 'x.png'}"
        found[f"png: {target}"] = ("evil", _among("data", special_file(name, target)))
    found["a folder that is a link to itself"] = ("evil", _among("data", special_file("evil/train/class2", "../train")))
    for how, name in {
        "of 255 bytes": b"n" * 251 + b".png",
        "that is no UTF-8": b"\xff\xfe.png",
        "with a line break": b"a\nb.png",
        "with a comma and quotes": b"a,\"b'.png",
        "that clears a terminal": b"\x1b[2J.png",
    }.items():
        found[f"a name {how}"] = ("evil", _among("data", _broken_name(name)))
    for how, images in {
        "2^32 - 1 images": gzip.compress(_idx(2**32 - 1, 28, 28)),
        "images of 2^32 - 1 rows": gzip.compress(_idx(20, 2**32 - 1, 2**32 - 1)),
        "no images": gzip.compress(_idx(0, 28, 28)),
        "images of no pixels": gzip.compress(_idx(20, 0, 0)),
        "255 dimensions": gzip.compress(bytes([0, 0, 8, 255]) + bytes(4 * 255)),
        "a type that is not": gzip.compress(_idx(20, 4, 4, kind=99)),
        "2 GB of zeros": lambda: _zeros(_idx(20, 4, 4), 2048),
        "2 GB of zeros as images": lambda: _zeros(_idx(2_000_000, 32, 32), 2048),
        "cut in half": gzip.compress(_idx(20, 4, 4, data=bytes(range(256)) + bytes(64)))[:40],
        "not compressed": _idx(20, 4, 4, data=bytes(320)),
        "fewer pixels than it says": gzip.compress(_idx(20, 4, 4, data=bytes(300))),
    }.items():
        found[f"IDX: {how}"] = ("evil", _idx_set(images))
    labels = {
        "fewer labels": _idx(5, data=bytes(5)),
        "2^32 - 1 labels": _idx(2**32 - 1),
        "labels that are images": _idx(20, 4, 4),
    }
    for how, data in labels.items():
        found[f"IDX: {how}"] = ("evil", _idx_set(gzip.compress(_idx(20, 4, 4, data=bytes(320))), data))
    return found | tables("file_name", "data/train/class0/train0.png") | parquets("image")
