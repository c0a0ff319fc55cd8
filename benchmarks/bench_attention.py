"""Forward + backward of attention between its two projections: every backend that is ready, on a CPU.

    pytest benchmarks/bench_attention.py --benchmark-only --benchmark-json=F; python benchmarks/attention_table.py F

Inputs are the packed rows that the fused projection leaves, and so are the gradients. Contenders take turns, and freed
pages stay with the process, as in training. The table marks a point as lost where another backend is faster than the
one that `auto` takes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import losses_setup as setup
import pytest
import torch

from sdfast.ops.attention import BACKENDS, Group, Groups, attend, choose_backend
from sdfast.ops.registry import why_not

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Point:
    """Views of `batch` images that go through a layer together, by their numbers of tokens."""

    name: str
    batch: int
    tokens: tuple[int, ...]
    heads: int
    dim: int = 64
    dtype: torch.dtype = torch.float32
    dropout: float = 0.0

    def __str__(self) -> str:
        named = f"{self.name}-{self.batch}x{'+'.join(map(str, self.tokens))}-{self.heads}x{self.dim}"
        dropped = f"-dropout {self.dropout}" if self.dropout else ""
        return named + ("-bf16" if self.dtype == torch.bfloat16 else "") + dropped

    @property
    def groups(self) -> Groups:
        return Groups(tuple(Group(self.batch, count, count) for count in self.tokens))

    @property
    def flops(self) -> int:
        """Two products forward and four backward; what a backend computes again does not count."""
        return 6 * 2 * self.batch * self.heads * self.dim * sum(count * count for count in self.tokens)


ENCODERS = [("ViT-Ti", 16, 3), ("ViT-S", 8, 6), ("ViT-B", 4, 12)]
VIEWS = [(197,), (50,), (50, 197)]
POINTS = [Point(name, batch, tokens, heads) for name, batch, heads in ENCODERS for tokens in VIEWS]
POINTS += [Point("decoder-256", 8, (197,), 8, 32), Point("decoder-512", 8, (197,), 16, 32)]
POINTS += [replace(point, dtype=torch.bfloat16) for point in POINTS if point.name in ("ViT-S", "decoder-512")]
POINTS += [Point("RoBERTa", 8, (128,), 12, dtype=dtype, dropout=0.1) for dtype in (torch.float32, torch.bfloat16)]


@pytest.fixture(scope="module", autouse=True)
def kept_pages() -> Iterator[None]:
    with setup.pages_kept():
        yield


def contenders(point: Point) -> dict[str, setup.Step]:
    """One forward and one backward pass of every backend, the sequences' bounds made before, as in a step."""
    rng = torch.Generator().manual_seed(0)
    tokens, groups = point.batch * sum(point.tokens), point.groups
    qkv = torch.randn(tokens, 3, point.heads, point.dim, generator=rng).to(point.dtype).requires_grad_()
    grad_output = torch.randn(tokens, point.heads * point.dim, generator=rng).to(point.dtype)

    def through(backend: str) -> setup.Step:
        return lambda: torch.autograd.grad(attend(qkv, groups, backend, point.dropout), qkv, grad_output)

    use = "cpu", point.dtype, point.dim, point.dropout > 0
    return {name: through(name) for name in BACKENDS if why_not("attention", name, *use) is None}


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_point(point: Point, benchmark: Any) -> None:
    steps = contenders(point)
    samples = setup.interleaved(steps, "cpu", budget=2.0)
    rows = {}
    for name, seconds in samples.items():
        median = statistics.median(seconds)
        rows[name] = {"ms": median * 1e3, "ms_fastest": min(seconds) * 1e3, "GFLOP/s": point.flops / median / 1e9}
    auto = choose_backend("auto", CPU, point.dtype, point.heads, point.dim, point.groups.shape, point.dropout > 0)
    benchmark.group = "attention"
    benchmark.extra_info.update(point=str(point), auto=auto, rows=rows, threads=torch.get_num_threads())
    benchmark.pedantic(steps[auto], rounds=5, warmup_rounds=1)
