"""Images or texts: what a model is of, told by its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.config import ModalityName
from sdfast.context import Modality
from sdfast.modalities.images import families as image_families
from sdfast.modalities.texts import families as text_families
from sdfast.models.weights import read_config


def modality_name(config: Mapping[str, Any]) -> ModalityName:
    """What a model with this `config.json` is of; one that sdfast does not take is refused as it is loaded."""
    kind = config.get("model_type")
    if kind in list(text_families.FAMILIES):
        return "texts"
    words = "vocab_size" in config and "image_size" not in config and kind not in list(image_families.FAMILIES)
    return "texts" if words else "images"


def modality_named(name: ModalityName) -> Modality:
    """The modality of a name; what it needs is imported then."""
    if name == "texts":
        from sdfast.modalities.texts.modality import TEXTS

        return TEXTS
    from sdfast.modalities.images.modality import IMAGES

    return IMAGES


def modality_of(folder: Path) -> Modality:
    """The modality of the model in a folder.

    Raises:
        UserError: there is no configuration.
    """
    return modality_named(modality_name(read_config(folder)))
