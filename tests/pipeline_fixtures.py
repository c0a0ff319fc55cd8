"""A small model and a small labelled image folder, written by sdfast's own parts (no optional package)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sdfast.modalities.images.checkpoint import fresh_mae, save_mae
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.models.blocks import TransformerShape

SHAPE = ViTShape((16, 16), 4, 3, TransformerShape(32, 2, 2, 64), TransformerShape(16, 1, 2, 32))
FEW_STEPS = (
    "pretrain.steps=6",
    "distill.steps=6",
    "finetune.steps=6",
    "pretrain.batch_size=8",
    "distill.batch_size=8",
    "finetune.batch_size=8",
)


def write_model(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    save_mae(fresh_mae(SHAPE, seed), folder, ImageProcessor(16, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    return folder


def write_images(folder: Path, classes: int = 2, train: int = 12, test: int = 6, side: int = 20, val: int = 0) -> Path:
    """Noise over a brightness that tells the class."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test), ("val", val)):
        for label in range(classes if count else 0):
            directory = folder / split / f"class{label}"
            directory.mkdir(parents=True)
            for index in range(count):
                level = 60 + 130 * label / max(classes - 1, 1)
                pixels = np.clip(random.normal(level, 40, (side, side, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(directory / f"{split}{index}.png")
    return folder
