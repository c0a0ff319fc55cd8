"""Tiny images and sources for the tests of sdfast.data, made anew for every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def pixels(seed: int, height: int = 10, width: int = 12, channels: int = 3) -> NDArray[np.uint8]:
    """[height, width, channels] random pixels; equal seeds give equal pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_image(path: Path, seed: int, **options: Any) -> Path:
    """A small image file in the format of the suffix; png keeps the pixels exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path, **options)
    return path


def write_classes(root: Path, classes: dict[str, int], first_seed: int = 0) -> Path:
    """A folder with `count` distinct images in each class folder."""
    seed = first_seed
    for name, count in classes.items():
        for index in range(count):
            write_image(root / name / f"{index:03d}.png", seed)
            seed += 1
    return root


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An array as an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()
