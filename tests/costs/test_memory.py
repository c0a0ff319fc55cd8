"""Measured memory: what the layers keep, byte for byte, and the peak, against the allocator."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from steps import BATCH, MODEL, ODD, SHORTCUTS, bytes_kept, check_peak, step_of

from sdfast.config import Config
from sdfast.costs import measure
from sdfast.costs.measure import moments, size
from sdfast.costs.workload import workload
from sdfast.costs.zero_memory import Setup, device_memory
from sdfast.modalities.images.model import TransformerShape, ViTShape
from sdfast.modalities.named import task_of

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
    task, objective, images = step_of(shape, stage, **more, **dict.fromkeys(on, True))
    measured = moments(task, bf16=bf16).kept @ (1, BATCH)
    assert measured == pytest.approx(bytes_kept(objective, images, bf16), rel=0.002, abs=400)


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
) -> None:
    task, objective, images = step_of(shape, stage, batch=batch, **more, **dict.fromkeys(SHORTCUTS, on))
    check_peak(task, objective, images, bf16)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("on", [False, True], ids=["plain", "shortcuts"])
@pytest.mark.parametrize(("stage", "more"), [case for case in CASES if case[1]])
def test_the_peak_of_other_steps(stage: str, more: dict[str, Any], on: bool, bf16: bool) -> None:
    task, objective, images = step_of(MODEL, stage, **more, **dict.fromkeys(SHORTCUTS, on))
    check_peak(task, objective, images, bf16)


@pytest.mark.parametrize("shape", [MODEL, ODD, dataclasses.replace(ODD, qkv_bias=False)])
@pytest.mark.parametrize(("stage", "more"), CASES)
def test_parameters(shape: ViTShape, stage: str, more: dict[str, Any]) -> None:
    task, objective, _ = step_of(shape, stage, **more)
    found = size(task)
    assert found.trained == sum(p.numel() for _, p in objective.trained_parameters() if p.requires_grad)
    assert found.module == sum(p.numel() for p in objective.module.parameters())
    teacher = sum(p.numel() for p in objective.teacher.parameters()) if more.get("teacher") == "live" else 0
    if more.get("match") in ("predictions", "weights"):
        beside = (
            objective.matched if more["match"] == "predictions" else objective.module.encoder
        )  # as large as the teacher's
        teacher = sum(p.numel() for p in beside.parameters())
    assert found.teacher == teacher
    assert found.largest == max(p.numel() for _, p in objective.trained_parameters() if p.requires_grad)


def test_what_else_counts() -> None:
    plain = Config.model_validate({"engine": dict.fromkeys(SHORTCUTS, False)})
    work = workload(task_of("distill", plain, MODEL))
    assert 8 * work.example == 8 * 96 * 96 * 3
    whole = device_memory(work, Setup(cuda=False), 8)
    assert whole.total - max(sum(moment) for moment in work.moments(8, False, False, False)) == (
        4 * work.module + 8 * work.trained + 8 * work.example
    )
    assert device_memory(work, Setup(cuda=False), 8, bank=1000).total == whole.total + 1000
    assert device_memory(work, Setup(cuda=False, accumulate=2), 8).total < whole.total
    assert moments(task_of("distill", Config(), MODEL)).kept @ (1, 8) < moments(work.task).kept @ (1, 8)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("stage", "settings"), [("pretrain", {}), ("distill", {}), ("finetune", {"dropout": 0.1})])
def test_a_deep_encoder_is_measured_by_a_shallow_one(stage: Any, settings: dict[str, Any], bf16: bool) -> None:
    """Against all of its blocks, of which as many are measured where `_DEEP` is more."""
    shape = dataclasses.replace(ODD, encoder=dataclasses.replace(ODD.encoder, depth=14))
    task = task_of(stage, Config.model_validate({"finetune": settings}), shape)
    shallow = size(task), task.flops(), moments(task, bf16=bf16).at(9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_DEEP", 14)
        patch.setattr(measure, "_known", {})
        assert (size(task), task.flops(), moments(task, bf16=bf16).at(9)) == shallow
