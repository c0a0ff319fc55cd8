"""The whole step as one CUDA graph: the host launches one thing where it would launch a thousand.

Shapes are static where masks have a fixed count and batches are full; the last, partial batch of an epoch is computed
as before. Inputs are copied into the tensors that the graph was captured with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdfast.data.order import Batch
from sdfast.log import log

Compute = Callable[[Tensor, Batch, Any], dict[str, Tensor]]
Capture = Callable[[Callable[[], dict[str, Tensor]]], tuple[Callable[[], None], dict[str, Tensor]]]

_WARM_UP = 3  # full steps before the capture: they choose kernels and make the optimiser's state


class GraphedStep:
    """Calls `compute` step by step at first, then replays the graph of it.

    What a capture cannot take ends the attempt: it is said once, and every step is computed as before.
    """

    def __init__(self, compute: Compute, device: torch.device, batch_size: int, capture: Capture | None = None) -> None:
        """Prepare.

        Args:
            compute: (images, batch, drawn), all on the device -> 0-D tensors; a whole step, without host
                synchronisation, whose addresses stay the same.
            device: where.
            batch_size: of the batches that are captured.
            capture: makes a function's graph: -> (replay, its outputs); torch's own when not given.
        """
        self.compute, self.device, self.batch_size = compute, device, batch_size
        self._capture = capture or capture_cuda_graph
        self._seen = 0
        self._static: tuple[Tensor, Batch, Any] | None = None
        self._replay: Callable[[], None] | None = None
        self._outputs: dict[str, Tensor] = {}
        self._given_up = False

    def __call__(self, images: Tensor, batch: Batch, drawn: Any) -> dict[str, Tensor]:
        """One step; what is returned is overwritten by the next call."""
        batch, drawn = Batch(batch.epoch, on_device(batch.rows, self.device)), on_device(drawn, self.device)
        inputs = (images, batch, drawn)
        if len(images) != self.batch_size or self._given_up:
            return self.compute(*inputs)
        if self._seen == _WARM_UP:
            self._try_capture(inputs)
        self._seen += 1
        if self._replay is None or self._static is None:
            return self.compute(*inputs)
        for static, new in zip(_tensors(self._static), _tensors(inputs), strict=True):
            static.copy_(new, non_blocking=True)
        self._replay()
        return self._outputs

    def _try_capture(self, inputs: tuple[Tensor, Batch, Any]) -> None:
        images, batch, drawn = inputs
        static = (images.clone(), Batch(batch.epoch, batch.rows.clone()), _mapped(drawn, torch.clone))
        try:
            self._replay, self._outputs = self._capture(lambda: self.compute(*static))
        except RuntimeError as error:
            self._given_up = True
            log.warning("the step is not captured as a CUDA graph (%s)", " ".join(str(error).split())[:200])
            return
        self._static = static


def capture_cuda_graph(
    function: Callable[[], dict[str, Tensor]],
) -> tuple[Callable[[], None], dict[str, Tensor]]:
    """A function's graph on the current device: what replays it, and its outputs, which a replay fills."""
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            outputs = function()
    finally:
        torch.cuda.set_stream(stream)  # torch does not return to it where the end of the capture fails
    return graph.replay, outputs


def on_device(value: Any, device: torch.device) -> Any:
    """A tensor, or a dataclass of tensors, on the device; anything else as it is."""
    return _mapped(value, lambda tensor: tensor.to(device, non_blocking=True))


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _mapped(getattr(value, each.name), function) for each in fields(value)})
    return value


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a tuple, a dataclass or a tensor, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    if is_dataclass(value) and not isinstance(value, type):
        return [tensor for each in fields(value) for tensor in _tensors(getattr(value, each.name))]
    return []
