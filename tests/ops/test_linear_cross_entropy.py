"""The chunked head equals the plain one: losses and gradients, over chunk sizes, dtypes and odd inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.losses import linear_cross_entropy
from sdfast.ops import linear_chunks

BACKENDS = ["reference", "chunked"]


def build(rows: int = 37, width: int = 12, words: int = 53, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    return {
        "hidden": torch.randn(rows, width, generator=rng).to(dtype).requires_grad_(),
        "weight": torch.randn(words, width, generator=rng).to(dtype).requires_grad_(),
        "bias": torch.randn(words, generator=rng).to(dtype).requires_grad_(),
        "labels": torch.randint(0, words, (rows,), generator=rng),
    }


def results(arguments: dict[str, Tensor], backend: str, grad: float = 1.0, **more: Any) -> list[Tensor]:
    loss = linear_cross_entropy(**arguments, backend=backend, **more)
    inputs = [arguments[name] for name in ("hidden", "weight", "bias") if name in arguments]
    return [loss.detach(), *torch.autograd.grad(loss * grad, inputs)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_chunks, "_CHUNK_BYTES", {"cpu": 1})  # so 16 rows at most


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 37, 100])
def test_is_the_cross_entropy_of_a_linear_layer(backend: str, rows: int, small_chunks: None) -> None:
    arguments = build(rows)
    ours = results(arguments, backend, 2.5)
    inputs = [arguments[name] for name in ("hidden", "weight", "bias")]
    loss = F.cross_entropy(F.linear(*inputs), arguments["labels"])
    wanted = [loss.detach(), *torch.autograd.grad(2.5 * loss, inputs)]
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_weights(backend: str, small_chunks: None) -> None:
    arguments = build(37)
    weights = torch.rand(37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[5] = 0.0
    inputs = [arguments[name] for name in ("hidden", "weight", "bias")]
    each = F.cross_entropy(F.linear(*inputs), arguments["labels"], reduction="none")
    ours = results(arguments, backend, row_weights=weights)
    torch.testing.assert_close(ours[0], (each * weights).sum())
    for mine, theirs in zip(ours[1:], torch.autograd.grad((each * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not ours[1][5].any()
    torch.testing.assert_close(results(arguments, backend, row_weights=0.5)[0], 0.5 * each.sum())


def test_without_bias_and_with_some_gradients_only() -> None:
    arguments = build()
    del arguments["bias"]
    for mine, theirs in zip(results(arguments, "chunked"), results(arguments, "reference"), strict=True):
        torch.testing.assert_close(mine, theirs)
    arguments["weight"].requires_grad_(False)
    (grad,) = torch.autograd.grad(linear_cross_entropy(**arguments), arguments["hidden"])
    plain = linear_cross_entropy(**arguments, backend="reference")
    torch.testing.assert_close(grad, torch.autograd.grad(plain, arguments["hidden"])[0])
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(**arguments), plain)


@pytest.mark.parametrize(("rows", "chunked"), [(64, False), (2048, True)])
def test_few_logits_on_a_cpu_are_computed_at_once(rows: int, chunked: bool) -> None:
    """64 rows of 1,000 words are 0.25 MB, for which the plain way is the faster one; 2,048 are 8 MB."""
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(1000, 4)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(rows, dtype=torch.int64))
    assert (loss.grad_fn is not None and "Chunked" in loss.grad_fn.name()) == chunked


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str) -> None:
    loss, *grads = results(build(0), backend)
    assert loss == 0 and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_at_most_twice_that_of_eager(dtype: torch.dtype, small_chunks: None) -> None:
    arguments = build(90, 33, 200, dtype)
    truth = results(
        {n: v.detach().double().requires_grad_() if n != "labels" else v for n, v in arguments.items()}, "reference"
    )
    ours, eager = results(arguments, "chunked"), results(arguments, "reference")
    for name, mine, plain, exact in zip(("loss", "hidden", "weight", "bias"), ours, eager, truth, strict=True):
        assert mine.dtype == plain.dtype
        error, eagers = ((each.double() - exact).abs().max().item() for each in (mine, plain))
        unit = torch.finfo(dtype).eps / 2 * exact.abs().max().item()
        assert error <= max(2 * eagers, 4 * unit), f"{name} is off by {error:.3g}, eager by {eagers:.3g}"


def test_autocast() -> None:
    arguments = build(40, 32, 64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = results(arguments, "chunked")
        eager = results(arguments, "reference")
    assert [each.dtype for each in ours] == [torch.float32] * 4
    for mine, plain, exact in zip(ours, eager, results(arguments, "reference"), strict=True):
        error, eagers = ((each - exact).abs().max().item() for each in (mine, plain))
        assert 0 < error <= 2 * eagers + 1e-6


def test_float16_gradients_are_made_within_its_range() -> None:
    """Shares of a word are below float16's least numbers here; the scale of the loss comes after they are made."""
    arguments = build(256, 12, 4096, torch.float16)
    found = results(arguments, "chunked", 2.0**14)[1:]
    exact = {name: value.detach().double().requires_grad_(name != "labels") for name, value in arguments.items()}
    exact["labels"] = arguments["labels"]
    for mine, truth in zip(found, results(exact, "chunked", 2.0**14)[1:], strict=True):
        assert mine.dtype == torch.float16 and (mine.double() - truth).norm() <= 1e-3 * truth.norm()


def test_large_logits_stay_finite() -> None:
    arguments = build(20, 8, 30, torch.float32)
    for name in ("hidden", "weight"):
        arguments[name] = (arguments[name].detach() * 100).requires_grad_()
    ours, wanted = results(arguments, "chunked"), results(arguments, "reference")
    for mine, theirs in zip(ours, wanted, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs)


def test_the_logits_are_never_there_together(small_chunks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    product = linear_chunks.product

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows.append(len(x))
        return product(x, weight, bias)

    monkeypatch.setattr(linear_chunks, "product", noted)
    results(build(100), "chunked")
    assert len(rows) == 14 and max(rows) == 15 and sum(rows) == 200  # 100 rows to words, and back


def test_gradcheck_and_a_second_derivative() -> None:
    arguments = build(5, 3, 7)
    inputs = tuple(arguments[name] for name in ("hidden", "weight", "bias"))
    labels = arguments["labels"]
    assert torch.autograd.gradcheck(lambda h, w, b: linear_cross_entropy(h, w, labels, b, backend="chunked"), inputs)
    loss = linear_cross_entropy(**arguments, backend="chunked")
    (grad,) = torch.autograd.grad(loss.square(), arguments["hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_compile() -> None:
    torch._dynamo.reset()
    arguments = build()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**arguments), linear_cross_entropy(**arguments))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(37, 12).long()}, ValueError, r"^hidden should be float \[M, D\]"),
        ({"hidden": torch.zeros(37, 12, 1)}, ValueError, r"^hidden should be float \[M, D\]"),
        ({"weight": torch.zeros(53, 11)}, ValueError, r"^weight should have shape \[V, 12\], not \[53, 11\]"),
        ({"bias": torch.zeros(52)}, ValueError, r"^bias should have shape \[53\], not \[52\]"),
        ({"labels": torch.zeros(37)}, TypeError, "^labels should be torch.int64"),
        ({"labels": torch.zeros(36).long()}, ValueError, r"^labels should have shape \[37\]"),
        ({"row_weights": torch.zeros(36)}, ValueError, r"^row_weights should have shape \[37\]"),
        ({"row_weights": torch.zeros(37, requires_grad=True)}, ValueError, "no gradient"),
        ({"backend": "fast"}, ValueError, "one of auto, reference, chunked, not 'fast'"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_cross_entropy(**{**build(), **change})
