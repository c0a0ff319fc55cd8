"""The divergence of two heads in chunks equals the dense one: losses and gradients, dtypes and odd inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.losses import linear_kl
from sdfast.ops import linear_chunks

BACKENDS = ["reference", "chunked"]
STUDENT = ("hidden", "weight", "bias")


def build(rows: int = 37, width: int = 12, words: int = 53, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The teacher is narrower than the student."""
    rng = torch.Generator().manual_seed(rows)
    sizes = {"hidden": (rows, width), "weight": (words, width), "bias": (words,)}
    sizes |= {"teacher_hidden": (rows, width - 2), "teacher_weight": (words, width - 2), "teacher_bias": (words,)}
    made = {name: torch.randn(size, generator=rng).to(dtype) for name, size in sizes.items()}
    return {name: value.requires_grad_() for name, value in made.items()}


def dense(arguments: dict[str, Tensor], weights: Tensor | float) -> Tensor:
    """sum_i w_i sum_v p_iv (log p_iv - log q_iv), as it is written."""
    q = F.linear(*(arguments[name] for name in STUDENT)).softmax(1)
    p = F.linear(*(arguments[f"teacher_{name}"] for name in STUDENT)).softmax(1).detach()
    return ((p * (p.log() - q.log())).sum(1) * weights).sum()


def results(arguments: dict[str, Tensor], loss: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, [arguments[name] for name in STUDENT])]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_chunks, "_CHUNK_BYTES", {"cpu": 1})  # so 16 rows at most


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 16, 17, 100])
def test_is_the_divergence_of_two_predictions(backend: str, rows: int, small_chunks: None) -> None:
    arguments = build(rows)
    ours = results(arguments, 2.5 * linear_kl(**arguments, backend=backend))
    wanted = results(arguments, 2.5 * dense(arguments, 1 / rows))
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)
    theirs = [value for name, value in arguments.items() if name.startswith("teacher")]
    loss = linear_kl(**arguments, backend=backend)
    assert torch.autograd.grad(loss, theirs, allow_unused=True) == (None, None, None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_weights_of_the_divergence(backend: str, small_chunks: None) -> None:
    arguments = build()
    weights = torch.rand(37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[5] = 0.0
    ours = results(arguments, linear_kl(**arguments, row_weights=weights, backend=backend))
    for mine, theirs in zip(ours, results(arguments, dense(arguments, weights)), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not ours[1][5].any() and ours[1][6].any()
    half = linear_kl(**arguments, row_weights=0.5, backend=backend)
    torch.testing.assert_close(half, dense(arguments, 0.5))


def test_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2); and its gradient is q - p."""
    hidden, teacher = torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1)
    bias = torch.zeros(2, requires_grad=True)
    loss = linear_kl(hidden, torch.ones(2, 1), teacher, torch.tensor([[3.0], [1.0]]).log(), bias)
    assert float(loss.detach()) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    loss.backward()
    assert bias.grad is not None and bias.grad.tolist() == pytest.approx([-0.25, 0.25])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_predictions_have_no_divergence_and_no_gradient(backend: str) -> None:
    arguments = build(dtype=torch.float32)
    for name in STUDENT:
        arguments[f"teacher_{name}"] = arguments[name].detach().clone()
    loss, *grads = results(arguments, linear_kl(**arguments, backend=backend))
    assert abs(loss) < 1e-7 and all(grad.abs().max() < 1e-7 for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_no_divergence(backend: str) -> None:
    arguments = build(0)
    loss, *grads = results(arguments, linear_kl(**arguments, backend=backend))
    assert loss == 0 and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_of_the_divergence_is_at_most_twice_that_of_eager(dtype: torch.dtype, small_chunks: None) -> None:
    arguments = build(90, 33, 200, dtype)
    exact = {name: value.detach().double().requires_grad_() for name, value in arguments.items()}
    truth = results(exact, linear_kl(**exact, backend="reference"))
    ours, eager = (results(arguments, linear_kl(**arguments, backend=backend)) for backend in ("chunked", "reference"))
    for name, mine, plain, right in zip(("loss", *STUDENT), ours, eager, truth, strict=True):
        assert mine.dtype == plain.dtype
        error, eagers = ((each.double() - right).abs().max().item() for each in (mine, plain))
        unit = torch.finfo(dtype).eps / 2 * right.abs().max().item()
        assert error <= max(2 * eagers, 4 * unit), f"{name} is off by {error:.3g}, eager by {eagers:.3g}"


def test_the_divergence_under_autocast() -> None:
    arguments = build(40, 32, 64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, eager = (results(arguments, linear_kl(**arguments, backend=b)) for b in ("chunked", "reference"))
    assert [each.dtype for each in ours] == [torch.float32] * 4
    exact = results(arguments, linear_kl(**arguments, backend="reference"))
    for mine, plain, right in zip(ours, eager, exact, strict=True):
        error, eagers = ((each - right).abs().max().item() for each in (mine, plain))
        assert 0 < error <= 2 * eagers + 1e-6


def test_certain_predictions_stay_finite() -> None:
    arguments = build(20, 8, 30, torch.float32)
    for name in ("hidden", "weight", "teacher_hidden", "teacher_weight"):
        arguments[name] = (arguments[name].detach() * 100).requires_grad_()
    ours, wanted = (results(arguments, linear_kl(**arguments, backend=backend)) for backend in BACKENDS)
    for mine, theirs in zip(ours, wanted, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs)


def test_no_head_predicts_all_rows_at_once(small_chunks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = torch.ops.aten._log_softmax.out

    def noted(logits: Tensor, *arguments: Any, **more: Any) -> Tensor:
        rows.append(len(logits))
        return original(logits, *arguments, **more)

    monkeypatch.setattr(torch.ops.aten._log_softmax, "out", noted)
    arguments = build(100)
    linear_kl(**arguments).backward()
    assert len(rows) == 14 and max(rows) == 15 and sum(rows) == 200  # of both heads


def test_gradcheck_of_the_divergence() -> None:
    arguments = build(5, 4, 7)
    theirs = {name: value for name, value in arguments.items() if name.startswith("teacher")}
    inputs = tuple(arguments[name] for name in STUDENT)

    def divergence(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_kl(hidden=hidden, weight=weight, bias=bias, **theirs, backend="chunked")

    assert torch.autograd.gradcheck(divergence, inputs)
    (grad,) = torch.autograd.grad(divergence(*inputs).square(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_divergence_compiles() -> None:
    torch._dynamo.reset()
    arguments = build()
    compiled = torch.compile(linear_kl, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**arguments), linear_kl(**arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(37, 12).long()}, r"^hidden should be float \[M, D\]"),
        ({"teacher_hidden": torch.zeros(37, 10, 1)}, r"^teacher_hidden should be float \[M, D\]"),
        ({"weight": torch.zeros(53, 11)}, r"^weight should have shape \[V, 12\], not \[53, 11\]"),
        ({"teacher_bias": torch.zeros(52)}, r"^teacher_bias should have shape \[53\], not \[52\]"),
        ({"teacher_hidden": torch.zeros(36, 10)}, r"predict \[37, 53\] \(rows, words\), not \[36, 53\]"),
        ({"row_weights": torch.zeros(36)}, r"^row_weights should have shape \[37\]"),
        ({"backend": "fast"}, "one of auto, reference, chunked, not 'fast'"),
    ],
)
def test_bad_input_of_the_divergence_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_kl(**{**build(), **change})
