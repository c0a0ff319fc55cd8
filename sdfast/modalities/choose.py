"""Images or texts: what a model is of, told by its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.config import ModalityName
from sdfast.context import Modality
from sdfast.modalities.images import families as image_families
from sdfast.modalities.images.families.facebook import check_file
from sdfast.modalities.texts import families as text_families
from sdfast.models.found import bare_file
from sdfast.models.kinds import refusal
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


def modality_of(place: Path) -> Modality:
    """The modality of a model.

    Args:
        place: its folder, or a file of weights alone.

    Raises:
        UserError: there is no configuration, or it is of a model that sdfast does not take.
    """
    if (file := bare_file(place)) is not None:
        check_file(file)
        return modality_named("images")
    config, taken = read_config(place), {"images": image_families.FAMILIES, "texts": text_families.FAMILIES}
    kind = config.get("model_type", config.get("_class_name"))  # the second of diffusers
    if kind is not None and not any(kind in list(each) for each in taken.values()):
        raise refusal(place / "config.json", config, taken)
    return modality_named(modality_name(config))
