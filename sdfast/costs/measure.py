"""FLOPs, bytes and parameters of a stage's step: its own loss, run forward and backward on weights without content.

The convention of FLOPs: a multiply-add is 2; linear layers, the patch embedding and both products of attention are
counted; norms, softmax, GELU, biases, the loss and the optimiser are not. Counted is what is computed: rows that a
shortcut leaves out are not, nor is what activation checkpointing does again.

Counted bytes are those of the tensors that torch's allocator holds: not what the process holds besides (Python,
libraries, cuBLAS), nor what an allocator keeps in reserve. A step that is compiled keeps less than is measured here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.costs.ledger import Ledger, Products, Span
from sdfast.costs.task import Step, Task, image_step, text_step
from sdfast.models.blocks import use_attention
from sdfast.models.checkpointing import use_checkpointing
from sdfast.models.text import TextShape
from sdfast.ops.linear.fp32_matmul import float32_products

_Found = TypeVar("_Found")
_DEEP, _SHALLOW = 12, (4, 5)  # blocks of an encoder: of a deeper one than that two shallow ones are measured
_FEWEST = 2  # blocks from which on what is counted grows with each alike
_TEXT = 64  # tokens of a text of which memory is measured: it grows with all tokens, whatever texts they are of
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


class Flops(NamedTuple):
    """FLOPs of a step.

    Attributes:
        step: forward and backward.
        again: of what activation checkpointing computes once more, where that was asked for; else 0.
    """

    step: float
    again: float


def image_flops(task: Task, checkpointing: bool = False) -> Flops:
    """FLOPs of a step on one image; with `checkpointing`, what that does again is found too."""

    def count(images: int) -> Callable[[Task], NDArray[np.int64]]:
        return lambda task: _flops(lambda: image_step(task, images), checkpointing)

    found = _once(("flops", task.key, checkpointing), lambda: _of_one(task, lambda n: _by_depth(task, count(n))))
    return Flops(*found.tolist())


def text_flops(task: Task, lengths: Sequence[int], masked: Sequence[float], checkpointing: bool = False) -> Flops:
    """FLOPs of a step on some texts together.

    Args:
        task: what is measured.
        lengths: tokens of each text, L.
        masked: masked tokens of each, or their mean, m; not for `finetune`.
        checkpointing: see `image_flops`.
    """
    tokens, hidden = np.asarray(lengths, float), np.asarray(masked if len(masked) else np.zeros(len(lengths)), float)
    return Flops(*(_text_terms(tokens, hidden) @ _text_polynomial(task, checkpointing)).sum(axis=0).tolist())


def _text_polynomial(task: Task, checkpointing: bool) -> NDArray[np.float64]:
    """[5, 2], the two FLOPs of a text: factors of `_text_terms`, which are whole numbers, from so many texts."""
    assert isinstance(task.shape, TextShape)
    roomy = replace(task, shape=replace(task.shape, positions=task.shape.positions + 4))  # a table costs no FLOP
    masks = task.stage != "finetune"

    def count(texts: int, length: int, some: int) -> Callable[[Task], NDArray[np.int64]]:
        given = [length] * texts, [some] * texts if masks else []
        return lambda task: _flops(lambda: text_step(task, *given), checkpointing)

    def find() -> NDArray[np.float64]:
        points = [(2, 1), (3, 1), (4, 1), (2, 2), (4, 2)] if masks else [(2, 0), (3, 0), (4, 0)]
        found = [_of_one(task, lambda n, at=at: _by_depth(roomy, count(n, *at))) for at in points]  # type: ignore[misc]
        terms = _text_terms(*np.array(points, float).T)[:, : len(points)]
        return np.pad(np.linalg.solve(terms, np.array(found, float)).round(), ((0, 5 - len(points)), (0, 0)))

    return _once(("flops", task.key, checkpointing), find)


def _text_terms(tokens: NDArray[np.float64], masked: NDArray[np.float64]) -> NDArray[np.float64]:
    """[texts, 5]: what the FLOPs of a text of L tokens, of which m are masked, are a sum of."""
    return np.stack([np.ones_like(tokens), tokens, tokens**2, masked, masked * tokens], axis=1)


def _of_one(task: Task, count: Callable[[int], NDArray[np.int64]]) -> NDArray[np.int64]:
    """FLOPs of one example, from those of a batch of so many.

    What a contrastive loss multiplies grows with the square of the batch, and is not counted.
    """
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
        step = text_step(task, [2], [1]) if isinstance(task.shape, TextShape) else image_step(task, 1)
        module, teacher = step.objective.module, step.teacher
        trained = [each for _, each in step.objective.trained_parameters() if each.requires_grad]
        largest = max(each.numel() for each in trained)
        beside = [] if teacher is None else teacher.parameters()
        return np.array([sum(each.numel() for each in some) for some in (trained, module.parameters(), beside)])

    def find() -> Size:
        trained, module, teacher = _by_depth(task, count).tolist()
        return Size(trained, module, teacher, largest)

    return _once(("size", task.key), find)


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
    texts, backend = isinstance(task.shape, TextShape), task.config.engine.attention
    backend = backend if backend == "reference" or not cuda else "sdpa"

    def run(count: int) -> Callable[[Task], list[Span]]:
        def measured(task: Task) -> list[Span]:
            step = _short_texts(task, count) if texts else image_step(task, count)
            return _spans(step, backend, bf16, cuda, checkpointing)

        return measured

    def find() -> Moments:
        sizes = (2, 3)
        both = [_deeper(task, run(count)) for count in sizes]
        inside = np.array([[span.fullest for span in spans] for spans in both], float)  # [2, 1 + moments]
        units = np.array(sizes) * _tokens(task)
        slope = (inside[1] - inside[0]) / (units[1] - units[0])
        lines = np.stack([inside[0] - slope * units[0], slope], axis=1)
        made = np.cumsum([0, *(span.gradient for span in both[0][1:-1])])
        return Moments(lines[1:], made, lines[0])

    return _once(("moments", task.key, bf16, cuda, checkpointing), find)


def _tokens(task: Task) -> int:
    """Tokens of each text of which memory is measured; 1 for images, which are measured one by one."""
    return min(_TEXT, task.shape.longest) if isinstance(task.shape, TextShape) else 1


def _short_texts(task: Task, count: int) -> Step:
    tokens = _tokens(task)
    masked = max(1, round(task.config.pretrain.word_ratio * tokens))
    return text_step(task, [tokens] * count, [masked] * count if task.stage != "finetune" else [])


def _spans(step: Step, backend: str, bf16: bool, cuda: bool, checkpointing: bool) -> list[Span]:
    """What the forward pass keeps, as a span of its own, and the spans of the step."""
    kept: dict[int, int] = {}
    ledger = Ledger(step.objective.module, *step.given, cuda=cuda)

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = ledger.size(tensor)
        return tensor

    with _measuring(step, backend, checkpointing), ledger:
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


def _by_depth(task: Task, found: Callable[[Task], Any]) -> Any:
    """What is found of a task that grows with each block of a deep encoder alike."""
    further = task.shape.encoder.depth - _FEWEST
    if 2 * further < _DEEP or task.inner_layer:
        return found(task)
    less, more = (found(task.of_depth(_FEWEST + block)) for block in (0, 1))
    return less + further * (more - less)


def _deeper(task: Task, found: Callable[[Task], list[Span]]) -> list[Span]:
    """The spans of a deep encoder, from those of two shallow ones of which one has a block more in the middle.

    Every further block adds what that one did, to all spans before its backward pass; and spans of its own, in which
    less is alive by as much the further down it lies. Its neighbours are alike, as those of the first and last are not.
    """
    depth = task.shape.encoder.depth
    if depth <= _DEEP or task.inner_layer:
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


def _once(key: Any, find: Callable[[], _Found]) -> _Found:
    """What is found, remembered for the process."""
    if key not in _known:
        _known[key] = find()
    found: _Found = _known[key]
    return found
