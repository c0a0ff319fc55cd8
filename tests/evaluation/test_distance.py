"""The distance of two encoders, by a loop over their numbers."""

from __future__ import annotations

import math

import pytest
import torch
from small_stage import SHAPE, initialise, teacher_of

from sdfast.evaluation.classification import encoder_distance
from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier


def test_it_is_the_root_of_all_squares() -> None:
    start, end = MaskedAutoencoder(SHAPE), teacher_of()
    initialise(start, 2)
    total = 0.0
    for one, two in zip(start.encoder.parameters(), end.encoder.parameters(), strict=True):
        total += math.fsum((a - b) ** 2 for a, b in zip(one.flatten().tolist(), two.flatten().tolist(), strict=True))
    assert encoder_distance(start.encoder, end.encoder) == pytest.approx(math.sqrt(total), rel=1e-7)
    assert encoder_distance(start.encoder, start.encoder) == 0


@pytest.mark.parametrize("name", ["cls_token", "position_embeddings", "norm.bias", "blocks.1.attn.qkv.weight"])
def test_every_part_of_the_encoder_counts_and_heads_do_not(name: str) -> None:
    start, end = MaskedAutoencoder(SHAPE), ViTClassifier(SHAPE, 4)
    initialise(start, 2)
    end.encoder.load_state_dict(start.encoder.state_dict())
    assert encoder_distance(start.encoder, end.encoder) == 0
    with torch.no_grad():
        parameter = end.encoder.get_parameter(name)
        parameter.flatten()[:2] += torch.tensor([3.0, -4.0])
    assert encoder_distance(start.encoder, end.encoder) == pytest.approx(5, rel=1e-6)
