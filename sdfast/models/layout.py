"""Names of tensors, theirs and ours: fused and split projections, folded LayerScale.

What is written is the layout of transformers 4, which 4 and 5 both load without a missing or unexpected key. The tables
of names are those of the families (`sdfast.modalities.images.families`, `sdfast.modalities.texts.families`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdfast.errors import UserError
from sdfast.models.weights import Weights, some

_FACEBOOK = re.compile(
    r"(decoder_)?blocks\.\d+\.|cls_token$|(decoder_)?pos_embed$|patch_embed\.|decoder_(embed|norm|pred)\."
)
_FACEBOOK_AS_HUGGING_FACE = (
    "has the names of facebookresearch or timm ('{name}'), and config.json is of transformers, which names the same"
    " tensors otherwise: give the file itself, without a config.json beside it, or with timm's config.json"
    ' ({{"architecture": "vit_base_patch16_224"}})'
)
FACEBOOK_AS_TIMM = (
    "holds the decoder of facebookresearch/mae ('{name}'), which timm's config.json does not announce: give the file"
    " itself, without a config.json beside it"
)
_LAYER_SCALES = {"scale1": "attn.proj", "scale2": "fc2"}  # LayerScale and the linear layer before it


class Target(NamedTuple):
    """Where a source tensor goes: our name, and which third of it (query, key, value) if it is one of three."""

    name: str
    part: int | None = None


Names = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Naming:
    """How one library names the tensors of a model.

    The keys of `names` are ours: a whole name, or a stem, which is a name without its last word (`weight`, `bias`), `*`
    for the number of a block. Each has the names that the source may have for it, the canonical one first, which is
    written and stands in messages; `(query|key|value)` are the three that are one matrix here.
    """

    names: Names
    ignored: re.Pattern[str]  # tensors of heads that sdfast does not use
    wanted: str  # the end of a sentence on a tensor that is none of these
    prefix: str = ""  # in front of encoder names when the encoder is part of a larger model; taken off when present
    leaves: Mapping[str, str] = field(default_factory=dict)  # last words that differ; the canonical ones first
    always_scaled: bool = False  # every block has LayerScale
    dims: Mapping[str, int] = field(default_factory=dict)  # of ours that have more, of size 1, in front
    in_memory: Sequence[tuple[str, str]] = ()  # patterns and what replaces them in names of modules: see `modules`
    facebook: str = _FACEBOOK_AS_HUGGING_FACE  # said of names of facebookresearch/mae that are none of these

    def target(self, source: str) -> Target | None:
        """Our place for a source tensor, or None for a name that this naming does not know."""
        name = source.removeprefix(self.prefix)
        stem, _, leaf = name.rpartition(".")
        for theirs, end in ((name, ""), (stem, f".{self.leaves.get(leaf, leaf)}")):
            general, number = _numbered(theirs)
            if found := self._targets.get(general):
                return Target(found.name.replace("*", number) + end, found.part)
        return None

    def sources(self, ours: str) -> list[str]:
        """The canonical source names of one of our tensors: one, or three for a projection that the source splits."""
        stem, _, leaf = ours.rpartition(".")
        leaf = next((theirs for theirs, name in self.leaves.items() if name == leaf), leaf)
        prefix = self.prefix if ours.startswith("encoder.") else ""
        for name, end in ((ours, ""), (stem, f".{leaf}")):
            general, number = _numbered(name)
            if general in self.names:
                return [prefix + theirs.replace("*", number) + end for theirs in _split(self.names[general][0])]
        raise KeyError(ours)

    def modules(self, ours: str, leaf: str = "weight") -> list[str]:
        """What transformers 5 calls one of our modules in memory, which may differ from the names in files.

        `leaf` is which of its tensors is meant: not all that are one layer here need have a bias.
        """
        found = [name.rpartition(".")[0] for name in self.sources(f"{ours}.{leaf}")]
        for pattern, replacement in self.in_memory:
            found = [part for name in found for part in _split(re.sub(pattern, replacement, name))]
        return found

    @cached_property
    def _targets(self) -> dict[str, Target]:
        found: dict[str, Target] = {}
        for ours, sources in self.names.items():
            for parts in map(_split, sources):
                found |= {theirs: Target(ours, part if parts[1:] else None) for part, theirs in enumerate(parts)}
        return found


def blocks(ours: str, lists: Sequence[str], names: Names) -> Names:
    """Names of every block of a stack, from our list, what the source may call it, and those behind the number."""
    return {
        f"{ours}.*.{name}": [f"{theirs}.*.{source}" for theirs in lists for source in sources]
        for name, sources in names.items()
    }


def _split(source: str) -> list[str]:
    start, _, rest = source.partition("(")
    words, _, end = rest.partition(")")
    return [f"{start}{word}{end}" for word in words.split("|")]


def _numbered(name: str) -> tuple[str, str]:
    """A name with `*` for the number of its block, and that number."""
    match = re.search(r"(?<=\.)\d+(?=\.)", name)
    return (f"{name[: match.start()]}*{name[match.end() :]}", match[0]) if match else (name, "")


def read_state(weights: Weights, naming: Naming, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Our tensors from those of a checkpoint: renamed, projections fused, LayerScale folded, widened to float32.

    LayerScale multiplies the output of the attention projection and of the MLP by a vector; that is the same linear
    layer with its rows and bias multiplied, so nothing is lost but one float32 rounding per weight.

    Args:
        weights: the checkpoint.
        naming: whose names these are.
        expected: our names and sizes (`sizes_of`); names beyond these are an error unless `naming` ignores them.

    Returns:
        One freshly allocated float32 CPU tensor per name in `expected`.

    Raises:
        UserError: a tensor is missing, unknown, doubled, of the wrong shape or type, or not finite; it is named.
    """
    pieces = _collect(weights, naming, expected)
    state: dict[str, Tensor] = {}
    for name, size in expected.items():
        sources, wanted = pieces.pop(name, {}), naming.sources(name)
        parts: list[int | None] = [None] if None in sources else [*range(len(wanted))]
        for part in parts:
            if part not in sources:
                raise weights.missing(_shown(wanted[part or 0], naming, weights))
        state[name] = torch.empty(size)
        for part, piece in zip(parts, pieces_of(name, state[name], naming, expected, len(parts)), strict=True):
            _copy_checked(weights, sources[part], piece)
    _fold_layer_scale(weights, naming, pieces, state)
    return state


def write_state(state: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """The inverse of `read_state` for a naming that splits projections: our tensors under the source's names.

    Where every block has LayerScale, that is ones.
    """
    tensors: dict[str, Tensor] = {}
    sizes = {name: tensor.shape for name, tensor in state.items()}
    for name, tensor in state.items():
        sources = naming.sources(name)
        tensors.update(zip(sources, pieces_of(name, tensor, naming, sizes, len(sources)), strict=True))
    for block in _encoder_blocks(state) if naming.always_scaled else ():
        for scale, linear in _LAYER_SCALES.items():
            weight = state[f"{block}.{linear}.weight"]
            tensors[naming.sources(f"{block}.{scale}.vector")[0]] = torch.ones_like(weight[:, 0])
    return tensors


def pieces_of(
    name: str, tensor: Tensor, naming: Naming, sizes: Mapping[str, torch.Size], parts: int
) -> tuple[Tensor, ...]:
    """One of our tensors as the source has it: with as many dimensions, and in so many parts; views.

    Each has as many rows, but for keys and values which several heads of queries share.
    """
    if name in naming.dims:
        tensor = tensor.view(tensor.shape[-naming.dims[name] :])
    block, ours, _ = name.rpartition(".qkv.")
    if not ours or parts != 3:
        return tensor.chunk(parts)
    queries = sizes[f"{block}.proj.weight"][1]
    return tensor.split([queries, *[(len(tensor) - queries) // 2] * 2])


def unused_note(weights: Weights, naming: Naming, read: Collection[str]) -> list[str]:
    """A sentence on tensors of heads in the checkpoint that are not among ours that were read, if there are any."""
    ignored = sorted(name for name in weights.tensors if naming.ignored.match(name))
    targets = {name: naming.target(name) for name in ignored if not name.endswith("position_ids")}
    unused = [name for name, target in targets.items() if target is None or target.name not in read]
    return [f"not used: {some(unused)} of the checkpoint."] if unused else []


def _collect(weights: Weights, naming: Naming, expected: Mapping[str, torch.Size]) -> dict[str, dict[int | None, str]]:
    """Source names by our name and part; includes the LayerScale vectors."""
    pieces: dict[str, dict[int | None, str]] = {}
    unknown = []
    for source in sorted(weights.tensors):
        target = naming.target(source)
        if target is None or not _wanted(target.name, expected):
            if not naming.ignored.match(source):
                unknown.append(source)
            continue
        sources = pieces.setdefault(target.name, {})
        if target.part in sources or (sources and None in (target.part, *sources)):
            raise UserError(
                f"{weights.file_of(source)} holds '{source}' and '{next(iter(sources.values()))}' for the same weights."
            )
        sources[target.part] = source
    if unknown:
        if facebook := [name for name in unknown if _FACEBOOK.match(name)]:
            raise UserError(f"{weights.file_of(facebook[0])} {naming.facebook.format(name=facebook[0])}.")
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{weights.file_of(unknown[0])} holds '{unknown[0]}'{more}, which {weights.described_by} does not announce"
            f" or such a model does not have: give {naming.wanted}."
        )
    return pieces


def _wanted(name: str, expected: Mapping[str, torch.Size]) -> bool:
    block, _, scale = name.removesuffix(".vector").rpartition(".")
    return name in expected or (scale in _LAYER_SCALES and f"{block}.{_LAYER_SCALES[scale]}.weight" in expected)


def _copy_checked(weights: Weights, source: str, destination: Tensor) -> None:
    """Widen a source tensor into `destination`, whose shape it must have."""
    tensor = weights.tensors[source]
    where = f"the tensor '{source}' in {weights.file_of(source)}"
    if tensor.shape != destination.shape:
        raise UserError(
            f"{where} has shape {list(tensor.shape)}, but {weights.described_by} makes it {list(destination.shape)}."
        )
    if not tensor.is_floating_point():
        raise UserError(f"{where} has type {tensor.dtype}: give a checkpoint with floating-point weights.")
    destination.copy_(tensor)
    if not np.isfinite(destination.numpy()).all():  # numpy's is thirty times as fast as torch's on a CPU
        raise UserError(f"{where} holds values that are not finite: the checkpoint is broken.")


def _fold_layer_scale(
    weights: Weights, naming: Naming, pieces: Mapping[str, dict[int | None, str]], state: dict[str, Tensor]
) -> None:
    if not pieces and not naming.always_scaled:
        return
    for block in _encoder_blocks(state):
        for scale, linear in _LAYER_SCALES.items():
            name = f"{block}.{scale}.vector"
            if name not in pieces:
                raise weights.missing(_shown(naming.sources(name)[0], naming, weights))
            weight, bias = state[f"{block}.{linear}.weight"], state.get(f"{block}.{linear}.bias")
            factor = torch.empty_like(weight[:, 0])
            _copy_checked(weights, pieces[name][None], factor)
            weight.mul_(factor[:, None])
            if bias is not None:
                bias.mul_(factor)


def _encoder_blocks(state: Mapping[str, Tensor]) -> list[str]:
    suffix = ".attn.proj.weight"
    return [name.removesuffix(suffix) for name in state if name.startswith("encoder.") and name.endswith(suffix)]


def _shown(name: str, naming: Naming, weights: Weights) -> str:
    """The name as this checkpoint would write it: without the prefix where it has none."""
    prefixed = any(source.startswith(naming.prefix) for source in weights.tensors)
    return name if prefixed else name.removeprefix(naming.prefix)
