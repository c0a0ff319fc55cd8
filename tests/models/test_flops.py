"""FLOPs: the published arithmetic of ViT-B and ViT-L, and torch's own count of the step that is run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sdfast.config import EngineConfig, PretrainConfig
from sdfast.data.masking import visible_count
from sdfast.data.order import Batch
from sdfast.models.flops import StepSpec, encoder_flops, step_flops
from sdfast.models.vit import MaskedAutoencoder, TransformerShape, ViTClassifier, ViTShape
from sdfast.objectives.base import Normalise
from sdfast.objectives.classification import Classification
from sdfast.objectives.pretraining import FurtherPretraining
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank

DECODER = TransformerShape(512, 8, 16, 2048)
BASE = ViTShape((224, 224), 16, 3, TransformerShape(768, 12, 12, 3072), DECODER)
LARGE = ViTShape((224, 224), 16, 3, TransformerShape(1024, 24, 16, 4096), DECODER)
SHORTCUTS = ("packed", "cls_tail", "masked_tail")


def published(shape: ViTShape, stage: Any, **more: Any) -> StepSpec:
    return StepSpec(shape, stage, visible=49, masked=147, **more)


@pytest.mark.parametrize(
    ("shape", "full", "masked", "lean_masked", "decoder", "cls_tail", "masked_tail"),
    [(BASE, 35.13, 8.82, 8.64, 10.75, 32.70, 10.42), (LARGE, 123.11, 30.75, 30.52, 10.76, 118.84, 10.44)],
)
def test_forward_of_the_published_pieces(
    shape: ViTShape,
    full: float,
    masked: float,
    lean_masked: float,
    decoder: float,
    cls_tail: float,
    masked_tail: float,
) -> None:
    """GFLOP, as worked out by hand from the layers' sizes (timm counts 17.58 GMAC for ViT-B)."""

    def forward(step: StepSpec, *parts: Any) -> float:
        counted = step_flops(step).forward
        return round(sum(counted[part] for part in parts) / 1e9, 2)

    plain, lean = published(shape, "pretrain"), published(shape, "pretrain", packed=True, masked_tail=True)
    assert round(encoder_flops(shape) / 1e9, 2) == full
    assert forward(plain, "patch embedding", "masked encoder") == masked
    assert forward(lean, "patch embedding", "masked encoder") == lean_masked
    assert forward(plain, "decoder", "pixel head") == decoder
    assert forward(lean, "decoder", "pixel head") == masked_tail
    tail = published(shape, "finetune", cls_tail=True, classes=0)
    assert forward(tail, "patch embedding", "clean encoder") == cls_tail


@pytest.mark.parametrize(
    ("shape", "finetune", "pretrain", "live", "bank", "tails"),
    [(BASE, 105.4, 58.7, 199.2, 164.1, 155.3), (LARGE, 369.3, 124.5, 617.0, 493.9, 479.4)],
)
def test_steps_of_the_published_models(
    shape: ViTShape, finetune: float, pretrain: float, live: float, bank: float, tails: float
) -> None:
    """GFLOP, there with a gradient of the pixels too (one more patch embedding a view), which no step computes."""
    embedding = 2 * 196 * 768 * shape.encoder.width

    def total(step: StepSpec, unneeded: float) -> float:
        return (step_flops(step).total + unneeded) / 1e9

    assert total(published(shape, "finetune"), embedding) == pytest.approx(finetune, abs=0.05)
    assert total(published(shape, "pretrain"), embedding) == pytest.approx(pretrain, abs=0.05)
    assert total(published(shape, "distill", teacher="live"), 2 * embedding) == pytest.approx(live, abs=0.06)
    assert total(published(shape, "distill"), 2 * embedding) == pytest.approx(bank, abs=0.06)
    # There the masked view embeds its visible patches itself; packed, it takes them from the clean view.
    step = published(shape, "distill", packed=True, cls_tail=True, masked_tail=True)
    assert total(step, embedding + 3 * embedding / 4) == pytest.approx(tails, abs=0.06)


ODD = ViTShape((12, 20), 4, 3, TransformerShape(12, 3, 2, 20), TransformerShape(6, 2, 3, 10))
GREY = ViTShape((14, 7), 7, 1, TransformerShape(10, 1, 1, 8), TransformerShape(4, 1, 2, 6))
BATCH = 3


def step_of(shape: ViTShape, stage: Any, mask: Any = "fixed", **more: Any) -> tuple[StepSpec, Any, torch.Tensor]:
    """A step, the objective that runs it, and its images."""
    height, width = shape.image_size
    images = torch.randint(0, 256, (BATCH, height, width, shape.channels), dtype=torch.uint8)
    normalise = Normalise((0.5,) * shape.channels, (0.2,) * shape.channels)
    switches = {name: more.pop(name) for name in SHORTCUTS if name in more}
    if stage == "finetune":
        classifier = ViTClassifier(dataclasses.replace(shape, decoder=None), 5, dropout=0.1)
        spec = StepSpec(shape, stage, classes=5, **switches)
        return spec, Classification(classifier, normalise, torch.arange(BATCH) % 5, 0.5, 0), images
    masking = PretrainConfig(mask=mask, mask_ratio=0.6)
    module = MaskedAutoencoder(shape)
    tokens = more.get("tokens", "cls")
    teacher: Any = None
    if stage == "distill" and more.get("teacher", "bank") == "live":
        teacher = LiveTeacher(module.encoder, tokens)
    elif stage == "distill":
        count = {"cls": (), "patch": (shape.patches,), "all": (1 + shape.patches,)}[tokens]
        teacher = ResidentBank(torch.zeros(BATCH, *count, shape.encoder.width), None, torch.arange(BATCH))
    weights = {"mae_weight": float(more.get("mae", True)), "distill_weight": float(more.get("distill", True))}
    objective = FurtherPretraining(module, normalise, masking, 4, teacher, tokens, **weights)
    drawn = objective.draw(Batch(0, torch.arange(BATCH)))
    visible = drawn.visible_ids.shape[1]
    if mask == "fixed":
        assert visible == visible_count(shape.patches, 0.6)
    return StepSpec(shape, stage, visible, shape.patches - visible, **switches, **more), objective, images


def counted_by_torch(objective: Any, images: torch.Tensor) -> tuple[int, int]:
    """FLOPs of the forward and the backward pass of the batch; attention as two products."""
    batch = Batch(0, torch.arange(BATCH))
    drawn = objective.draw(batch)
    objective.module.train()
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = objective.loss(images, batch, drawn, slice(0, BATCH))["loss"]
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


CASES = [
    ("pretrain", {}),
    ("pretrain", {"mask": "bernoulli"}),
    ("distill", {}),
    ("distill", {"teacher": "live"}),
    ("distill", {"tokens": "all"}),
    ("distill", {"tokens": "patch", "teacher": "live"}),
    ("distill", {"mae": False}),
    ("distill", {"distill": False, "teacher": "live"}),
    ("finetune", {}),
]


@pytest.mark.parametrize("shape", [ODD, GREY])
@pytest.mark.parametrize(("stage", "more"), CASES)
def test_the_plain_step_is_what_torch_counts(shape: ViTShape, stage: str, more: dict[str, Any]) -> None:
    step, objective, images = step_of(shape, stage, **more)
    flops = step_flops(step)
    forward, backward = counted_by_torch(objective, images)
    assert BATCH * sum(flops.forward.values()) == forward
    assert BATCH * sum(flops.backward.values()) == backward
    assert flops.total == sum(flops.of(part) for part in flops.forward)


@pytest.mark.skipif(
    not set(SHORTCUTS) <= set(EngineConfig.model_fields), reason="the engine has no shortcuts to switch on yet"
)
@pytest.mark.parametrize("shape", [ODD, GREY])
@pytest.mark.parametrize(("stage", "more"), [case for case in CASES if case[1].get("mask") != "bernoulli"])
def test_shortcuts_are_what_torch_counts(shape: ViTShape, stage: str, more: dict[str, Any]) -> None:
    step, objective, images = step_of(shape, stage, **more, **dict.fromkeys(SHORTCUTS, True))
    flops = step_flops(step)
    assert (BATCH * sum(flops.forward.values()), BATCH * sum(flops.backward.values())) == counted_by_torch(
        objective, images
    )
