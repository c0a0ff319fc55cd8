"""Which backend evaluates a call: an explicit one, or the fastest that is there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from sdfast.losses.mae_distill.arguments import Arguments
from sdfast.losses.mae_distill.in_place import in_place_mae_distill
from sdfast.losses.mae_distill.native import native_mae_distill
from sdfast.losses.mae_distill.native import why_not as why_not_native
from sdfast.losses.mae_distill.output import MaeDistillOutput
from sdfast.losses.mae_distill.reference import reference_mae_distill
from sdfast.losses.mae_distill.triton_backend import triton_mae_distill
from sdfast.losses.mae_distill.triton_backend import why_not as why_not_triton

logger = logging.getLogger("sdfast.losses")

Function = TypeVar("Function", bound=Callable[..., object])

BACKENDS: dict[str, Callable[[Arguments], MaeDistillOutput]] = {
    "reference": reference_mae_distill,
    "native": native_mae_distill,
    "triton": triton_mae_distill,
}
PREFERENCES = {"cpu": ("native",), "cuda": ("triton", "native")}  # for "auto", best first; then the reference


def evaluate(backend: str, arguments: Arguments) -> MaeDistillOutput:
    """Evaluate ``arguments`` with the named backend; errors as `choose_backend`.

    Where "auto" finds none but the reference, its numbers are made with fewer passes over memory.
    """
    chosen = choose_backend(backend, arguments.device.type)
    if chosen == "reference" and backend == "auto" and not torch.compiler.is_compiling():
        return in_place_mae_distill(arguments)
    return BACKENDS[chosen](arguments)


def why_not(backend: str, device_type: str) -> str | None:
    """None when the backend is ready on such a device, else the reason why it is not."""
    if backend == "reference":
        return None
    return why_not_native(device_type) if backend == "native" else why_not_triton(device_type)


def constant_to_the_compiler(function: Function) -> Function:
    """Have torch.compile call ``function`` while it traces and keep the answer.

    The same mark as ``torch.compiler.assume_constant_result`` sets, without its import of the whole compiler.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function


@constant_to_the_compiler
def choose_backend(name: str, device_type: str) -> str:
    """The backend to use: ``name`` itself, or for ``"auto"`` the first of the device's preferences that is ready.

    Raises:
        ValueError: an unknown name.
        RuntimeError: an explicit backend that is not available.
    """
    return _choice(name, device_type)


@functools.cache
def _choice(name: str, device_type: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend should be one of auto, {', '.join(BACKENDS)}, not {name!r}")
    if name != "auto":
        reason = why_not(name, device_type)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} is not available on {device_type}: {reason}")
        return name
    chosen, reasons = "reference", []
    for backend in PREFERENCES.get(device_type, ()):
        reason = why_not(backend, device_type)
        if reason is None:
            chosen = backend
            break
        reasons.append(f"{backend}: {reason}")
    if reasons:
        named = "the reference" if chosen == "reference" else f"the {chosen} backend"
        logger.warning("mae_distill_loss on %s uses %s (%s)", device_type, named, "; ".join(reasons))
    return chosen
