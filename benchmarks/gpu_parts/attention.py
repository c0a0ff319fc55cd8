"""Attention at the step's own sizes: each backend's forward and backward pass in a CUDA graph, timed by its replays.

Outside a graph 50 tokens take as long as the host needs to launch them, whatever computes them. Whether a backend is
right is `agreement`'s question.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from step_clock import seconds_of
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts.context import AGAIN, Context
from sdfast.ops.attention import BACKENDS, Group, Groups, attend, attend_across
from sdfast.ops.capture import capture_cuda_graph
from sdfast.ops.registry import why_not

SDPA = {
    "sdpa: flash": SDPBackend.FLASH_ATTENTION,
    "sdpa: cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa: efficient": SDPBackend.EFFICIENT_ATTENTION,
}
TIMED = ("varlen", "xformers", "sdpa", *SDPA)
REPLAYS, ROUNDS = 40, 7
HEADS = {64: 12, 32: 16}  # of ViT-B's encoder, and of its decoder


def groups_of(batch: int) -> dict[str, Groups]:
    """The masked view, the clean view, both in one pass, and the decoder's masked tokens over all."""
    masked, clean = Group(batch, 50, 50), Group(batch, 197, 197)
    return {
        "50": Groups((masked,)),
        "197": Groups((clean,)),
        "50+197": Groups((masked, clean)),
        "147x197": Groups((Group(batch, 147, 197),)),
    }


@dataclass
class Operands:
    """qkv [T, 3, H, d]; or q [Tq, H, d] and kv [Tk, 2, H, d] where queries are other tokens; the result's gradient."""

    inputs: tuple[Tensor, ...]
    grad: Tensor
    groups: Groups

    @classmethod
    def drawn(cls, groups: Groups, heads: int, width: int, dtype: torch.dtype, device: str) -> Operands:
        """Random."""
        queries, keys = sum(groups.query_sizes), sum(groups.key_sizes)
        generator = torch.Generator().manual_seed(queries)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        shapes: list[tuple[int, ...]] = [(queries, 3, heads, width)]
        if queries != keys:
            shapes = [(queries, heads, width), (keys, 2, heads, width)]
        inputs = tuple(random(*shape).requires_grad_() for shape in shapes)
        return cls(inputs, random(queries, heads * width), groups)

    def exact(self) -> Operands:
        """The same in float64."""
        inputs = tuple(each.detach().double().requires_grad_() for each in self.inputs)
        return Operands(inputs, self.grad.double(), self.groups)

    def results(self, backend: str) -> list[Tensor]:
        """The result, and the gradients of queries, keys and values."""
        pinned = sdpa_kernel(SDPA[backend]) if backend in SDPA else contextlib.nullcontext()
        function: Callable[..., Tensor] = attend if len(self.inputs) == 1 else attend_across
        with pinned:
            out = function(*self.inputs, self.groups, "sdpa" if backend in SDPA else backend)
        grads = torch.autograd.grad(out, self.inputs, self.grad)
        if len(grads) == 1:
            return [out.detach(), *grads[0].unbind(1)]
        return [out.detach(), grads[0], *grads[1].unbind(1)]

    def why_not(self, backend: str) -> str | None:
        """Why a backend cannot be used for them; None where it can."""
        tensor = self.inputs[0]
        if backend in SDPA:
            return None if tensor.is_cuda else "its kernels are for CUDA"
        return why_not("attention", backend, tensor.device.type, tensor.dtype, tensor.shape[-1])


def captured(step: Callable[[], Any]) -> Callable[[], None]:
    """The replay of a step's CUDA graph, which writes into what is kept here."""
    for _ in range(3):
        step()
    replay, kept = capture_cuda_graph(step)

    def run_step() -> None:
        assert kept is not None
        replay()

    return run_step


def timing(operands: Operands, backend: str, context: Context) -> dict[str, Any]:
    """Milliseconds of forward and backward; TFLOP/s, the backward pass as twice the forward one."""
    heads_by_width = operands.grad.shape[-1]
    flops = 3 * sum(4.0 * g.batch * g.longest[0] * g.longest[1] * heads_by_width for g in operands.groups.groups)
    step: Callable[[], Any] = lambda: operands.results(backend)  # noqa: E731
    if context.device == "cuda":
        step = captured(step)
    step()
    replays, rounds = (1, 2) if context.quick else (REPLAYS, ROUNDS)
    middle = statistics.median(seconds_of(step, replays, context.device) for _ in range(rounds))
    return {"ms": middle * 1e3, "TFLOP/s": flops / middle / 1e12, "graphed": context.device == "cuda"}


def run(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each size and backend, of batch 64 in bfloat16. After a failed capture the rest has a new process."""
    width = context.what["head_width"]
    heads, batch = (2, 2) if context.quick else (HEADS[width], 64)
    for name, groups in groups_of(batch).items():
        operands = Operands.drawn(groups, heads, width, torch.bfloat16, context.device)
        for backend in TIMED:
            item = f"{name} {backend}"
            if item in context.done:
                continue
            row = {"item": item, "tokens": name, "backend": backend, "heads": heads, "batch": batch}
            reason = operands.why_not(backend)
            if reason is not None:
                yield {**row, "absent": reason}
                continue
            found = context.attempt(timing, operands, backend, context)
            yield {**row, **found}
            if "error" in found and context.device == "cuda":
                raise SystemExit(AGAIN)


def agreement(operands: Operands, context: Context) -> Iterator[dict[str, Any]]:
    """Errors of every backend against float64, of the result and the gradients; met: at most twice the reference's.

    The error is a norm over all elements: the largest one's, of few elements, is a matter of luck (shown beside it).
    """
    truth = operands.exact().results("reference")

    def errors(backend: str) -> tuple[list[float], list[float]]:
        differences = [x.double() - y for x, y in zip(operands.results(backend), truth, strict=True)]
        norms = [float(x.norm() / y.norm()) for x, y in zip(differences, truth, strict=True)]
        return norms, [float(x.abs().max()) for x in differences]

    allowed = errors("reference")
    for backend in dict.fromkeys((*BACKENDS, *TIMED)):
        reason = operands.why_not(backend)
        found = {"absent": reason} if reason is not None else context.attempt(errors, backend)
        if not isinstance(found, dict):
            norm, largest = (
                max(x / y for x, y in zip(*pair, strict=True)) for pair in zip(found, allowed, strict=True)
            )
            found = {"times_eager": norm, "largest_times_eager": largest, "met": norm <= 2}
        yield {"backend": backend, **found}
