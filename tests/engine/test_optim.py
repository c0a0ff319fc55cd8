"""The two weight-decay rules and the schedule of the released code."""

from __future__ import annotations

import pytest
import torch

from sdfast.config import FinetuneConfig, PretrainConfig
from sdfast.engine.optim import build_optimizer, is_decayed, learning_rate
from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier, ViTShape
from sdfast.models.blocks import TransformerShape

SHAPE = ViTShape((8, 8), 4, 3, TransformerShape(16, 1, 2, 32), TransformerShape(8, 1, 2, 16))


def test_pretraining_spares_vectors_and_decays_the_tokens() -> None:
    named = dict(MaskedAutoencoder(SHAPE).named_parameters())
    decayed = {name for name, parameter in named.items() if is_decayed(name, parameter, "pretrain")}
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.patch_embed.weight"} <= decayed
    assert not any(name.endswith(".bias") or ".norm" in name for name in decayed)


def test_finetuning_decays_layernorm_weights_and_spares_tokens_positions_and_biases() -> None:
    named = dict(ViTClassifier(SHAPE, 3).named_parameters())
    decayed = {name for name, parameter in named.items() if is_decayed(name, parameter, "finetune")}
    assert {"encoder.norm.weight", "encoder.blocks.0.norm1.weight", "classifier.weight"} <= decayed
    assert not decayed & {"encoder.cls_token", "encoder.position_embeddings", "classifier.bias"}


def test_frozen_positions_are_not_optimised() -> None:
    module = MaskedAutoencoder(SHAPE)
    optimizer = build_optimizer(module.named_parameters(), PretrainConfig(), "pretrain")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(module.encoder.position_embeddings) not in held
    assert len(held) == sum(p.requires_grad for p in module.parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("config", [PretrainConfig(steps=40), FinetuneConfig(steps=40, warmup=0.25)])
def test_schedule_is_the_public_one(config: PretrainConfig | FinetuneConfig) -> None:
    transformers = pytest.importorskip("transformers")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=config.lr)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(config.warmup * 40), 40)
    for step in range(40):
        assert learning_rate(config, step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_the_papers_warmup_is_500_steps() -> None:
    config = FinetuneConfig()
    assert (config.steps, round(config.warmup * config.steps)) == (10_000, 500)
    assert learning_rate(config, 500) == config.lr
