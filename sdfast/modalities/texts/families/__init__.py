"""The families of text models of Hugging Face: one file each, a row or more of `FAMILIES`.

The last matrix of the language model head is that of the word embeddings and is not stored, as transformers does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdfast.errors import UserError
from sdfast.modalities.texts.families import bert, distilbert, electra, eurobert, modernbert, roberta
from sdfast.modalities.texts.families.family import DROPOUTS, SHAPE, TextFamily
from sdfast.modalities.texts.model import Dropouts, TextShape
from sdfast.models.blocks import PLAIN, TransformerShape
from sdfast.models.folder import Kind, Settings, Source
from sdfast.models.found import unwrapped
from sdfast.models.initialise import STD
from sdfast.models.weights import read_config, read_weights

__all__ = ["DROPOUTS", "FAMILIES", "SHAPE", "TextFamily", "TextSource", "describe"]

FAMILIES: Mapping[str, TextFamily] = {
    **bert.FAMILIES,
    **roberta.FAMILIES,
    **distilbert.FAMILIES,
    **electra.FAMILIES,
    **modernbert.FAMILIES,
    **eurobert.FAMILIES,
}


@dataclass(frozen=True)
class TextSource(Source):
    """A text model's folder."""

    family: TextFamily
    shape: TextShape
    dropouts: Dropouts


def describe(folder: Path) -> TextSource:
    """Sizes, naming and dropouts of the checkpoint in a folder.

    Raises:
        UserError: the architecture is none that sdfast takes, or a field is missing or makes no sense, or a file cannot
            be read.
    """
    settings = Settings(read_config(folder), folder / "config.json")
    family = settings.family(FAMILIES, "texts")
    full = Settings({**family.defaults, **settings.values}, settings.path)
    stack, sizes = full.read(family.stack), full.read(family.shape)
    style, pre_norm = PLAIN, None
    if family.pre_norm is not None:
        read, _ = family.pre_norm
        style, pre_norm = read(full, stack["depth"])
    encoder = TransformerShape(**stack, style=style)
    words = sizes["vocabulary"]
    word = Kind(
        f"one of the {words} words or null",
        lambda value: value is None or (type(value) is int and 0 <= value < words),
    )
    kind, pad_id = settings.values["model_type"], full.get("pad_token_id", word)
    shape = TextShape(kind=kind, pad_id=pad_id, encoder=encoder, pre_norm=pre_norm, **family.fixed, **sizes)
    settings.check_heads(encoder)
    if shape.longest < 1:
        raise UserError(f"{settings.path} is inconsistent: {shape.positions} positions leave none for a token.")
    dropouts, weights = Dropouts(**settings.read(family.dropouts)), unwrapped(read_weights(folder), family.naming)
    settings.check_budget(shape.parameters, encoder.depth, weights)
    notes = [*settings.unheeded({"initializer_range": STD}), *settings.differing(family.remarked)]
    return TextSource(settings, weights, family, shape, notes, dropouts)
