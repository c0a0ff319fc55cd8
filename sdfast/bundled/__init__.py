"""The small model and data set that come with the package, so that every command runs as it is.

`model/` is a ViT-MAE that `recipes/bundled_mae.py` pre-trained; `fashion-mnist/` is a part of Fashion-MNIST (MIT
licence, Zalando SE). `recipes/README.md` says how both were made.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def model_folder() -> Path:
    """Folder of the bundled ViT-MAE, in Hugging Face format."""
    return Path(str(resources.files("sdfast.bundled"))) / "model"


def data_folder() -> Path:
    """Folder of the bundled images, as IDX files."""
    return Path(str(resources.files("sdfast.bundled"))) / "fashion-mnist"
