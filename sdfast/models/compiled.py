"""Parts of a step that run compiled where their module is told so: few functions, which all layers of a kind share.

A function is compiled for every kind of input that it meets, not for every layer, so that a deep stack compiles as fast
as a shallow one. Sizes are constants to the compiler where a stage's batches are all alike, symbols where they are not.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

Method = TypeVar("Method", bound=Callable[..., Any])


class Compilable(nn.Module):
    """A module with segments: see `segment`."""

    compiled = False  # see use_compiled


def segment(dynamic: bool = False) -> Callable[[Method], Method]:
    """Have a method of a `Compilable` run compiled where its module says so.

    Args:
        dynamic: whether sizes differ from call to call, as those of texts do.
    """

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def run(self: Compilable, *given: Any, **named: Any) -> Any:
            if not self.compiled or torch.compiler.is_compiling():
                return method(self, *given, **named)
            return _compiled(method, dynamic)(self, *given, **named)

        return run  # type: ignore[return-value]

    return decorate


@functools.cache
def _compiled(method: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    return torch.compile(method, dynamic=dynamic)


def use_compiled(module: nn.Module, on: bool = True) -> None:
    """Have all segments of a module run compiled, or as they are written."""
    for each in module.modules():
        if isinstance(each, Compilable):
            each.compiled = on


def forget_compiled() -> None:
    """Drop what has been compiled: one stage's variants would count towards the few that torch makes of a function."""
    _compiled.cache_clear()
    torch.compiler.reset()


@contextlib.contextmanager
def nothing_new_compiled(module: nn.Module) -> Iterator[None]:
    """Inside, inputs that nothing was compiled for are computed as written: batches that are met once an epoch."""
    if not any(isinstance(each, Compilable) and each.compiled for each in module.modules()):
        yield
        return
    with torch.compiler.set_stance("eager_on_recompile"):
        yield
