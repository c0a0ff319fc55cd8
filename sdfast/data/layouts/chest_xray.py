"""Chest X-ray images of Kermany et al. (2018): `{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`, an ordinary image folder.

The 16 images of val are, like any val beside a test split, used by `finetune.best_dev` alone. The paper does not use
them.
"""

from __future__ import annotations

from pathlib import Path

from sdfast.data.config import DataConfig
from sdfast.data.folder import open_folder
from sdfast.data.items import Source
from sdfast.data.modality import IMAGES

KIND = "Chest X-ray"


def is_chest_xray(path: Path) -> bool:
    """Whether the folder has both classes in train and in test."""
    return all((path / split / name).is_dir() for split in ("train", "test") for name in ("NORMAL", "PNEUMONIA"))


def open_chest_xray(path: Path) -> Source:
    """Open the folder; the copies of itself that Kaggle's archive holds (`chest_xray/`, `__MACOSX/`) are not used.

    Raises:
        UserError: see `open_folder`.
    """
    source = open_folder(path, DataConfig(), IMAGES)
    source.kind = KIND
    return source
