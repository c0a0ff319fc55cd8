"""Small random-weight models of transformers and timm, saved to disk by those libraries themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pre_norm_shapes import in_float64
from torch import nn

SIZE, PATCH, WIDTH = 28, 4, 32
MAE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": SIZE,
    "patch_size": PATCH,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 40,
    "norm_pix_loss": True,
}
VIT = {key: value for key, value in MAE.items() if not key.startswith(("decoder", "norm_pix"))}
TEXT = {
    "vocab_size": 60,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
DISTILBERT = {"vocab_size": 60, "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
DISTILBERT["max_position_embeddings"] = 40
_LAYERS = ["full_attention", "sliding_attention"]
MODERNBERT = {**TEXT, "pad_token_id": 0, "local_attention": 6, "layer_types": _LAYERS}
DINOV2 = {key: value for key, value in VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}


@torch.no_grad()
def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in every tensor, also where the library starts with zeros or ones (positions, biases, norms)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[nn.Module, Path]]:
    """Make a model of a transformers class with the given configuration, save it, give back both."""
    transformers = pytest.importorskip("transformers")
    in_float64(monkeypatch)

    def make(class_name: str, folder: str = "source", dtype: torch.dtype = torch.float32, **config: Any) -> Any:
        base = {
            "ViTMAE": (transformers.ViTMAEConfig, MAE),
            "Dinov2": (transformers.Dinov2Config, DINOV2),
            "Roberta": (transformers.RobertaConfig, TEXT),
            "Bert": (transformers.BertConfig, TEXT),
            "XLMRoberta": (transformers.XLMRobertaConfig, TEXT),
            "Camembert": (transformers.CamembertConfig, TEXT),
            "DistilBert": (transformers.DistilBertConfig, DISTILBERT),
            "Electra": (transformers.ElectraConfig, {**TEXT, "embedding_size": 24}),
            "ModernBert": (transformers.ModernBertConfig, MODERNBERT),
            "EuroBert": (transformers.EuroBertConfig, {**TEXT, "pad_token_id": 0, "num_key_value_heads": 2}),
        }
        kind, sizes = next((base[name] for name in base if class_name.startswith(name)), (transformers.ViTConfig, VIT))
        model = scramble(getattr(transformers, class_name)(kind(**{**sizes, **config}))).to(dtype)
        path = tmp_path / folder
        model.save_pretrained(path)
        return model, path

    return make


@pytest.fixture
def pixels() -> torch.Tensor:
    """[3, 3, 28, 28] float64."""
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
