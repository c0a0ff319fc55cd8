"""Whether every path on this device computes what the plain one does: attention, banks, every setting."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from bench_teacher import recipe_of
from step_clock import matmul_precision
from step_setup import MEAN, STD, Ours, Point, plain, shape_of, switches, trainer_of
from torch import Tensor

from gpu_parts import attention
from gpu_parts.context import Context
from gpu_parts.trajectories import run_steps, weights_of
from sdfast.modalities.images.reader import Normalise
from sdfast.ops.registry import why_not
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.residency import Residency

NEEDS = 4.0  # seconds to begin another setting with


def attention_agrees(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each size, precision and backend."""
    heads, width = (2, 16) if context.quick else (12, 64)
    for dtype in (torch.bfloat16, torch.float32):
        for name, groups in attention.groups_of(2 if context.quick else 8).items():
            operands = attention.Operands.drawn(groups, heads, width, dtype, context.device)
            key = f"{name} tokens, {str(dtype).removeprefix('torch.')}"
            for row in attention.agreement(operands, context):
                yield {"check": "attention", "item": f"{key}, {row['backend']}", **row}


def banks_alike(context: Context) -> Iterator[dict[str, Any]]:
    """Steps against one bank wherever it lies: the weights afterwards, compared with the first place's."""
    from sdfast.engine.teacher_bank import bank_targets

    model, batch, steps = ("tiny", 4, 2) if context.quick else ("ViT-Ti/16", 16, 5)
    point = Point("distill", model, batch, context.device, 2 * batch)
    device = torch.device(context.device)
    recipe = recipe_of(shape_of(model), point.rows)
    recipe = replace(recipe, device=device, normalise=Normalise(MEAN, STD).to(device))
    bank = prepare_bank(context.folder / "teacher", recipe)
    first: Tensor | None = None
    for place in typing.get_args(Residency):
        if place == "auto":
            continue
        settings = Ours(engine={"precision": "fp32", "compile": False})
        trainer = trainer_of(point, settings, context.folder, teacher=bank_targets(bank, recipe, place))
        with matmul_precision(tf32=False):
            for _ in range(steps):
                trainer.step()
        weights = weights_of(trainer)
        first = weights if first is None else first
        apart = float((weights - first).abs().max())
        yield {"check": "banks", "item": f"bank {place}", "apart": apart, "met": apart <= 1e-7}


def settings_agree(context: Context) -> Iterator[dict[str, Any]]:
    """Every setting against the plain step: shortcuts, attention backends, graphs, compilation; by the same rule.

    The truth is the plain step in float64. A setting's error is how far its weights end from the truth's, as a share of
    how far those moved; it may be at most twice the plain step's own in the same precision.
    """
    model, batch, steps = ("tiny", 4, 3) if context.quick else ("ViT-Ti/16", 16, 20)
    point = Point("distill", model, batch, context.device, 2 * batch)
    true_losses, true_weights, start = run_steps(point, plain() | {"precision": "fp32"}, torch.float64, steps, context)
    moved = float((true_weights - start).norm())
    variants: dict[str, dict[str, Any]] = {"plain": plain(), "default": {}}
    for name, values in switches().items():
        variants |= {f"{name}={value}": {"compile": False, name: value} for value in values}

    def errors(settings: dict[str, Any]) -> dict[str, Any]:
        losses, weights, _ = run_steps(point, settings, torch.float32, steps, context)
        loss_error = float(((losses - true_losses) / true_losses).abs().max())
        return {"weights": float((weights - true_weights).norm()) / moved, "losses": loss_error}

    for precision in ("bf16", "fp32", "tf32") if context.device == "cuda" else ("fp32", "bf16"):
        allowed: dict[str, Any] = {}
        for name, settings in variants.items():
            head = {"check": "settings", "item": f"{name}, {precision}", "steps": steps, "point": str(point)}
            if (reason := why_absent(settings.get("attention"), precision, context.device)) is not None:
                yield {**head, "absent": reason}
                continue
            row = context.attempt(errors, settings | {"precision": precision}, needs=0 if context.quick else NEEDS)
            allowed = allowed or row
            if "error" not in row and "error" not in allowed:
                row["times_plain"] = row["weights"] / allowed["weights"] if allowed["weights"] else 1.0
                row["met"] = row["times_plain"] <= 2
            yield {**head, **row}


def why_absent(backend: str | None, precision: str, device: str) -> str | None:
    """Why an attention cannot be had in that precision; None where it can, or none is named."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return None if backend is None else why_not("attention", backend, torch.device(device).type, dtype, 64)


def run(context: Context) -> Iterator[dict[str, Any]]:
    """What takes least time first."""
    yield from attention_agrees(context)
    yield from banks_alike(context)
    yield from settings_agree(context)
