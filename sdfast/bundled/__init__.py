"""The small models and data sets that come with the package, so that every command runs as it is.

`model/` is a ViT-MAE that `recipes/bundled_mae.py` pre-trained; `fashion-mnist/` is a part of Fashion-MNIST (MIT
licence, Zalando SE). `wordnet-glosses/` are 3,000 explanations of nouns from WordNet 3.0 (its own licence, Princeton
University) in 10 classes; `text-model/` is a tokenizer of 8,000 word pieces that was trained on other texts.
`recipes/README.md` says how all of it was made.
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


def text_folder() -> Path:
    """Folder of the bundled texts, as JSON lines: 2,000 to train on and 1,000 to test."""
    return Path(str(resources.files("sdfast.bundled"))) / "wordnet-glosses"


def tokenizer_folder() -> Path:
    """Folder of the bundled tokenizer, in Hugging Face format."""
    return Path(str(resources.files("sdfast.bundled"))) / "text-model"
