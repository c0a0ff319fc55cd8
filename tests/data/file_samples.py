"""Picture files written byte by byte, for what PIL reads and does not write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a file of that format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    samples: NDArray[np.integer], depth: int, kind: int, transparent: Sequence[int] = (), palette: bytes = b""
) -> bytes:
    """A PNG of samples [H, W] or [H, W, C], `depth` bits each.

    Args:
        transparent: tRNS: of a palette one alpha per entry, else the transparent sample of each channel.
    """
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if depth < 8:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        lines = [np.packbits(line.reshape(-1).astype(np.uint8)).tobytes() for line in bits]
    else:
        lines = [line.astype(f">u{depth // 8}").tobytes() for line in rows]
    key = bytes(transparent) if kind == PALETTE else struct.pack(f">{len(transparent)}H", *transparent)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        *([(b"PLTE", palette)] if palette else []),
        *([(b"tRNS", key)] if key else []),
        (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def tiff(
    samples: NDArray[np.generic],
    photometric: int,
    extra: Sequence[int] | None = None,
    *,
    order: str = "<",
    deflate: bool = False,
    planes: bool = False,
    bits: int | None = None,
    bands: int | None = None,
) -> bytes:
    """A TIFF of samples [H, W, C].

    Args:
        photometric: 1 grey, 2 RGB, 5 CMYK.
        extra: ExtraSamples, 0 = unspecified, 1 = associated alpha, 2 = unassociated; not written when None.
        planes: one strip per channel, one after the other.
        bits: BitsPerSample, when not those of the type (packed by the caller into one channel of bytes).
        bands: SamplesPerPixel, likewise.
    """
    height, width, channels = samples.shape
    bands = bands or channels
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    stored = samples.astype(samples.dtype.newbyteorder(order))
    strips = [stored[..., band].tobytes() for band in range(channels)] if planes else [stored.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    entries: list[tuple[int, str, Sequence[int]]] = [
        (256, "I", [width if bits is None else int(samples.shape[1] * 8 // bits)]),
        (257, "I", [height]),
        (258, "H", [bits or samples.dtype.itemsize * 8] * bands),
        (259, "H", [8 if deflate else 1]),
        (262, "H", [photometric]),
        (273, "I", [0] * len(strips)),
        (277, "H", [bands]),
        (278, "I", [height]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [2 if planes else 1]),
        *([(338, "H", extra)] if extra is not None else []),
        (339, "H", [kind] * bands),
    ]
    tail = 8 + 2 + 12 * len(entries) + 4
    sizes = {code: 2 if code == "H" else 4 for code in "HI"}
    room = sum(size for _, code, values in entries if (size := sizes[code] * len(values)) > 4)
    offsets = np.cumsum([tail + room, *map(len, strips)]).tolist()
    directory, outside = b"", b""
    for tag, code, values in entries:
        body = struct.pack(f"{order}{len(values)}{code}", *(offsets[: len(strips)] if tag == 273 else values))
        if len(body) > 4:
            outside, body = outside + body, struct.pack(f"{order}I", tail + len(outside))
        directory += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[code], len(values)) + body.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + directory + struct.pack(f"{order}I", 0) + outside + b"".join(strips)


def pgm(samples: NDArray[np.integer], largest: int) -> bytes:
    """A binary PGM of samples [H, W]."""
    height, width = samples.shape
    return f"P5 {width} {height} {largest}\n".encode() + samples.astype(">u2" if largest > 255 else "u1").tobytes()
