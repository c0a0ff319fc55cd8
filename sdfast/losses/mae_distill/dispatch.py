"""Which backend evaluates a call: an explicit one or the fastest that is there."""

from __future__ import annotations

from collections.abc import Callable

from sdfast.losses.mae_distill.arguments import Arguments
from sdfast.losses.mae_distill.output import MaeDistillOutput
from sdfast.losses.mae_distill.reference import reference_mae_distill

BACKENDS = ("auto", "reference", "native", "triton")

Backend = Callable[[Arguments], MaeDistillOutput]


def choose_backend(name: str, arguments: Arguments) -> Backend:
    """The function that evaluates ``arguments``.

    Raises:
        ValueError: an unknown name.
        RuntimeError: an explicit backend that is not available.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend should be one of {', '.join(BACKENDS)}, not {name!r}")
    if name in ("auto", "reference"):
        return reference_mae_distill
    raise RuntimeError(f"backend {name!r} is not available in this installation")
