"""The set-up of benchmarks/bench_losses.py: points of the grid, contenders, clocks and meters.

Every contender of a point gets the same tensors and is timed in turn, round by round, so that a change in the
machine's speed meets all of them. A call is one forward and one backward pass, the gradients newly allocated in it.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdfast.losses import mae_distill_loss
from sdfast.ops import registry
from sdfast.ops.mae_distill.arguments import Arguments, check_arguments
from sdfast.ops.mae_distill.in_place import in_place_mae_distill
from sdfast.ops.mae_distill.loss import ROW

PATCHES, PATCH_SIZE, MASKED, TOKENS = 196, 16, 147, 197
WIDTHS = {"ViT-Ti": 192, "ViT-B": 768, "ViT-L": 1024}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Step = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Point:
    """One cell of the grid: 224 px images, patch 16, 147 of 196 patches masked; pixels and teacher in float32."""

    batch: int
    model: str
    tokens: bool
    dtype: str

    def __str__(self) -> str:
        return f"batch{self.batch}-{self.model}-{'tokens' if self.tokens else 'CLS'}-{self.dtype}"

    @property
    def smallest_traffic(self) -> int:
        """Bytes that any implementation has to move: masked predictions and pixels in, features in, gradients out."""
        size = DTYPES[self.dtype].itemsize
        values = PATCH_SIZE**2 * 3
        pixels = self.batch * (MASKED * values * (size + 4) + PATCHES * values * size)
        features = self.batch * (TOKENS if self.tokens else 1) * WIDTHS[self.model]
        return pixels + features * (size + 4 + size)


GRID = [
    Point(batch, model, tokens, dtype)
    for dtype in DTYPES
    for batch in (1, 8, 64, 256)
    for model in WIDTHS
    for tokens in (False, True)
]
HEADLINE = Point(64, "ViT-B", True, "float32")


def plain_loss(pred: Tensor, images: Tensor, mask: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """The formula as it is usually written (ViTMAE's pixel loss with norm_pix_loss, plus a squared distance)."""
    batch, channels, height, width = images.shape
    rows, columns, p = height // PATCH_SIZE, width // PATCH_SIZE, PATCH_SIZE
    target = images.reshape(batch, channels, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1)
    target = target.reshape(batch, rows * columns, p * p * channels)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    mae = (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()
    return mae + ((student - teacher) ** 2).sum() / batch


def operands(point: Point, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """pred, images, mask, student and teacher of a point."""
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=rng).to(device, dtype)

    dtype, width, side = DTYPES[point.dtype], WIDTHS[point.model], PATCH_SIZE * int(PATCHES**0.5)
    features = (point.batch, TOKENS, width) if point.tokens else (point.batch, width)
    pred = random(point.batch, PATCHES, PATCH_SIZE**2 * 3, dtype=dtype).requires_grad_()
    images, mask = random(point.batch, 3, side, side), random(point.batch, PATCHES).argsort(1) < MASKED
    return pred, images, mask, random(*features, dtype=dtype).requires_grad_(), random(*features)


def fallback_loss(pred: Tensor, images: Tensor, mask: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """What "auto" is without any compiled backend."""
    given = Arguments(pred, images, mask, student=student, teacher=teacher, patch_size=PATCH_SIZE)
    return in_place_mae_distill(check_arguments(given)).loss


def contenders(point: Point, device: str) -> dict[str, Step]:
    """Forward and backward of the plain formula, eager and compiled, of every backend that is ready, and of none."""
    tensors = operands(point, device)
    pred, _, _, student, _ = tensors
    compiled = torch.compile(plain_loss, fullgraph=True, dynamic=False)

    def through(loss: Callable[[], Tensor]) -> Step:
        return lambda: torch.autograd.grad(loss(), (pred, student))

    steps = {"eager": through(lambda: plain_loss(*tensors)), "compile": through(lambda: compiled(*tensors))}
    if device == "cpu":
        steps["fallback"] = through(lambda: fallback_loss(*tensors))
    for backend in ROW.backends:
        if registry.why_not("mae_distill", backend, device) is None:
            steps[backend] = through(lambda backend=backend: mae_distill_loss(*tensors, backend=backend).loss)
    return steps


def forward_call(point: Point, device: str, backend: str) -> Callable[[], Tensor]:
    """The forward call of one backend (which makes the gradients too)."""
    tensors = operands(point, device)
    return lambda: mae_distill_loss(*tensors, backend=backend).loss


def seconds_of(step: Step, calls: int, device: str) -> float:
    """Seconds a call, averaged over ``calls``."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def interleaved(steps: dict[str, Step], device: str, budget: float = 3.0) -> dict[str, list[float]]:
    """Samples of every contender, taken in turn for about ``budget`` seconds (5 to 60 rounds)."""
    for step in steps.values():
        for _ in range(3):
            step()
    # A sample lasts at least 5 ms, so that the clock and the loop do not show.
    calls = {name: max(1, min(200, int(0.005 / seconds_of(step, 1, device)))) for name, step in steps.items()}
    rounds, samples = 0, {name: [] for name in steps}
    start = time.perf_counter()
    while rounds < 5 or (time.perf_counter() - start < budget and rounds < 60):
        for name, step in steps.items():
            samples[name].append(seconds_of(step, calls[name], device))
        rounds += 1
    return samples


def copy_bandwidth(device: str, size: int = 1 << 28) -> float:
    """Bytes a second, read and written, of copying ``size`` bytes between two tensors."""
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    samples = interleaved({"copy": lambda: (target.copy_(source),)}, device, budget=1.0)["copy"]
    return 2 * size / statistics.median(samples)


def peak_extra_bytes(step: Step, device: str) -> int | None:
    """The largest amount of memory in use during a call, beyond what was in use before it."""
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = resident("VmRSS")
    step()
    return max(resident("VmHWM") - before, 0)


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (high-water mark) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


@contextmanager
def pages_kept() -> Iterator[None]:
    """Freed memory stays with the process (glibc: no mmap for large blocks, no trimming), then as it was."""
    trim_threshold, mmap_threshold, default = -1, -3, 128 * 1024
    mallopt = ctypes.CDLL(None).mallopt
    for threshold in (trim_threshold, mmap_threshold):
        mallopt(threshold, 2**31 - 1)
    try:
        yield
    finally:
        for threshold in (trim_threshold, mmap_threshold):
            mallopt(threshold, default)
        ctypes.CDLL(None).malloc_trim(0)
