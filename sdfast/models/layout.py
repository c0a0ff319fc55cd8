"""Names of tensors: Hugging Face (ViT, ViTMAE, DINOv2), timm, and ours; fused and split projections, folded LayerScale.

Facts on names: transformers 4.57 and 5.23 (modeling_vit.py, modeling_vit_mae.py, modeling_dinov2.py and
conversion_mapping.py), timm 1.0 (vision_transformer.py). What is written is the layout of transformers 4, which 4 and 5
both load without a missing or unexpected key. (transformers 5.23 itself writes the decoder blocks of a ViTMAE as
`decoder.decoder_encoder.layer.N`, which 4 does not know; it is read here.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdfast.errors import UserError
from sdfast.models.weights import Weights

_FACEBOOK = re.compile(
    r"(decoder_)?blocks\.\d+\.|cls_token$|(decoder_)?pos_embed$|patch_embed\.|decoder_(embed|norm|pred)\."
)
LAYER_SCALES = {"scale1": "attn.proj", "scale2": "fc2"}  # LayerScale and the linear layer before it


class Target(NamedTuple):
    """Where a source tensor goes: our name, and which third of it (query, key, value) if it is one of three."""

    name: str
    part: int | None = None


@dataclass(frozen=True)
class Naming:
    """How one library names the tensors of a ViT.

    A stem is a name without its last word (`weight`, `bias`); tables map stems of the source to ours. The first source
    stem for one of ours is the canonical one, used for writing and in messages.
    """

    prefix: str  # in front of encoder names when the encoder is part of a larger model; taken off when present
    plain: Mapping[str, str]
    block_lists: tuple[tuple[str, str], ...]  # source list of blocks, ours
    block_parts: Mapping[str, Target]
    parameters: Mapping[str, str]  # names without a stem
    ignored: re.Pattern[str]  # tensors of heads that sdfast does not use
    leaves: Mapping[str, str] = field(default_factory=dict)  # last words that differ
    always_scaled: bool = False  # every block has LayerScale
    wanted: str = "a plain ViT, ViTMAE or DINOv2 (no registers, extra tokens or other blocks)"  # in messages

    def target(self, source: str) -> Target | None:
        """Our place for a source tensor, or None for a name that this naming does not know."""
        name = source.removeprefix(self.prefix)
        if name in self.parameters:
            return Target(self.parameters[name])
        stem, _, leaf = name.rpartition(".")
        leaf = self.leaves.get(leaf, leaf)
        if stem in self.plain:
            return Target(f"{self.plain[stem]}.{leaf}")
        for theirs, ours in self.block_lists:
            match = re.fullmatch(re.escape(theirs) + r"\.(\d+)\.(.+)", stem)
            if match and match[2] in self.block_parts:
                part = self.block_parts[match[2]]
                return Target(f"{ours}.{match[1]}.{part.name}.{leaf}", part.part)
        return None

    def sources(self, ours: str) -> list[str]:
        """The canonical source names of one of our tensors: one, or three for a projection that the source splits."""
        for theirs, name in self.parameters.items():
            if name == ours:
                return [self._prefixed(theirs, ours)]
        stem, _, leaf = ours.rpartition(".")
        leaf = next((theirs for theirs, name in self.leaves.items() if name == leaf), leaf)
        for theirs, name in self.plain.items():
            if name == stem:
                return [self._prefixed(f"{theirs}.{leaf}", ours)]
        for theirs, name in self.block_lists:
            match = re.fullmatch(re.escape(name) + r"\.(\d+)\.(.+)", stem)
            if match:
                parts: dict[int | None, str] = {}
                for part, target in self.block_parts.items():
                    if target.name == match[2]:
                        parts.setdefault(target.part, part)
                return [self._prefixed(f"{theirs}.{match[1]}.{part}.{leaf}", ours) for part in parts.values()]
        raise KeyError(ours)

    def _prefixed(self, name: str, ours: str) -> str:
        return self.prefix + name if ours.startswith("encoder.") else name


_HF_ATTENTION = {
    "attention.attention.query": Target("attn.qkv", 0),
    "attention.attention.key": Target("attn.qkv", 1),
    "attention.attention.value": Target("attn.qkv", 2),
    "attention.output.dense": Target("attn.proj"),
    # transformers 5 in memory
    "attention.q_proj": Target("attn.qkv", 0),
    "attention.k_proj": Target("attn.qkv", 1),
    "attention.v_proj": Target("attn.qkv", 2),
    "attention.o_proj": Target("attn.proj"),
}
_HF_MLP = {
    "intermediate.dense": Target("fc1"),
    "output.dense": Target("fc2"),
    "layernorm_before": Target("norm1"),
    "layernorm_after": Target("norm2"),
    "mlp.fc1": Target("fc1"),
    "mlp.fc2": Target("fc2"),
}
_HF_ENCODER = {"embeddings.patch_embeddings.projection": "encoder.patch_embed", "layernorm": "encoder.norm"}
_HF_PARAMETERS = {
    "embeddings.cls_token": "encoder.cls_token",
    "embeddings.position_embeddings": "encoder.position_embeddings",
}
_HF_BLOCK_LISTS = (("encoder.layer", "encoder.blocks"), ("layers", "encoder.blocks"))

VIT_MAE = Naming(
    prefix="vit.",
    plain={
        **_HF_ENCODER,
        "decoder.decoder_embed": "decoder.embed",
        "decoder.decoder_norm": "decoder.norm",
        "decoder.decoder_pred": "decoder.pred",
    },
    block_lists=(
        *_HF_BLOCK_LISTS,
        ("decoder.decoder_layers", "decoder.blocks"),
        ("decoder.decoder_encoder.layer", "decoder.blocks"),
    ),
    block_parts={**_HF_ATTENTION, **_HF_MLP},
    parameters={
        **_HF_PARAMETERS,
        "decoder.mask_token": "decoder.mask_token",
        "decoder.decoder_pos_embed": "decoder.position_embeddings",
    },
    ignored=re.compile(r"(vit\.)?(pooler|classifier)\."),
)
VIT = Naming(
    prefix="vit.",
    plain=_HF_ENCODER,
    block_lists=_HF_BLOCK_LISTS,
    block_parts={**_HF_ATTENTION, **_HF_MLP},
    parameters=_HF_PARAMETERS,
    ignored=re.compile(r"(vit\.)?(pooler|classifier|decoder)\.|(vit\.)?embeddings\.mask_token$"),
)
DINOV2 = Naming(
    prefix="dinov2.",
    plain=_HF_ENCODER,
    block_lists=_HF_BLOCK_LISTS,
    block_parts={
        **_HF_ATTENTION,
        "norm1": Target("norm1"),
        "norm2": Target("norm2"),
        "mlp.fc1": Target("fc1"),
        "mlp.fc2": Target("fc2"),
        "layer_scale1": Target("scale1"),
        "layer_scale2": Target("scale2"),
    },
    parameters=_HF_PARAMETERS,
    ignored=re.compile(r"classifier\.|(dinov2\.)?embeddings\.mask_token$"),
    leaves={"lambda1": "vector"},
    always_scaled=True,
)
TIMM = Naming(
    prefix="",
    plain={"patch_embed.proj": "encoder.patch_embed", "norm": "encoder.norm"},
    block_lists=(("blocks", "encoder.blocks"),),
    block_parts={
        "attn.qkv": Target("attn.qkv"),
        "attn.proj": Target("attn.proj"),
        "norm1": Target("norm1"),
        "norm2": Target("norm2"),
        "mlp.fc1": Target("fc1"),
        "mlp.fc2": Target("fc2"),
        "ls1": Target("scale1"),
        "ls2": Target("scale2"),
    },
    parameters={"cls_token": "encoder.cls_token", "pos_embed": "encoder.position_embeddings"},
    ignored=re.compile(r"head\.|mask_token$"),
    leaves={"gamma": "vector"},
)


def read_state(weights: Weights, naming: Naming, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Our tensors from those of a checkpoint: renamed, projections fused, LayerScale folded, widened to float32.

    LayerScale multiplies the output of the attention projection and of the MLP by a vector; that is the same linear
    layer with its rows and bias multiplied, so nothing is lost but one float32 rounding per weight.

    Args:
        weights: the checkpoint.
        naming: whose names these are.
        expected: our names and shapes (`shapes_of`); names beyond these are an error unless `naming` ignores them.

    Returns:
        One freshly allocated float32 CPU tensor per name in `expected`.

    Raises:
        UserError: a tensor is missing, unknown, doubled, of the wrong shape or type, or not finite; it is named.
    """
    pieces = _collect(weights, naming, expected)
    state: dict[str, Tensor] = {}
    for name, shape in expected.items():
        sources = pieces.pop(name, {})
        wanted = naming.sources(name)
        if not sources:
            raise UserError(f"{weights.file_of('')} has no tensor '{_shown(wanted[0], naming, weights)}'.")
        order: Sequence[int | None] = [None] if None in sources else range(len(wanted))
        for part in order:
            if part not in sources:
                missing = _shown(wanted[part or 0], naming, weights)
                raise UserError(f"{weights.file_of('')} has no tensor '{missing}'.")
        state[name] = torch.empty(shape)
        for part, piece in zip(order, state[name].chunk(len(order)), strict=True):
            _copy_checked(weights, sources[part], piece)
    _fold_layer_scale(weights, naming, pieces, state)
    return state


def read_tensors(weights: Weights, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Tensors under the source's own names, checked and widened as in `read_state` (for heads)."""
    for name in expected:
        if name not in weights.tensors:
            raise UserError(f"{weights.file_of('')} has no tensor '{name}'.")
    state = {name: torch.empty(shape) for name, shape in expected.items()}
    for name, tensor in state.items():
        _copy_checked(weights, name, tensor)
    return state


def write_state(state: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """The inverse of `read_state` for a naming that splits projections: our tensors under the source's names."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        sources = naming.sources(name)
        tensors.update(zip(sources, tensor.chunk(len(sources)), strict=True))
    return tensors


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of a module (which may lie on the meta device)."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def has_decoder(weights: Weights) -> bool:
    """Whether a ViTMAE checkpoint brings a decoder."""
    return any(name.startswith("decoder.") for name in weights.tensors)


def ignored_tensors(weights: Weights, naming: Naming) -> list[str]:
    """Tensors of heads in the checkpoint that sdfast has no use for, by name."""
    return sorted(name for name in weights.tensors if naming.ignored.match(name))


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
            raise UserError(_facebook_sentence(weights, facebook[0], naming is TIMM))
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{weights.file_of(unknown[0])} holds '{unknown[0]}'{more}, which config.json does not announce or such a "
            f"model does not have: give {naming.wanted}."
        )
    return pieces


def _facebook_sentence(weights: Weights, name: str, timm: bool) -> str:
    file, on_the_hub = weights.file_of(name), "(facebook/vit-mae-base, -large and -huge are on the hub)"
    if timm:
        return (
            f"{file} holds the decoder of facebookresearch/mae ('{name}'), which timm's config.json does not announce:"
            f" give the model as transformers saves it {on_the_hub}, or the encoder's tensors alone."
        )
    return (
        f"{file} has the names of facebookresearch or timm ('{name}'), and config.json is of transformers, which names"
        f" the same tensors otherwise: give the model as transformers saves it {on_the_hub}, or for an encoder alone"
        ' timm\'s config.json ({"architecture": "vit_base_patch16_224"}) in place of this one.'
    )


def _wanted(name: str, expected: Mapping[str, torch.Size]) -> bool:
    block, _, scale = name.removesuffix(".vector").rpartition(".")
    return name in expected or (scale in LAYER_SCALES and f"{block}.{LAYER_SCALES[scale]}.weight" in expected)


def _copy_checked(weights: Weights, source: str, destination: Tensor) -> None:
    """Widen a source tensor into `destination`, whose shape it must have."""
    tensor = weights.tensors[source]
    where = f"the tensor '{source}' in {weights.file_of(source)}"
    if tensor.shape != destination.shape:
        raise UserError(f"{where} has shape {list(tensor.shape)}, but config.json makes it {list(destination.shape)}.")
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
    suffix = ".attn.proj.weight"
    blocks = [name.removesuffix(suffix) for name in state if name.startswith("encoder.") and name.endswith(suffix)]
    for block in blocks:
        for scale, linear in LAYER_SCALES.items():
            name = f"{block}.{scale}.vector"
            if name not in pieces:
                missing = _shown(naming.sources(name)[0], naming, weights)
                raise UserError(f"{weights.file_of('')} has no tensor '{missing}'.")
            weight, bias = state[f"{block}.{linear}.weight"], state[f"{block}.{linear}.bias"]
            factor = torch.empty_like(bias)
            _copy_checked(weights, pieces[name][None], factor)
            weight.mul_(factor[:, None])
            bias.mul_(factor)


def _shown(name: str, naming: Naming, weights: Weights) -> str:
    """The name as this checkpoint would write it: without the prefix where it has none."""
    prefixed = any(source.startswith(naming.prefix) for source in weights.tensors)
    return name if prefixed else name.removeprefix(naming.prefix)
