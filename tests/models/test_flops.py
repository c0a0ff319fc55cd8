"""FLOPs: the published arithmetic of ViT-B and ViT-L, and torch's own count of the step that is run."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdfast.config import PretrainConfig
from sdfast.data.masking import visible_count
from sdfast.data.order import Batch
from sdfast.models.blocks import TransformerShape, use_attention
from sdfast.models.flops import StepSpec, encoder_flops, step_flops
from sdfast.models.vit import MaskedAutoencoder, ViTClassifier, ViTShape
from sdfast.objectives.base import Normalise, Shortcuts
from sdfast.objectives.classification import Classification
from sdfast.objectives.contrastive import SupervisedContrastive, add_projection
from sdfast.objectives.images import LabelledImages, MaskedImages
from sdfast.objectives.masked import MaskedTraining
from sdfast.objectives.matching import PredictionMatching, WeightMatching
from sdfast.regularizers.r3f import R3F
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank

DECODER = TransformerShape(512, 8, 16, 2048)
BASE = ViTShape((224, 224), 16, 3, TransformerShape(768, 12, 12, 3072), DECODER)
LARGE = ViTShape((224, 224), 16, 3, TransformerShape(1024, 24, 16, 4096), DECODER)
SHORTCUTS = ("packed", "cls_tail", "masked_tail")


def published(shape: ViTShape, stage: Any, **more: Any) -> StepSpec:
    return StepSpec(shape, stage, visible=49, masked=147, **more)


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

    def forward(step: StepSpec, *parts: Any) -> float:
        counted = step_flops(step).forward
        return round(sum(counted[part] for part in parts) / 1e9, 2)

    plain, lean = published(shape, "pretrain"), published(shape, "pretrain", packed=True, masked_tail=True)
    assert round(encoder_flops(shape) / 1e9, 2) == full
    assert forward(plain, "patch embedding", "masked encoder") == masked
    assert forward(plain, "decoder", "pixel head") == decoder
    assert forward(lean, "decoder", "pixel head") == masked_tail
    tail = published(shape, "finetune", cls_tail=True, classes=0)
    # There the last block makes keys and values, which ours does not need.
    keys_and_values = 2 * 197 * shape.encoder.width * 2 * shape.encoder.width / 1e9
    assert forward(tail, "patch embedding", "clean encoder") + keys_and_values == pytest.approx(cls_tail, abs=0.02)


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

    def total(step: StepSpec, unneeded: float) -> float:
        return (step_flops(step).total + unneeded) / 1e9

    masked = 2 * embedding / 4 + 3 * embedding * 3 / 4  # all patches embedded, not the visible ones alone
    teacher = keys_and_values + others_in_the_last_block  # for the CLS token alone, ours leaves them out
    assert total(published(shape, "finetune"), embedding) == pytest.approx(finetune, abs=0.05)
    assert total(published(shape, "pretrain"), masked - embedding / 4) == pytest.approx(pretrain, abs=0.05)
    assert total(published(shape, "distill", teacher="live"), embedding + masked - embedding / 4 + teacher) == (
        pytest.approx(live, abs=0.06)
    )
    assert total(published(shape, "distill"), embedding + masked - embedding / 4) == pytest.approx(bank, abs=0.06)
    # There the masked view embeds its visible patches itself; packed, it takes them from the clean view.
    step = published(shape, "distill", packed=True, cls_tail=True, masked_tail=True)
    assert total(step, embedding + 3 * embedding / 4 + 3 * keys_and_values) == pytest.approx(tails, abs=0.07)


ODD = ViTShape((12, 20), 4, 3, TransformerShape(12, 3, 2, 20), TransformerShape(6, 2, 3, 10))
GREY = ViTShape((14, 7), 7, 1, TransformerShape(10, 1, 1, 8), TransformerShape(4, 1, 2, 6))
BATCH = 3


def step_of(shape: ViTShape, stage: Any, mask: Any = "fixed", **more: Any) -> tuple[StepSpec, Any, torch.Tensor]:
    """A step, the objective that runs it, and its images."""
    height, width = shape.image_size
    images = torch.randint(0, 256, (BATCH, height, width, shape.channels), dtype=torch.uint8)
    normalise = Normalise((0.5,) * shape.channels, (0.2,) * shape.channels)
    switches = {name: more.pop(name, False) for name in SHORTCUTS}
    shortcuts = Shortcuts(**switches)
    if stage == "finetune":
        classifier = ViTClassifier(dataclasses.replace(shape, decoder=None), 5, dropout=0.1)
        spec = StepSpec(shape, stage, classes=5, **switches, **more)
        r3f, flipped = R3F() if spec.passes == 2 else None, LabelledImages(normalise, 0.5, 0)
        if spec.projection:
            add_projection(classifier, spec.projection, 0)
            labels = torch.arange(BATCH) % 5
            contrastive = SupervisedContrastive(classifier, flipped, labels, shortcuts=shortcuts)
            return spec, contrastive, images
        return spec, Classification(classifier, flipped, torch.arange(BATCH) % 5, shortcuts, r3f), images
    masked = MaskedImages(normalise, PretrainConfig(mask=mask, mask_ratio=0.6))
    module = MaskedAutoencoder(shape)
    tokens, layer = more.get("tokens", "cls"), more.get("layer") or "last"
    teacher: Any = None
    if stage == "distill" and more.get("teacher", "bank") == "live":
        teacher = LiveTeacher(module.encoder, tokens, layer)
    elif stage == "distill":
        count = {"cls": (), "patch": (shape.patches,), "all": (1 + shape.patches,)}[tokens]
        teacher = ResidentBank(torch.zeros(BATCH, *count, shape.encoder.width), None, torch.arange(BATCH)[None])
    match, mae_weight = more.get("match", "features"), float(more.get("mae", True))
    objective: MaskedTraining
    if match == "predictions":
        patches: Any = "masked" if switches["masked_tail"] else "all"
        objective = PredictionMatching(
            module,
            masked,
            4,
            copy.deepcopy(module),
            compared=patches,
            mae_weight=mae_weight,
            shortcuts=shortcuts,
        )
    elif match == "weights":
        objective = WeightMatching(module, masked, 4, MaskedAutoencoder(shape), "mars", shortcuts=shortcuts)
    else:
        weights = {"mae_weight": mae_weight, "weight": float(more.get("distill", True))}
        objective = MaskedTraining(module, masked, 4, teacher, tokens, layer, shortcuts=shortcuts, **weights)
    drawn = objective.draw(Batch(0, torch.arange(BATCH)))
    visible = drawn.visible_ids.shape[1]
    if mask == "fixed":
        assert visible == visible_count(shape.patches, 0.6)
    return StepSpec(shape, stage, visible, shape.patches - visible, **switches, **more), objective, images


def linear_flops(x: Any, *others: Any, out_shape: Any = None, **more: Any) -> int:
    """Of oneDNN's linear layer, which torch does not count: x [rows, in] -> [rows, out]."""
    return 2 * x[0] * x[1] * out_shape[1]


ONEDNN = {torch.ops.mkldnn._linear_pointwise: linear_flops}


def counted_by_torch(objective: Any, images: torch.Tensor) -> tuple[int, int]:
    """FLOPs of the forward and the backward pass of the batch; attention as two products."""
    batch = Batch(0, torch.arange(BATCH))
    drawn = objective.draw(batch)
    objective.module.train()
    for module in (objective.module, getattr(objective, "teacher", None), getattr(objective, "matched", None)):
        if isinstance(module, torch.nn.Module):
            use_attention(module, "reference")
    with FlopCounterMode(display=False, custom_mapping=ONEDNN) as forward:
        loss = objective.loss(images, batch, drawn, slice(0, BATCH))["loss"]
    with FlopCounterMode(display=False, custom_mapping=ONEDNN) as backward:
        loss.backward()
    compared = 0
    if isinstance(objective, SupervisedContrastive):  # of the loss, which is not counted: all products of projections
        compared = 2 * (2 * BATCH) ** 2 * objective.module.get_submodule("projection")[2].out_features  # type: ignore
    return forward.get_total_flops() - compared, backward.get_total_flops() - 2 * compared


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
    step, objective, images = step_of(shape, stage, **more)
    flops = step_flops(step)
    forward, backward = counted_by_torch(objective, images)
    assert BATCH * sum(flops.forward.values()) == forward
    assert BATCH * sum(flops.backward.values()) == backward
    assert flops.total == sum(flops.of(part) for part in flops.forward)


@pytest.mark.parametrize("shape", [ODD, GREY])
@pytest.mark.parametrize(("stage", "more"), [case for case in CASES if case[1].get("mask") != "bernoulli"])
def test_shortcuts_are_what_torch_counts(shape: ViTShape, stage: str, more: dict[str, Any]) -> None:
    step, objective, images = step_of(shape, stage, **more, **dict.fromkeys(SHORTCUTS, True))
    flops = step_flops(step)
    assert (BATCH * sum(flops.forward.values()), BATCH * sum(flops.backward.values())) == counted_by_torch(
        objective, images
    )
