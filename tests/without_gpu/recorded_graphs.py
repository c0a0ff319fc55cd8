"""What torch.compile is given to compile, as sdfast asks for it; nothing is compiled, the graphs run as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.fx.experimental.symbolic_shapes import free_symbols

from sdfast.models.compiled import forget_compiled


@dataclass
class Graphs:
    """What was traced.

    Attributes:
        modules: the graphs, in order.
        symbols: of each graph, the sizes that are symbols.
    """

    modules: list[torch.fx.GraphModule] = field(default_factory=list)
    symbols: list[set[str]] = field(default_factory=list)

    @property
    def breaks(self) -> list[str]:
        """Why a function was left to Python in the middle."""
        return list(counters["graph_break"])

    def targets(self, number: int) -> list[str]:
        """The functions that a graph calls."""
        return [str(node.target) for node in self.modules[number].graph.nodes if node.op == "call_function"]


@contextmanager
def recorded_graphs(**forced: Any) -> Iterator[Graphs]:
    """Whatever is compiled inside is recorded; `forced` are arguments of torch.compile, such as `fullgraph`."""
    graphs, compile_with_torch = Graphs(), torch.compile

    def backend(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.modules.append(module)
        sizes = [size for each in inputs for size in (each.shape if isinstance(each, Tensor) else (each,))]
        graphs.symbols.append({str(size) for size in sizes if free_symbols(size)})
        return module.forward

    def compiling(*given: Any, **asked: Any) -> Any:
        return compile_with_torch(*given, **{**asked, **forced, "backend": backend})

    forget_compiled()
    counters.clear()
    with mock.patch.object(torch, "compile", compiling):
        yield graphs
    forget_compiled()
