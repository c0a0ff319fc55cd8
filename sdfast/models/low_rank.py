"""LoRA (Hu et al., 2021): frozen matrices, each with a product of two small ones added, of which those are trained.

PEFT wraps the forward pass of a layer; the step here uses weights directly (`Attention.across`, `Linear.gelu`), so the
sum W + alpha / rank * B A is what a layer calls its weight. Every path and shortcut computes with it as with any
weight, and gradients reach A and B alone. Query, key and value are one matrix here and three layers elsewhere: each has
an A and a B of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdfast.models.base import Classifier, MaskedModel
from sdfast.ops.linear import Linear

QKV = ("query", "key", "value")
TARGETS = (*QKV, "proj", "fc1", "fc2")  # of a block: parts of its `attn.qkv`, and its other linear layers
_LAYERS = {"attn.qkv": QKV, "attn.proj": ("proj",), "fc1": ("fc1",), "fc2": ("fc2",)}


class LowRankLinear(Linear):
    """A `Linear` whose `weight` is a frozen one, `base`, with low-rank products added to all or some of its rows.

    Attributes:
        base: [out, in], not trained.
        lora_A, lora_B: by part, [rank, in] and [rows of the part, rank].
        scaling: 0-D, alpha / rank.
    """

    scaling: Tensor

    def __init__(
        self, layer: Linear, parts: Sequence[str], rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        """Take over a layer, and freeze it. Its output is what it was: A is drawn as PEFT draws it, B is 0.

        Args:
            layer: whose weight and bias these are from now on.
            parts: those of its rows that are adapted.
            rank, alpha: of the products.
            generator: of A, on the CPU.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.rows_vary = layer.in_features, layer.out_features, layer.rows_vary
        self.keyless = layer.keyless
        layer.requires_grad_(False)
        self.base = layer.weight
        self.register_parameter("bias", layer.bias)
        like, bound = self.base, layer.in_features**-0.5  # of kaiming_uniform_(a=sqrt(5))
        drawn = [torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator) for _ in parts]
        self.lora_A = nn.ParameterDict({part: nn.Parameter(a.to(like)) for part, a in zip(parts, drawn, strict=True)})
        self.lora_B = nn.ParameterDict(
            {part: nn.Parameter(like.new_zeros(len(like[self.rows(part)]), rank)) for part in parts}
        )
        self.scale = alpha / rank
        self.register_buffer("scaling", torch.tensor(self.scale, dtype=torch.float64))

    def rows(self, part: str) -> slice:
        """Those of a part."""
        return _rows(part, self.out_features, self.in_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out, in], in the precision of `base` under autocast too."""
        with torch.autocast(self.base.device.type, enabled=False):
            return low_rank_sum(self.base, dict(self.lora_A.items()), dict(self.lora_B.items()), self.scale)


def low_rank_sum(base: Tensor, a: Mapping[str, Tensor], b: Mapping[str, Tensor], scale: float) -> Tensor:
    """A matrix with `scale` B A added to the rows of each part.

    Args:
        base: [out, in].
        a, b: by part, [rank, in] and [rows of the part, rank].
        scale: alpha / rank.

    Returns:
        [out, in].
    """
    places = {part: _rows(part, *base.shape) for part in sorted(a, key=TARGETS.index)}
    pieces, last = [], 0
    for part, rows in places.items():
        pieces += [base[last : rows.start]] if rows.start > last else []
        pieces.append(torch.addmm(base[rows], b[part], a[part], alpha=scale))
        last = rows.stop
    pieces += [base[last:]] if last < len(base) else []
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _rows(part: str, out: int, inside: int) -> slice:
    """The rows of a part: as many queries as inputs, and as many keys as values."""
    if part not in QKV:
        return slice(0, out)
    keys = (out - inside) // 2
    return {"query": slice(0, inside), "key": slice(inside, inside + keys), "value": slice(out - keys, out)}[part]


def add_low_rank(
    module: MaskedModel | Classifier,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    seed: int,
    norms: bool = False,
    full_blocks: int = 0,
) -> None:
    """Freeze a model's encoder but for low-rank products in its blocks; what stands on it is trained as before.

    Args:
        module: changed in place.
        targets: of `TARGETS`.
        rank, alpha: of the products.
        seed: decides every A.
        norms: the encoder's norms are trained too.
        full_blocks: so many of the last blocks are trained in full instead.
    """
    encoder, generator = module.encoder, torch.Generator().manual_seed(seed)
    encoder.requires_grad_(False)
    blocks = list(encoder.blocks)
    first_full = max(0, len(blocks) - full_blocks)
    for block in blocks[:first_full]:
        for name, known in _LAYERS.items():
            parts = [part for part in known if part in targets]
            if parts:
                _replace(block, name, LowRankLinear(_layer(block, name), parts, rank, alpha, generator))
    for block in blocks[first_full:]:
        block.requires_grad_(True)
    if norms:
        for name, part in encoder.named_modules():
            if "norm" in name.rpartition(".")[2]:
                part.requires_grad_(True)


def freeze_encoder(module: MaskedModel | Classifier) -> None:
    """Have a model's encoder compute as in evaluation, and keep its weights: what stands on it is trained."""
    module.encoder.requires_grad_(False)
    for part in module.encoder.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif hasattr(part, "attention_dropout"):
            cast(Any, part).attention_dropout = 0.0


def low_rank_layers(module: nn.Module) -> dict[str, LowRankLinear]:
    """The adapted layers of a module, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LowRankLinear)}


def merge_low_rank(module: nn.Module) -> None:
    """Make the sums the layers' own weights: a module as it was before `add_low_rank`; one without is left as it is."""
    for name, layer in low_rank_layers(module).items():
        plain = Linear(layer.in_features, layer.out_features, layer.bias is not None, layer.rows_vary)
        plain.weight, plain.bias, plain.keyless = nn.Parameter(layer.weight.detach()), layer.bias, layer.keyless
        _replace(module, name, plain.train(layer.training))


def merged_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `merge_low_rank` makes of a module's tensors."""
    merged = dict(state)
    for key in [name for name in state if name.endswith(".scaling")]:
        layer = key.removesuffix("scaling")
        base, scale = merged.pop(f"{layer}base"), float(merged.pop(key))
        a, b = (dict(_taken(merged, f"{layer}{matrix}.")) for matrix in ("lora_A", "lora_B"))
        merged[f"{layer}weight"] = low_rank_sum(base, a, b, scale)
    return merged


def _taken(state: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name in [name for name in state if name.startswith(prefix)]:
        yield name.removeprefix(prefix), state.pop(name)


def _layer(block: nn.Module, name: str) -> Linear:
    return cast(Linear, block.get_submodule(name))


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)
