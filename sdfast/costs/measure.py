"""FLOPs, bytes and parameters of a stage's step: its own loss, run forward and backward on weights without content.

The convention of FLOPs: a multiply-add is 2; linear layers, the patch embedding and both products of attention are
counted; norms, softmax, GELU, biases, the loss and the optimiser are not. Counted is what is computed: rows that a
shortcut leaves out are not, nor is what activation checkpointing does again.

Counted bytes are those of the tensors that torch's allocator holds: not what the process holds besides (Python,
libraries, cuBLAS), nor what an allocator keeps in reserve. A step that is compiled keeps less than is measured here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.costs.ledger import Ledger, Products, Span
from sdfast.costs.task import Step, Task
from sdfast.models.blocks import use_attention
from sdfast.models.checkpointing import use_checkpointing
from sdfast.ops.cpu_half import cpu_half
from sdfast.ops.linear.fp32_matmul import float32_products

_Found = TypeVar("_Found")
_Task = TypeVar("_Task", bound=Task)
_DEEP, _SHALLOW = 12, (4, 5)  # blocks of an encoder: of a deeper one than that two shallow ones are measured
_FEWEST = 2  # blocks from which on what is counted grows with each alike
_known: dict[Any, Any] = {}  # what was measured in this process


@dataclass(frozen=True)
class Size:
    """Numbers of a step's parameters.

    Attributes:
        trained: that get gradients.
        module: all of the trained module, fixed ones included.
        teacher: of a teacher that runs beside it, or whose weights are compared.
        largest: of the largest matrix.
    """

    trained: int
    module: int
    teacher: int
    largest: int


@dataclass(frozen=True)
class Moments:
    """Bytes at the moments of a micro-batch, in order, besides parameters, optimiser and inputs: a + b x (its size).

    The size is that in images, or in tokens.

    Attributes:
        activations: [moments, 2], a and b of what is alive but for finished gradients.
        gradients: [moments] int64, of the finished ones.
        kept: a and b of what the forward pass keeps for the backward pass.
    """

    activations: NDArray[np.float64]
    gradients: NDArray[np.int64]
    kept: NDArray[np.float64]

    def at(self, size: int) -> list[tuple[int, int]]:
        """Activations and gradients of a micro-batch of that size."""
        alive = self.activations @ (1, size)
        return [(round(float(some)), int(made)) for some, made in zip(alive, self.gradients, strict=True)]


def flops_of_one(task: _Task, step: Callable[[_Task, int], Step], checkpointing: bool) -> NDArray[np.int64]:
    """The two numbers of `Flops` of one example, as an array [2]: of a step on one.

    What a contrastive loss multiplies grows with the square of the batch, and is not counted.
    """

    def count(examples: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = _by_depth(task, lambda task: _flops(lambda: step(task, examples), checkpointing))
        return found

    if task.stage == "finetune" and task.config.finetune.objective == "supcon":
        return (4 * count(1) - count(2)) // 2
    return count(1)


def _flops(make: Callable[[], Step], checkpointing: bool) -> NDArray[np.int64]:
    """The two numbers of `Flops` of a step, as an array [2]."""

    def count(again: bool) -> int:
        step = make()
        with _measuring(step, "reference", again), Products() as products:
            step.loss().backward()
        return products.flops

    plain = count(False)
    return np.array([plain, count(True) - plain if checkpointing else 0])


def size(task: Task) -> Size:
    """How many numbers the parameters of a stage have: trained ones, the module's, a live teacher's, the largest."""

    largest = 0

    def count(task: Task) -> NDArray[np.int64]:
        nonlocal largest
        step = task.step(1)
        module, teacher = step.objective.module, step.teacher
        trained = [each for _, each in step.objective.trained_parameters() if each.requires_grad]
        largest = max(each.numel() for each in trained)
        beside = [] if teacher is None else teacher.parameters()
        return np.array([sum(each.numel() for each in some) for some in (trained, module.parameters(), beside)])

    def find() -> Size:
        trained, module, teacher = _by_depth(task, count).tolist()
        return Size(trained, module, teacher, largest)

    return once(("size", task.key), find)


def moments(task: Task, *, bf16: bool = False, cuda: bool = False, checkpointing: bool = False) -> Moments:
    """The bytes at the moments of a step after the first, measured on two small batches.

    On a GPU attention is counted as `sdpa` keeps it, with one byte for each number that dropout may drop.

    Args:
        task: what is measured.
        bf16: autocast to bfloat16; parameters, residuals and norms stay float32.
        cuda: whether on a GPU.
        checkpointing: blocks keep only their input.
    """
    task = replace(task, flash=cuda)
    backend = task.config.engine.attention
    backend = backend if backend == "reference" or not cuda else "sdpa"

    def run(count: int) -> Callable[[Task], list[Span]]:
        return lambda task: _spans(task.step(count), backend, bf16, cuda, checkpointing)

    def find() -> Moments:
        sizes = (2, 3)
        both = [_deeper(task, run(count)) for count in sizes]
        inside = np.array([[span.fullest for span in spans] for spans in both], float)  # [2, 1 + moments]
        units = np.array(sizes) * task.size
        slope = (inside[1] - inside[0]) / (units[1] - units[0])
        lines = np.stack([inside[0] - slope * units[0], slope], axis=1)
        made = np.cumsum([0, *(span.gradient for span in both[0][1:-1])])
        return Moments(lines[1:], made, lines[0])

    return once(("moments", task.key, bf16, cuda, checkpointing), find)


def _spans(step: Step, backend: str, bf16: bool, cuda: bool, checkpointing: bool) -> list[Span]:
    """What the forward pass keeps, as a span of its own, and the spans of the step."""
    kept: dict[int, int] = {}
    ledger = Ledger(step.objective.module, *step.given, cuda=cuda)

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = ledger.size(tensor)
        return tensor

    with _measuring(step, backend, checkpointing), cpu_half(not cuda), ledger:
        ledger.follow(*step.addresses)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            loss = step.loss()
        loss.backward()
    return [Span(sum(kept.values())), *ledger.spans]


@contextlib.contextmanager
def _measuring(step: Step, backend: str, checkpointing: bool) -> Iterator[None]:
    """Inside, the step computes as is said, and leaves torch's random numbers alone."""
    module = step.objective.module
    for part in (module, step.teacher):
        if part is not None:
            use_attention(part, backend)
    use_checkpointing(module, checkpointing)
    module.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), float32_products("ieee"):
        yield


def _by_depth(task: _Task, found: Callable[[_Task], Any]) -> Any:
    """What is found of a task that grows with each block of a deep encoder alike."""
    further = task.shape.encoder.depth - _FEWEST
    if 2 * further < _DEEP or task.uneven:
        return found(task)
    less, more = (found(task.of_depth(_FEWEST + block)) for block in (0, 1))
    return less + further * (more - less)


def _deeper(task: Task, found: Callable[[Task], list[Span]]) -> list[Span]:
    """The spans of a deep encoder, from those of two shallow ones of which one has a block more in the middle.

    Every further block adds what that one did, to all spans before its backward pass; and spans of its own, in which
    less is alive by as much the further down it lies. Its neighbours are alike, as those of the first and last are not.
    """
    depth = task.shape.encoder.depth
    if depth <= _DEEP or task.uneven:
        return found(task)
    less, more = (found(task.of_depth(shallow)) for shallow in _SHALLOW)
    middle, first = len(more) - len(less), next(i for i, span in enumerate(more) if "encoder.blocks.2." in span.name)
    further = depth - _SHALLOW[1]
    before, after = more[:first], more[first + 2 * middle :]
    upper, lower = more[first : first + middle], more[first + middle : first + 2 * middle]
    spans = [
        replace(b, fullest=b.fullest + further * (b.fullest - a.fullest))
        for a, b in zip(less[:first], before, strict=True)
    ]
    for below in range(further + 1, -1, -1):
        for high, low in zip(upper, lower, strict=True):
            spans.append(replace(low, fullest=low.fullest + below * (high.fullest - low.fullest)))
    return [*spans, *after]


def once(key: Any, find: Callable[[], _Found]) -> _Found:
    """What is found, remembered for the process."""
    if key not in _known:
        _known[key] = find()
    found: _Found = _known[key]
    return found
