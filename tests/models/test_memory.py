"""Predicted memory: what the layers keep, byte for byte, and the peak, against the allocator."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_flops import ODD, SHORTCUTS, step_of

from sdfast.data.order import Batch
from sdfast.models.blocks import TransformerShape
from sdfast.models.flops import StepSpec
from sdfast.models.memory import step_memory
from sdfast.models.parameters import encoder_parameters, trained_parameters
from sdfast.models.vit import ViTShape

MODEL = ViTShape((96, 96), 16, 3, TransformerShape(192, 3, 3, 768), TransformerShape(96, 2, 3, 384))
BATCH = 3


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
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


CASES: list[tuple[str, dict[str, Any]]] = [
    ("pretrain", {}),
    ("distill", {}),
    ("distill", {"teacher": "live"}),
    ("distill", {"tokens": "all"}),
    ("distill", {"tokens": "patch"}),
    ("distill", {"mae": False}),
    ("distill", {"distill": False}),
    ("distill", {"layer": 2}),
    ("distill", {"layer": 2, "tokens": "patch"}),
    ("distill", {"layer": 1, "mae": False, "teacher": "live"}),
    ("distill", {"match": "predictions"}),
    ("distill", {"match": "predictions", "mae": False}),
    ("distill", {"match": "weights"}),
    ("finetune", {}),
    ("finetune", {"passes": 2}),
    ("finetune", {"projection": 7}),
]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("on", [(), *((name,) for name in SHORTCUTS), SHORTCUTS], ids="+".join)
@pytest.mark.parametrize("shape", [MODEL, ODD])
@pytest.mark.parametrize(("stage", "more"), CASES)
def test_what_the_layers_keep(
    shape: ViTShape, stage: str, more: dict[str, Any], on: tuple[str, ...], bf16: bool
) -> None:
    step, objective, images = step_of(shape, stage, **more, **dict.fromkeys(on, True))
    predicted = step_memory(step, BATCH, bf16=bf16, dropout=stage == "finetune").kept
    assert predicted == pytest.approx(bytes_kept(objective, images, bf16), rel=0.002, abs=400)


SIZES = {
    "batch 1": (MODEL, 1),
    "batch 12": (MODEL, 12),
    "192 x 128 px": (dataclasses.replace(MODEL, image_size=(192, 128)), 2),
    "depth 2": (dataclasses.replace(MODEL, encoder=TransformerShape(192, 2, 3, 768)), 4),
    "depth 12": (dataclasses.replace(MODEL, encoder=TransformerShape(192, 12, 3, 768)), 3),
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("on", [False, True], ids=["plain", "shortcuts"])
@pytest.mark.parametrize(("shape", "batch"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("stage", "more"), [case for case in CASES if not case[1]])
def test_the_peak(
    shape: ViTShape,
    batch: int,
    stage: str,
    more: dict[str, Any],
    on: bool,
    bf16: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("test_flops.BATCH", batch)
    step, objective, images = step_of(shape, stage, **more, **dict.fromkeys(SHORTCUTS, on))
    check_peak(step, objective, images, bf16)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("on", [False, True], ids=["plain", "shortcuts"])
@pytest.mark.parametrize(("stage", "more"), [case for case in CASES if case[1]])
def test_the_peak_of_other_steps(stage: str, more: dict[str, Any], on: bool, bf16: bool) -> None:
    step, objective, images = step_of(MODEL, stage, **more, **dict.fromkeys(SHORTCUTS, on))
    check_peak(step, objective, images, bf16)


def check_peak(step: StepSpec, objective: Any, images: torch.Tensor, bf16: bool, checkpointing: bool = False) -> None:
    predicted = step_memory(step, len(images), bf16=bf16, dropout=step.stage == "finetune", checkpointing=checkpointing)
    standing = predicted.parameters + predicted.optimizer + predicted.inputs  # there before the step, not in the count
    assert predicted.peak - standing == pytest.approx(peak_bytes(objective, images, bf16), rel=0.1)


@pytest.mark.parametrize("shape", [MODEL, ODD, dataclasses.replace(ODD, qkv_bias=False)])
@pytest.mark.parametrize(("stage", "more"), CASES)
def test_parameters(shape: ViTShape, stage: str, more: dict[str, Any]) -> None:
    step, objective, _ = step_of(shape, stage, **more)
    trained = sum(p.numel() for _, p in objective.trained_parameters() if p.requires_grad)
    assert trained_parameters(step) == trained
    everything = sum(p.numel() for p in objective.module.parameters())
    teacher = sum(p.numel() for p in objective.teacher.parameters()) if step.live_teacher else 0
    if step.matched in ("predictions", "weights"):
        beside = (
            objective.matched if step.matched == "predictions" else objective.module.encoder
        )  # as large as the teacher's
        teacher = sum(p.numel() for p in beside.parameters())
    assert encoder_parameters(shape) == sum(p.numel() for p in objective.module.encoder.parameters())
    memory = step_memory(step, BATCH)
    assert (memory.parameters, memory.optimizer) == (4 * (everything + teacher), 8 * trained)


def test_what_else_counts() -> None:
    step = StepSpec(MODEL, "distill", visible=9, masked=27)
    plain = step_memory(step, 8)
    assert plain.inputs == 8 * 96 * 96 * 3
    assert step_memory(step, 8, bank=1000).peak == plain.peak + 1000
    halves = step_memory(step, 8, accumulate=2)
    assert (halves.inputs, 2 * halves.kept) == (plain.inputs, plain.kept)
    assert halves.peak < plain.peak
    tails = dataclasses.replace(step, packed=True, cls_tail=True, masked_tail=True)
    assert step_memory(tails, 8).kept < plain.kept
