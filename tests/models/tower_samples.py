"""Small random-weight vision towers of transformers, saved to disk by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 4,
}
WORDS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
WORDS |= {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
INSIDE = ("vision_model", "data2vec_vision")
WHOLE = {"CLIPModel": "CLIP", "SiglipModel": "Siglip", "MetaClip2Model": "MetaClip2"}  # with a tower of texts


@torch.no_grad()
def save_tower(name: str, folder: Path, seed: int = 0, **config: Any) -> nn.Module:
    """A model of a class of transformers with random values in every tensor, saved: its vision tower."""
    import transformers

    if name in WHOLE:
        of_whole = getattr(transformers, f"{WHOLE[name]}Config")
        settings = of_whole(vision_config={**SIZES, **config}, text_config=WORDS)
    else:
        settings = getattr(transformers, name).config_class(**{**SIZES, **config})
    model = getattr(transformers, name)(settings)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if ".lambda_" in key:  # powers of two, whose product with any weight is exact
            parameter.copy_(2.0 ** torch.randint(-6, 2, parameter.shape, generator=generator))
        else:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    return next((part for part in (getattr(model, each, None) for each in INSIDE) if part is not None), model).eval()


@torch.no_grad()
def expected_of(name: str, tower: nn.Module, pixels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """What a tower in float64 gives: its tokens after the last norm [B, N, D], and what is matched [B, D]."""
    found = tower.double()(pixels, **options)
    tokens = found.last_hidden_state
    if "CLIP" in name.upper() and "Siglip" not in name:
        return tower.post_layernorm(tokens), found.pooler_output
    if name.startswith(("Beit", "Data2Vec")):
        if tower.config.use_mean_pooling:
            return tower.pooler.layernorm(tokens), found.pooler_output
        return tokens, tokens[:, 0]
    return tokens, tokens[:, 0] if name.startswith("ViTMSN") else tokens.mean(dim=1)
