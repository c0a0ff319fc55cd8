"""The whole step as one CUDA graph: the host launches one thing where it would launch a thousand.

Shapes are static where masks have a fixed count and batches are full; the last, partial batch of an epoch is computed
as before. Inputs are copied into the tensors that the graph was captured with.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdfast.data.order import Batch
from sdfast.log import log
from sdfast.ops.capture import capture_cuda_graph, is_out_of_memory

Compute = Callable[[Any, Batch, Any], dict[str, Tensor]]
Capture = Callable[[Callable[[], dict[str, Tensor]]], tuple[Callable[[], None], dict[str, Tensor]]]

_WARM_UP = 3  # full steps before the capture: they choose kernels and make the optimiser's state


class GraphedStep:
    """Calls `compute` step by step at first, then replays the graph of it.

    What a capture cannot take ends the attempt: it is said once, and every step is computed as before.
    """

    def __init__(
        self,
        compute: Compute,
        device: torch.device,
        batch_size: int,
        capture: Capture | None = None,
        forget: Callable[[], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            compute: (inputs, batch, drawn), all on the device -> 0-D tensors; a whole step, without host
                synchronisation, whose addresses stay the same.
            device: where.
            batch_size: of the batches that are captured.
            capture: makes a function's graph: -> (replay, its outputs); torch's own when not given.
            forget: drops what a step leaves behind for the next one to drop, as gradients.
        """
        self.compute, self.device, self.batch_size = compute, device, batch_size
        self._capture, self._forget = capture or capture_cuda_graph, forget or (lambda: None)
        self._seen = 0
        self._static: tuple[Any, Batch, Any] | None = None
        self._replay: Callable[[], None] | None = None
        self._outputs: dict[str, Tensor] = {}
        self._given_up = False

    @property
    def captured(self) -> bool:
        """Whether full batches are replayed from a graph: not before the first steps, and not where that failed."""
        return self._replay is not None

    def __call__(self, inputs: Any, batch: Batch, drawn: Any) -> dict[str, Tensor]:
        """One step; what is returned is overwritten by the next call."""
        batch, drawn = Batch(batch.epoch, on_device(batch.rows, self.device)), on_device(drawn, self.device)
        given = (inputs, batch, drawn)
        if len(inputs) != self.batch_size or self._given_up:
            return self.compute(*given)
        if self._seen == _WARM_UP:
            self._try_capture(given)
        self._seen += 1
        if self._replay is None or self._static is None:
            return self.compute(*given)
        for static, new in zip(_tensors(self._static), _tensors(given), strict=True):
            static.copy_(new, non_blocking=True)
        self._replay()
        return self._outputs

    def _try_capture(self, given: tuple[Any, Batch, Any]) -> None:
        self._forget()  # what the last step left would stay allocated beside the graph's own memory
        inputs, batch, drawn = given
        try:
            static = (inputs.clone(), Batch(batch.epoch, batch.rows.clone()), _mapped(drawn, torch.clone))
            self._replay, self._outputs = self._capture(lambda: self.compute(*static))
            self._static = static
        except RuntimeError as error:  # one of the step itself comes again when the step is computed next
            self._given_up = True
            log.warning("the step is not captured as a CUDA graph (%s)", _reason(error))
        if self._given_up:  # the error is gone by now, and with it the frames that held the step's tensors
            self._forget()
            gc.collect()
            torch.cuda.empty_cache()


def _reason(error: RuntimeError) -> str:
    if is_out_of_memory(error):
        return (
            "out of memory: it goes on without one, slower; a smaller batch_size leaves room for the graph's own"
            " memory, engine.cuda_graph=false does without it"
        )
    return " ".join(str(error).split())[:200]


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
