"""A teacher and a few images, small enough to build a bank of in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdfast.data.rows import row_digest
from sdfast.modalities.images.model import MaskedAutoencoder, ViTShape
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.images.teacher import ImageRecipe
from sdfast.modalities.images.transform import Transform
from sdfast.models.blocks import TransformerShape

SHAPE = ViTShape((8, 8), 4, 3, TransformerShape(16, 2, 2, 32), TransformerShape(8, 1, 2, 16))
TRANSFORM = Transform(8, 8, 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
COUNT = 150


def make_module(seed: int = 3) -> MaskedAutoencoder:
    module = MaskedAutoencoder(SHAPE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def make_images(count: int = COUNT, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def digests_of(images: np.ndarray) -> np.ndarray:
    return np.frombuffer(b"".join(row_digest(image) for image in images), np.uint8).reshape(-1, 32)


def make_recipe(**changes: Any) -> ImageRecipe:
    images = changes.pop("images", None)
    images = make_images() if images is None else images
    values: dict[str, Any] = {
        "encoder": make_module().encoder,
        "shape": SHAPE,
        "images": images,
        "digests": digests_of(images),
        "rows": np.arange(len(images)),
        "transform": TRANSFORM,
        "normalise": Normalise(TRANSFORM.mean, TRANSFORM.std),
        "tokens": "cls",
        "dtype": "float32",
        "device": torch.device("cpu"),
    }
    return ImageRecipe(**{**values, **changes})


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the note for people."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "built.json"}
