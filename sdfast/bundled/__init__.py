"""The small models and data sets that come with the package, so that every command runs as it is.

`model/` is a ViT-MAE that `recipes/bundled_mae.py` pre-trained; `fashion-mnist/` is a part of Fashion-MNIST (MIT
licence, Zalando SE). `wordnet-glosses/` are 3,000 explanations of nouns from WordNet 3.0 (its own licence, Princeton
University) in 10 classes; `text-model/` is a BERT that sdfast pre-trained on other texts, and its tokenizer.
`recipes/README.md` says how all of it was made.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

MODELS = {"bundled": "ViT-MAE", "bundled-text": "BERT"}  # by what --model calls them


def model_folder(name: str = "bundled") -> Path:
    """Folder of a bundled model, in Hugging Face format."""
    folder = {"bundled": "model", "bundled-text": "text-model"}[name]
    return Path(str(resources.files("sdfast.bundled"))) / folder


def data_folder() -> Path:
    """Folder of the bundled images, as IDX files."""
    return Path(str(resources.files("sdfast.bundled"))) / "fashion-mnist"


def text_folder() -> Path:
    """Folder of the bundled texts, as JSON lines: 2,000 to train on and 1,000 to test."""
    return Path(str(resources.files("sdfast.bundled"))) / "wordnet-glosses"
