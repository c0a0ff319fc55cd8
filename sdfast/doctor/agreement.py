"""Small computations against float64: an error is at most twice that of the eager reference in the same dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdfast.ops.attention import Group, Groups, attend
from sdfast.ops.mae_distill import mae_distill_loss

_SHARE = 2.0  # of the reference's error
_ROUNDINGS = 8  # of the largest value, where the reference happens to be exact


def product(device: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A matrix product, held to the bound of its rounding errors."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=draw).to(device, dtype) for shape in ((67, 129), (129, 45)))
    truth = a.double() @ b.double()
    single = torch.finfo(torch.float32).eps * a.shape[1] * (a.double().abs() @ b.double().abs())
    allowed = single + _SHARE * torch.finfo(dtype).eps * truth.abs()
    error = ((a @ b).double() - truth).abs()
    worst = (error / allowed).max()
    return _said(f"product in {_name(dtype)} on {device}", float(error.max()), float(allowed.max()), bool(worst <= 1))


def loss(device: str, backend: str) -> dict[str, Any]:
    """The fused loss and its gradients."""
    draw = torch.Generator().manual_seed(0)
    pred, student, teacher = (torch.randn(shape, generator=draw) for shape in ((3, 9, 48), (3, 21), (3, 21)))
    images, mask = torch.rand((3, 3, 12, 12), generator=draw), torch.rand((3, 9), generator=draw) < 0.7

    def by(backend: str, dtype: torch.dtype) -> list[Tensor]:
        ours = [each.to(device, dtype).requires_grad_() for each in (pred, student)]
        rest = images.to(device, dtype), mask.to(device), teacher.to(device, dtype)
        out = mae_distill_loss(ours[0], rest[0], rest[1], ours[1], rest[2], patch_size=4, backend=backend)
        (out.loss * 3).backward()
        return [out.loss.detach(), out.mae.detach(), out.distill.detach(), *(each.grad for each in ours)]  # type: ignore[list-item]

    truth, eager = by("reference", torch.float64), by("reference", torch.float32)
    return _compared(f"loss by {backend} on {device}", by(backend, torch.float32), eager, truth)


def attention(device: str, backend: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """An attention and its gradient."""
    draw = torch.Generator().manual_seed(0)
    groups = Groups((Group(2, 5, 5), Group(1, 7, 7)))
    given, weights = (torch.randn(shape, generator=draw).to(dtype) for shape in ((17, 3, 2, 16), (17, 32)))

    def by(backend: str, dtype: torch.dtype) -> list[Tensor]:
        qkv = given.to(device, dtype).requires_grad_()
        out = attend(qkv, groups, backend)
        out.backward(weights.to(device, dtype))
        return [out.detach(), qkv.grad]  # type: ignore[list-item]

    truth, eager = by("reference", torch.float64), by("reference", dtype)
    return _compared(f"attention by {backend} in {_name(dtype)} on {device}", by(backend, dtype), eager, truth)


def _compared(what: str, ours: list[Tensor], eager: list[Tensor], truth: list[Tensor]) -> dict[str, Any]:
    """The quantity that comes nearest to what it may differ, or lies farthest above."""
    worst: tuple[float, float, float] = (-1.0, 0.0, 0.0)
    for mine, theirs, true in zip(ours, eager, truth, strict=True):
        error, usual = (float((each.double() - true).abs().max()) for each in (mine, theirs))
        floor = _ROUNDINGS * torch.finfo(mine.dtype).eps * float(true.abs().max())
        allowed = max(_SHARE * usual, floor)
        share = error / allowed if error == error else float("inf")
        worst = max(worst, (share, error, allowed))
    return _said(what, worst[1], worst[2], worst[0] <= 1)


def _said(what: str, error: float, allowed: float, right: bool) -> dict[str, Any]:
    return {"what": what, "error": repr(error), "allowed": repr(allowed), "right": right}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
