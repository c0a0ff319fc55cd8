"""FLOPs: the published arithmetic of ViT-B and ViT-L, and torch's own count of the step that is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import BATCH, GREY, ODD, SHORTCUTS, counted_by_torch, step_of

from sdfast.config import Config
from sdfast.costs.ledger import Products
from sdfast.costs.task import hollow
from sdfast.modalities.images.costs import ImageTask, image_step
from sdfast.modalities.images.model import MaskedAutoencoder, TransformerShape, ViTShape
from sdfast.models.blocks import use_attention

DECODER = TransformerShape(512, 8, 16, 2048)
BASE = ViTShape((224, 224), 16, 3, TransformerShape(768, 12, 12, 3072), DECODER)
LARGE = ViTShape((224, 224), 16, 3, TransformerShape(1024, 24, 16, 4096), DECODER)


@pytest.mark.parametrize(
    ("shape", "full", "masked", "decoder", "cls_tail", "masked_tail"),
    [(BASE, 35.13, 8.64, 10.75, 32.70, 10.42), (LARGE, 123.11, 30.52, 10.76, 118.84, 10.44)],
)
def test_forward_of_the_published_pieces(
    shape: ViTShape,
    full: float,
    masked: float,
    decoder: float,
    cls_tail: float,
    masked_tail: float,
) -> None:
    """GFLOP, as worked out by hand from the layers' sizes (timm counts 17.58 GMAC for ViT-B)."""
    module = hollow(MaskedAutoencoder, shape)
    use_attention(module, "reference")
    encoder, pixels = module.encoder, torch.zeros(1, 3, 224, 224)
    visible, hidden = torch.arange(49)[None], torch.arange(49, 196)[None]
    encoded = torch.zeros(1, 50, shape.encoder.width)

    def forward(piece: Callable[[], Any]) -> float:
        with torch.no_grad(), Products() as products:
            piece()
        return products.flops / 1e9

    assert round(forward(lambda: encoder(pixels)), 2) == full
    assert round(forward(lambda: encoder(pixels, visible)), 2) == masked
    assert round(forward(lambda: module.decoder(encoded, visible)), 2) == decoder
    assert round(forward(lambda: module.decoder(encoded, visible, None, hidden)), 2) == masked_tail
    tail = forward(lambda: encoder.encode(encoder.view(encoder.embed(pixels), cls_only=True)))
    # There the last block makes keys and values, which ours does not need.
    keys_and_values = 2 * 197 * shape.encoder.width * 2 * shape.encoder.width / 1e9
    assert tail + keys_and_values == pytest.approx(cls_tail, abs=0.02)


@pytest.mark.parametrize(
    ("shape", "finetune", "pretrain", "live", "bank", "tails"),
    [(BASE, 105.4, 58.7, 199.2, 164.1, 155.3), (LARGE, 369.3, 124.5, 617.0, 493.9, 479.4)],
)
def test_steps_of_the_published_models(
    shape: ViTShape, finetune: float, pretrain: float, live: float, bank: float, tails: float
) -> None:
    """GFLOP, there with a gradient of the pixels too (one more patch embedding a view), which no step computes."""
    width = shape.encoder.width
    embedding, keys_and_values = 2 * 196 * 768 * width, 2 * 197 * width * 2 * width
    others_in_the_last_block = 2 * 196 * width * (2 * width + 2 * shape.encoder.mlp_width) + 4 * 196 * 197 * width

    def total(stage: Any, unneeded: float, on: bool = False, teacher: str = "bank") -> float:
        settings = {"engine": dict.fromkeys(SHORTCUTS, on), "teacher": {"mode": teacher}}
        return (ImageTask(stage, Config.model_validate(settings), shape, 1).flops().step + unneeded) / 1e9

    masked = 2 * embedding / 4 + 3 * embedding * 3 / 4  # all patches embedded, not the visible ones alone
    others = keys_and_values + others_in_the_last_block  # for the CLS token alone, ours leaves them out
    assert total("finetune", embedding) == pytest.approx(finetune, abs=0.05)
    assert total("pretrain", masked - embedding / 4) == pytest.approx(pretrain, abs=0.05)
    assert total("distill", embedding + masked - embedding / 4 + others, teacher="live") == (
        pytest.approx(live, abs=0.06)
    )
    assert total("distill", embedding + masked - embedding / 4) == pytest.approx(bank, abs=0.06)
    # There the masked view embeds its visible patches itself; packed, it takes them from the clean view.
    assert total("distill", embedding + 3 * embedding / 4 + 3 * keys_and_values, on=True) == (
        pytest.approx(tails, abs=0.07)
    )


def counted(task: ImageTask) -> tuple[int, int]:
    """FLOPs of the forward and of the backward pass of the step that is measured."""
    step = image_step(task, BATCH)
    for part in (step.objective.module, step.teacher):
        if part is not None:
            use_attention(part, "reference")
    with Products() as forward:
        loss = step.loss()
    with Products() as backward:
        loss.backward()
    projection = task.config.finetune.supcon.projection if task.config.finetune.objective == "supcon" else 0
    compared = 2 * (2 * BATCH) ** 2 * projection if task.stage == "finetune" else 0  # of the loss
    return forward.flops - compared, backward.flops - 2 * compared


CASES = [
    ("pretrain", {}),
    ("pretrain", {"mask": "bernoulli"}),
    ("distill", {}),
    ("distill", {"teacher": "live"}),
    ("distill", {"tokens": "all"}),
    ("distill", {"tokens": "patch", "teacher": "live"}),
    ("distill", {"mae": False}),
    ("distill", {"layer": 1, "teacher": "live"}),
    ("distill", {"distill": False, "teacher": "live"}),
    ("finetune", {}),
    ("finetune", {"passes": 2}),
    ("distill", {"match": "predictions"}),
    ("distill", {"match": "predictions", "mae": False}),
    ("distill", {"match": "predictions", "mask": "bernoulli"}),
    ("distill", {"match": "weights", "teacher": "live"}),
    ("finetune", {"projection": 6}),
]


@pytest.mark.parametrize("shape", [ODD, GREY])
@pytest.mark.parametrize(("stage", "more"), CASES)
def test_the_plain_step_is_what_torch_counts(shape: ViTShape, stage: str, more: dict[str, Any]) -> None:
    check(*step_of(shape, stage, **more))


@pytest.mark.parametrize("shape", [ODD, GREY])
@pytest.mark.parametrize(("stage", "more"), CASES)
def test_shortcuts_are_what_torch_counts(shape: ViTShape, stage: str, more: dict[str, Any]) -> None:
    check(*step_of(shape, stage, **more, **dict.fromkeys(SHORTCUTS, True)))


def check(task: ImageTask, objective: Any, images: torch.Tensor) -> None:
    forward, backward = counted_by_torch(objective, images)
    assert counted(task) == (forward, backward)
    assert BATCH * task.flops().step == forward + backward
