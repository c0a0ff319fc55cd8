"""Checkpoints as they are found: files of weights without a config.json, and models inside of larger ones."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from sdfast.errors import UserError
from sdfast.models.layout import Naming
from sdfast.models.weights import Weights, some
from sdfast.regular import is_there

_SAVED = (".pth", ".pt", ".ckpt")  # what training scripts call their files
_AVERAGED = ("teacher", "target_encoder", "momentum", "ema")  # of two models of the same names, the one that is kept
_ANCHORS = ("encoder.patch_embed", "encoder.word_embeddings")  # what every model has once


@dataclass(frozen=True)
class Told:
    """What a person says of a model, as a file of weights alone does not; None where nothing is said.

    Attributes:
        heads: of the encoder's attention.
        decoder_heads: of the decoder's.
        mean, std: of the pixels in [0, 1] that it was trained on, one number per channel.
        norm_pix: whether its decoder predicts pixels normalised per patch.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    norm_pix: bool | None = None

    @property
    def options(self) -> list[str]:
        """The options of the command line that were given."""
        return [f"--{each.name.replace('_', '-')}" for each in fields(self) if getattr(self, each.name) is not None]


def bare_file(place: Path) -> Path | None:
    """The file of weights alone that is given: `place` itself, or the only one that a script saved in that folder.

    None for a folder with a config.json, which says what its weights are of, and for one with no such file or several.
    """
    if not place.is_dir():
        return place
    if is_there(place / "config.json"):
        return None
    try:
        found = [path for path in sorted(place.iterdir()) if path.suffix in _SAVED and path.is_file()]
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def unwrapped(weights: Weights, naming: Naming) -> Weights:
    """The tensors of a model that is a part of what was saved: a module's attribute, or the teacher of a pair.

    They are found by the embedding that every model has once; where that has its usual name nothing is changed.

    Args:
        weights: as read.
        naming: whose names the model's tensors have.

    Returns:
        The weights with the model's own names, and a note on what was taken off and left out.

    Raises:
        UserError: there are several models, and nothing says which.
    """
    ends = [f"{name}.weight" for anchor in _ANCHORS for name in naming.names.get(anchor, ())]
    found = {name.removesuffix(end) for name in weights.tensors for end in ends if name.endswith(end)}
    prefixes = sorted({_around(each, naming.prefix) for each in found if not each or each.endswith(".")})
    if not prefixes or "" in prefixes:
        return weights
    prefix = prefixes[0]
    if len(prefixes) > 1:
        averaged = [each for each in prefixes if any(word in each for word in _AVERAGED)]
        if len(averaged) != 1:
            raise UserError(
                f"{weights.file_of('')} holds several models ({some(prefixes)}): save the tensors of one alone, under"
                " their own names."
            )
        prefix = averaged[0]
    tensors = {name.removeprefix(prefix): each for name, each in weights.tensors.items() if name.startswith(prefix)}
    files = {name.removeprefix(prefix): path for name, path in weights.files.items() if name.startswith(prefix)}
    rest = sorted(name for name in weights.tensors if not name.startswith(prefix))
    notes = [f"the model is what the checkpoint calls {prefix.removesuffix('.')}."]
    notes += [f"not used: {some(rest)} of the checkpoint."] if rest else []
    return replace(weights, tensors=tensors, files=files, notes=(*weights.notes, *notes))


def _around(before: str, own: str) -> str:
    """What stands before all names of a model, of what stands before its embedding: its own prefix is not of all."""
    return before[: -len(own)] if own and f".{before}".endswith(f".{own}") else before


def refuse_told(told: Told, place: Path) -> None:
    """Raise a UserError where something is said of a model whose config.json says it."""
    if options := told.options:
        raise UserError(
            f"{options[0]} is for a file of weights alone, and {place} has a config.json: change that instead."
        )
