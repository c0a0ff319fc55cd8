"""Images or texts: what a model is of, told by its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast.config import Modality
from sdfast.domains.base import Domain
from sdfast.models import image_families, text_families
from sdfast.models.weights import read_config

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline


def modality_of(config: Mapping[str, Any]) -> Modality:
    """What a model with this `config.json` is of; one that sdfast does not take is refused as it is loaded."""
    kind = config.get("model_type")
    if kind in list(text_families.FAMILIES):
        return "texts"
    words = "vocab_size" in config and "image_size" not in config and kind not in list(image_families.FAMILIES)
    return "texts" if words else "images"


def domain_of(folder: Path, run: Pipeline) -> Domain:
    """The domain of the model in a folder.

    Raises:
        UserError: there is no configuration.
    """
    if modality_of(read_config(folder)) == "texts":
        from sdfast.domains.text import TextDomain

        return TextDomain(run)
    from sdfast.domains.images import ImageDomain

    return ImageDomain(run)
