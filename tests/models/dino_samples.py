"""Small random-weight models of the DINO families, saved by transformers, and what their layers give by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATCH, SIZE, WIDTH, scramble
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

_COMMON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": PATCH,
}
_DINOV2 = {**_COMMON, "mlp_ratio": 2}
_REGISTERS = {**_DINOV2, "num_register_tokens": 3}
_DINOV3 = {**_COMMON, "intermediate_size": 48, "num_register_tokens": 3}
_GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2-swiglu": ("Dinov2", {**_DINOV2, "use_swiglu_ffn": True}),
    "registers": ("Dinov2WithRegisters", _REGISTERS),
    "registers-swiglu": ("Dinov2WithRegisters", {**_REGISTERS, "use_swiglu_ffn": True, "qkv_bias": False}),
    "dinov3": ("DINOv3ViT", _DINOV3),
    "dinov3-gated": ("DINOv3ViT", {**_DINOV3, **_GATED, "layer_norm_eps": 1e-2}),
    "dinov3-key-bias": ("DINOv3ViT", {**_DINOV3, "key_bias": True, "rope_theta": 1000.0}),
    "dinov3-no-biases": (
        "DINOv3ViT",
        {**_DINOV3, **_GATED, **dict.fromkeys(("query_bias", "value_bias", "proj_bias", "mlp_bias"), False)},
    ),
    "dinov3-no-registers": ("DINOv3ViT", {**_DINOV3, "num_register_tokens": 0, "hidden_act": "silu"}),
}


def make(kind: str, folder: Path, head: str = "Model", exact: bool = True, **config: Any) -> nn.Module:
    """A model of one of `KINDS`, saved; its LayerScale is of powers of two where the folding shall be exact."""
    name, sizes = KINDS[kind]
    made = getattr(transformers, f"{name}Config")(**{**sizes, **config})
    model = scramble(getattr(transformers, f"{name}{head}")(made))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if exact and name.endswith("lambda1"):
                parameter.copy_(2.0 ** torch.randint(-4, 2, parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model.double()


def images_of(size: tuple[int, int], count: int = 3) -> Tensor:
    """[count, 3, H, W] float64."""
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@torch.no_grad()
def of_visible(model: nn.Module, images: Tensor, visible: Tensor) -> Tensor:
    """What the model's own layers give for the prefix tokens and some patches: visible [B, K] -> [B, prefix + K, D]."""
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    tokens, rotary = model.embeddings(images), hasattr(model, "rope_embeddings")
    stack = next(getattr(model, name) for name in ("encoder", "model") if hasattr(model, name)) if rotary else None
    layers = (stack or model.encoder).layer if stack is not None or not rotary else model.layer
    rows = []
    for number, ids in enumerate(visible):
        x = torch.cat((tokens[number, :prefix], tokens[number, prefix:][ids]))[None]
        more = {"position_embeddings": tuple(each[ids] for each in model.rope_embeddings(images))} if rotary else {}
        for layer in layers:
            x = layer(x, **more)
            x = x if isinstance(x, Tensor) else x[0]
        rows.append((model.norm if rotary else model.layernorm)(x))
    return torch.cat(rows)
