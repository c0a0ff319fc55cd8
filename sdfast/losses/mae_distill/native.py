"""The compiled backend: ``torch.ops.sdfast.mae_distill`` of csrc/cpu and csrc/cuda."""

from __future__ import annotations

import functools

import torch

from sdfast.losses.mae_distill.arguments import Arguments
from sdfast.losses.mae_distill.fused import call_operator, empty_outputs, register_autograd
from sdfast.losses.mae_distill.output import MaeDistillOutput

OPERATOR = "sdfast::mae_distill"


@functools.cache
def why_not(device_type: str) -> str | None:
    """None when the compiled operator can be called on such a device, else the reason. Loads it on the first call."""
    try:
        from sdfast import _native

        _native.load()
        if device_type == "cuda":
            _native.load_cuda()
    except (ImportError, OSError, RuntimeError) as error:
        return str(error)
    if device_type not in ("cpu", "cuda"):
        return f"there is no compiled operator for {device_type}"
    if not hasattr(torch.ops.sdfast, "mae_distill"):
        return "the compiled core is older than this Python package: build it again"
    _register()
    return None


@functools.cache
def _register() -> None:
    torch.library.register_fake(OPERATOR, empty_outputs)
    register_autograd(OPERATOR)


def native_mae_distill(a: Arguments) -> MaeDistillOutput:
    """Evaluate in one pass over memory; gradients are made on the way."""
    return call_operator(torch.ops.sdfast.mae_distill.default, a)
