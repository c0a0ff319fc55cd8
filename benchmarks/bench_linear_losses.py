"""Forward + backward of a language-model head with its loss: the chunks against all logits at once, float32 on a CPU.

    pytest benchmarks/bench_linear_losses.py --benchmark-only

`linear_cross_entropy` and `linear_kl` at the masked words of a batch, with the words of BERT and RoBERTa. Backends take
turns, and freed pages stay with the process, as in training. `extra_info` has milliseconds, GFLOP/s of the products and
the peak of memory beyond the inputs of each, and which one `auto` takes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import losses_setup as setup
import pytest
import torch
from torch import Tensor

from sdfast.losses import linear_cross_entropy, linear_kl
from sdfast.ops.linear_chunks import Head, backend_for
from sdfast.ops.registry import all_rows

WORDS = {"BERT": 30522, "RoBERTa": 50265}


@dataclass(frozen=True)
class Point:
    """A head at `rows` masked words, from features of `width` to the model's words."""

    loss: str
    rows: int
    model: str
    width: int = 768

    def __str__(self) -> str:
        return f"{self.loss}-{self.rows}x{self.width}-{self.model}"

    @property
    def flops(self) -> int:
        """A product forward and two backward; of the divergence another forward, the teacher's."""
        return (4 if self.loss == "linear_kl" else 3) * 2 * self.rows * self.width * WORDS[self.model]


POINTS = [
    Point(loss, rows, model) for loss in ("linear_cross_entropy", "linear_kl") for model in WORDS for rows in (16, 300)
]
SMALLEST = [Point(loss, 4, "BERT", 8) for loss in ("linear_cross_entropy", "linear_kl")]  # that it runs


@pytest.fixture(scope="module", autouse=True)
def kept_pages() -> Iterator[None]:
    with setup.pages_kept():
        yield


def contenders(point: Point) -> tuple[dict[str, setup.Step], str]:
    """One forward and one backward pass of every backend, and the one that `auto` takes."""
    rng = torch.Generator().manual_seed(0)

    def head() -> tuple[Tensor, Tensor, Tensor]:
        rows, words, width = point.rows, WORDS[point.model], point.width
        return tuple(torch.randn(size, generator=rng) for size in ((rows, width), (words, width), (words,)))  # type: ignore

    hidden, weight, bias = leaves = tuple(each.requires_grad_() for each in head())
    loss: Callable[[str], Tensor]
    if point.loss == "linear_kl":
        theirs = dict(zip(("teacher_hidden", "teacher_weight", "teacher_bias"), head(), strict=True))
        loss = lambda backend: linear_kl(hidden, weight, bias=bias, **theirs, backend=backend)  # noqa: E731
    else:
        labels = torch.randint(0, WORDS[point.model], (point.rows,), generator=rng)
        loss = lambda backend: linear_cross_entropy(hidden, weight, labels, bias, backend=backend)  # noqa: E731
    row = all_rows()[point.loss]
    steps = {
        backend: lambda backend=backend: torch.autograd.grad(loss(backend), leaves)  # type: ignore[misc]
        for backend in row.backends
    }
    return steps, backend_for(row, "auto", Head(*leaves))


@pytest.mark.parametrize("point", [*SMALLEST, *POINTS], ids=str)
def test_point(point: Point, benchmark: Any) -> None:
    steps, auto = contenders(point)
    rows = {}
    for name, seconds in setup.interleaved(steps, "cpu", budget=2.0).items():
        median, peak = statistics.median(seconds), setup.peak_extra_bytes(steps[name], "cpu")
        rows[name] = {"ms": median * 1e3, "GFLOP/s": point.flops / median / 1e9}
        rows[name]["peak_MB"] = float("nan") if peak is None else peak / 1e6
    benchmark.group = point.loss
    benchmark.extra_info.update(point=str(point), auto=auto, rows=rows, threads=torch.get_num_threads())
    benchmark.pedantic(steps[auto], rounds=5, warmup_rounds=1)
