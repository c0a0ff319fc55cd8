"""Steps made by hand, which what is measured is compared with, and torch's own count of their FLOPs and bytes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from step_clock import allocated
from torch.utils.flop_counter import FlopCounterMode

from sdfast.config import Config, PretrainConfig
from sdfast.costs.measure import moments
from sdfast.costs.task import Task
from sdfast.data.order import Batch
from sdfast.modalities.images.costs import ImageTask, image_step
from sdfast.modalities.images.model import MaskedAutoencoder, TransformerShape, ViTClassifier, ViTShape
from sdfast.modalities.images.objectives import LabelledImages, MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.models.blocks import use_attention
from sdfast.objectives.base import Shortcuts
from sdfast.objectives.classification import Classification
from sdfast.objectives.contrastive import SupervisedContrastive, add_projection
from sdfast.objectives.masked import MaskedTraining
from sdfast.objectives.matching import PredictionMatching, WeightMatching
from sdfast.regularizers.r3f import R3F
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank

SHORTCUTS = ("packed", "cls_tail", "masked_tail")
MODEL = ViTShape((96, 96), 16, 3, TransformerShape(192, 3, 3, 768), TransformerShape(96, 2, 3, 384))
ODD = ViTShape((12, 20), 4, 3, TransformerShape(12, 3, 2, 20), TransformerShape(6, 2, 3, 10))
GREY = ViTShape((14, 7), 7, 1, TransformerShape(10, 1, 1, 8), TransformerShape(4, 1, 2, 6))
BATCH = 3


def config_of(mask: Any = "fixed", **more: Any) -> Config:
    """The settings of a step: what is left away is not shortened."""
    distill: dict[str, Any] = {name: more[name] for name in ("tokens", "layer") if name in more}
    distill |= {"mae_weight": float(more.get("mae", True)), "weight": float(more.get("distill", True))}
    distill["match"] = {"weights": "weights-mars"}.get(more.get("match", "features"), more.get("match", "features"))
    distill["predictions"] = {"patches": "masked" if more.get("masked_tail") else "all"}
    finetune: dict[str, Any] = {"regularizer": "r3f"} if more.get("passes") == 2 else {}
    if "projection" in more:
        finetune = {"objective": "supcon", "supcon": {"projection": more["projection"]}}
    return Config.model_validate(
        {
            "pretrain": {"mask": mask, "mask_ratio": 0.6},
            "distill": distill,
            "finetune": finetune,
            "teacher": {"mode": more.get("teacher", "bank")},
            "engine": {name: more.get(name, False) for name in SHORTCUTS},
        }
    )


def step_of(
    shape: ViTShape, stage: Any, mask: Any = "fixed", batch: int = BATCH, **more: Any
) -> tuple[Task, Any, torch.Tensor]:
    """What is measured, an objective made by hand that it is compared with, and its images."""
    task = ImageTask(stage, config_of(mask, **more), shape, 5)
    height, width = shape.image_size
    images = torch.randint(0, 256, (batch, height, width, shape.channels), dtype=torch.uint8)
    normalise = Normalise((0.5,) * shape.channels, (0.2,) * shape.channels)
    switches = {name: more.pop(name, False) for name in SHORTCUTS}
    shortcuts = Shortcuts(**switches)
    if stage == "finetune":
        classifier = ViTClassifier(dataclasses.replace(shape, decoder=None), 5, dropout=0.1)
        flipped = LabelledImages(normalise, 0.5, 0)
        r3f = R3F() if more.get("passes") == 2 else None
        if "projection" in more:
            add_projection(classifier, more["projection"], 0)
            labels = torch.arange(batch) % 5
            contrastive = SupervisedContrastive(classifier, flipped, labels, 0.1, shortcuts)
            return task, contrastive, images
        return task, Classification(classifier, flipped, torch.arange(batch) % 5, shortcuts, r3f), images
    views = MaskedImages(normalise, PretrainConfig(mask=mask, mask_ratio=0.6))
    module = MaskedAutoencoder(shape)
    tokens, layer = more.get("tokens", "cls"), more.get("layer") or "last"
    teacher: Any = None
    if stage == "distill" and more.get("teacher", "bank") == "live":
        teacher = LiveTeacher(module.encoder, tokens, layer)
    elif stage == "distill":
        count = {"cls": (), "patch": (shape.patches,), "all": (1 + shape.patches,)}[tokens]
        teacher = ResidentBank(torch.zeros(batch, *count, shape.encoder.width), None, torch.arange(batch)[None])
    match, mae_weight = more.get("match", "features"), float(more.get("mae", True))
    objective: MaskedTraining
    if match == "predictions":
        patches: Any = "masked" if switches["masked_tail"] else "all"
        objective = PredictionMatching(
            module,
            views,
            4,
            copy.deepcopy(module),
            compared=patches,
            mae_weight=mae_weight,
            shortcuts=shortcuts,
        )
    elif match == "weights":
        objective = WeightMatching(module, views, 4, MaskedAutoencoder(shape), "mars", shortcuts=shortcuts)
    else:
        weights = {"mae_weight": mae_weight, "weight": float(more.get("distill", True))}
        objective = MaskedTraining(module, views, 4, teacher, tokens, layer, shortcuts=shortcuts, **weights)
    if mask == "bernoulli":  # all images with the mean number
        objective.draw = lambda address: image_step(task, len(address.rows)).drawn  # type: ignore[method-assign]
    return task, objective, images


def linear_flops(x: Any, *others: Any, out_shape: Any = None, **more: Any) -> int:
    """Of oneDNN's linear layer, which torch does not count: x [rows, in] -> [rows, out]."""
    return 2 * x[0] * x[1] * out_shape[1]


ONEDNN = {torch.ops.mkldnn._linear_pointwise: linear_flops}


def counted_by_torch(objective: Any, images: torch.Tensor) -> tuple[int, int]:
    """FLOPs of the forward and the backward pass of the batch; attention as two products."""
    batch = Batch(0, torch.arange(len(images)))
    drawn = objective.draw(batch)
    objective.module.train()
    for module in (objective.module, getattr(objective, "teacher", None), getattr(objective, "matched", None)):
        if isinstance(module, torch.nn.Module):
            use_attention(module, "reference")
    with FlopCounterMode(display=False, custom_mapping=ONEDNN) as forward:
        loss = objective.loss(images, batch, drawn, slice(0, len(images)))["loss"]
    with FlopCounterMode(display=False, custom_mapping=ONEDNN) as backward:
        loss.backward()
    compared = 0
    if isinstance(objective, SupervisedContrastive):  # of the loss, which is not counted: all products of projections
        compared = 2 * (2 * len(images)) ** 2 * objective.module.get_submodule("projection")[2].out_features  # type: ignore
    return forward.get_total_flops() - compared, backward.get_total_flops() - 2 * compared


def bytes_kept(objective: Any, images: torch.Tensor, bf16: bool) -> int:
    """Of the distinct storages saved for the backward pass that are no parameters."""
    batch = Batch(0, torch.arange(len(images)))
    drawn = objective.draw(batch)
    objective.module.train()
    own = {parameter.untyped_storage().data_ptr() for parameter in objective.module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        loss = objective.loss(images, batch, drawn, slice(0, len(images)))["loss"]
    assert loss.requires_grad
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def peak_bytes(objective: Any, images: torch.Tensor, bf16: bool) -> int:
    """Largest sum of what torch's CPU allocator gave and has not got back, in one forward and backward pass."""
    batch = Batch(0, torch.arange(len(images)))
    objective.module.train()

    def step() -> None:
        drawn = objective.draw(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            parts = objective.loss(images, batch, drawn, slice(0, len(images)))
        parts["loss"].backward()

    step()
    for parameter in objective.module.parameters():
        parameter.grad = None
    return allocated(step)


def check_peak(task: ImageTask, objective: Any, images: torch.Tensor, bf16: bool, checkpointing: bool = False) -> None:
    measured = moments(task, bf16=bf16, checkpointing=checkpointing).at(len(images))
    assert max(alive + made for alive, made in measured) == pytest.approx(peak_bytes(objective, images, bf16), rel=0.1)
