"""One row an operator: its reference, its other backends, which are preferred where, and what it costs.

All operators choose and refuse here, in one idiom: a backend has a function and a `why_not`, which says in a sentence
why it cannot be used in some circumstances, or None where it can.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch

logger = logging.getLogger("sdfast.losses")

Function = TypeVar("Function", bound=Callable[..., object])
Formula = Callable[..., int]

_FOLDERS = ("attention", "bias_gradients", "gelu", "linear", "linear_cross_entropy", "linear_kl", "mae_distill", "norm")


class Use(NamedTuple):
    """What decides whether a backend can be used.

    Attributes:
        device: type of the operands' device.
        dtype: theirs, where that matters.
        dim: values of a head, of an attention.
        dropout: whether weights of an attention are dropped.
    """

    device: str
    dtype: torch.dtype | None = None
    dim: int = 0
    dropout: bool = False


def always(use: Use) -> None:
    """The `why_not` of a backend that can be used everywhere."""


@dataclass(frozen=True)
class Backend:
    """One way to evaluate an operator.

    Attributes:
        function: evaluates it; the backends of an operator take the same arguments, where not said otherwise.
        why_not: None where it can be used, else the reason; it may load and register what the function needs.
    """

    function: Callable[..., Any]
    why_not: Callable[[Use], str | None] = always


@dataclass(frozen=True)
class Op:
    """A row of the registry: an operator.

    Attributes:
        name: by which it is found.
        backends: by name; `reference` is the specification.
        preferences: what `auto` takes, best first, by type of device.
        otherwise: what `auto` takes where none of these can be used; it can be used everywhere.
        noun: what sentences call a backend.
        called: the name of the function that a person calls, for sentences that say where it runs and for the log; None
            where neither says so.
        flops: formulas by name of the compiled operator, for those that torch's counter does not know.
    """

    name: str
    backends: dict[str, Backend]
    preferences: Mapping[str, tuple[str, ...]]
    otherwise: str = "reference"
    noun: str = "backend"
    called: str | None = None
    flops: Mapping[str, Formula] = field(default_factory=dict)


_rows: dict[str, Op] = {}


def add(op: Op) -> Op:
    """Enter a row; each is entered where its operator is defined."""
    _rows[op.name] = op
    return op


def all_rows() -> dict[str, Op]:
    """Every operator's row, by name."""
    for name in _FOLDERS:
        importlib.import_module(f"sdfast.ops.{name}")
    return dict(_rows)


def constant_to_the_compiler(function: Function) -> Function:
    """Have torch.compile call ``function`` while it traces and keep the answer.

    The same mark as ``torch.compiler.assume_constant_result`` sets, without its import of the whole compiler.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function


@constant_to_the_compiler
def why_not(
    op: str, backend: str, device: str, dtype: torch.dtype | None = None, dim: int = 0, dropout: bool = False
) -> str | None:
    """None where a backend can be used (and for `auto`), else the reason in one sentence; the last four as in `Use`."""
    return _reason(op, backend, Use(device, dtype, dim, dropout))


@constant_to_the_compiler
def choose(
    op: str, name: str, device: str, dtype: torch.dtype | None = None, dim: int = 0, dropout: bool = False
) -> str:
    """The backend to use: ``name`` itself, or for ``"auto"`` the first of the device's preferences that is ready.

    Raises:
        ValueError: an unknown name.
        RuntimeError: an explicit backend that is not available, with the reason.
    """
    return _choice(op, name, Use(device, dtype, dim, dropout))


@functools.cache
def ready(op: str, use: Use) -> tuple[str, ...]:
    """What `auto` may take, best first; at least one."""
    return tuple(name for name in _preferred(op, use) if _reason(op, name, use) is None)


def forget() -> None:
    """Have every backend asked again whether it can be used."""
    for each in (ready, _reason, _choice):
        each.cache_clear()


def _preferred(op: str, use: Use) -> tuple[str, ...]:
    row = _rows[op]
    return (*row.preferences.get(use.device, ()), row.otherwise)


@functools.cache
def _reason(op: str, name: str, use: Use) -> str | None:
    return None if name == "auto" else _rows[op].backends[name].why_not(use)


@functools.cache
def _choice(op: str, name: str, use: Use) -> str:
    row = _rows[op]
    if name != "auto":
        if name not in row.backends:
            raise ValueError(f"{row.noun} should be one of auto, {', '.join(row.backends)}, not {name!r}")
        reason = _reason(op, name, use)
        if reason is not None:
            where = "" if row.called is None else f" on {use.device}"
            raise RuntimeError(f"{row.noun} {name!r} is not available{where}: {reason}")
        return name
    chosen, preferred = ready(op, use)[0], _preferred(op, use)
    reasons = [f"{each}: {_reason(op, each, use)}" for each in preferred[: preferred.index(chosen)]]
    if reasons and row.called is not None:
        named = "the reference" if chosen == "reference" else f"the {chosen} backend"
        logger.warning("%s on %s uses %s (%s)", row.called, use.device, named, "; ".join(reasons))
    return chosen
