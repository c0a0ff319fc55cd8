"""The pretended GPU notices what it is there to notice, and its backward pass is torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pretend_gpu import PretendGpu, backward
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor
from torch.utils.checkpoint import checkpoint

FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "_local_scalar_dense waits for the device": lambda x: x.sum().item(),
    "nonzero waits for the device": lambda x: x.nonzero(),
    "index waits for the device": lambda x: x[x > 0],
    "index copies an index to the device": lambda x: x[torch.tensor([0, 2])],
    "masked_select waits for the device": lambda x: x.masked_select(x > 0),
    "_to_copy from cuda to cpu": lambda x: x.cpu(),
    "copy_ from cuda to cpu": lambda x: torch.zeros(4, 8).copy_(x),
    "_to_copy from cpu to cuda": lambda x: torch.zeros(3).to(x.device),
    "copy_ from cpu to cuda": lambda x: x.copy_(torch.zeros(4, 8)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault: str) -> None:
    with PretendGpu() as gpu:
        x = torch.zeros(4, 8, device="cuda")
        with gpu.watched(), contextlib.suppress(DynamicOutputShapeException):  # shapes that numbers would decide
            FAULTS[fault](x)
    assert [each.removesuffix(" in torch") for each in gpu.faults] == [fault]


def test_a_tensor_made_of_numbers_is_copied_and_so_noticed() -> None:
    with PretendGpu() as gpu, gpu.watched():
        torch.tensor([1.0, 2.0], device="cuda")
    assert gpu.faults == ["_to_copy from cpu to cuda in torch"]


def test_what_stays_on_the_cpu_is_real_and_what_does_not_is_no_fault() -> None:
    with PretendGpu() as gpu, gpu.watched():
        lengths = torch.tensor([3, 4])
        assert int(lengths.sum()) == 7 and lengths.nonzero().tolist() == [[0], [1]]
        there = lengths.to("cuda", non_blocking=True)
        assert isinstance(there, FakeTensor) and there.device == torch.device("cuda", 0)
        assert torch.ones(5, device="cuda").index_select(0, there).shape == (2,)
    assert gpu.faults == [] and gpu.moved == {"torch": 1}


def test_float32_products_are_noticed() -> None:
    with PretendGpu() as gpu:
        with torch.device("cuda"):
            layer, x, q = nn.Linear(8, 8), torch.zeros(4, 8), torch.zeros(2, 1, 4, 8)
        with gpu.watched():
            with torch.autocast("cuda", torch.bfloat16):
                (layer(x).sum() + F.scaled_dot_product_attention(q, q, q).sum()).backward()
            assert gpu.wide == [] and gpu.narrow == 3  # two of the layer: its input wants no gradient
            layer(x)
            F.scaled_dot_product_attention(q, q, q)
    assert gpu.wide == [
        ("addmm", (4, 8), (8, 8)),
        ("_scaled_dot_product_efficient_attention", *[(2, 1, 4, 8)] * 3),
    ]


class Scaled(torch.autograd.Function):
    """x times a number that is its first operand: gradients are of operands, nodes follow tensors alone."""

    @staticmethod
    def forward(ctx: Any, factor: float, x: Tensor) -> Tensor:
        ctx.factor = factor
        return factor * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.factor * grads[0]


def test_the_backward_pass_is_torchs() -> None:
    """On real numbers: operands that are broadcast, a parameter used twice, outputs not used, a checkpoint."""
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8).double(), nn.Linear(8, 8).double()
    shift = torch.randn(8, dtype=torch.float64, requires_grad=True)
    parameters = [*first.parameters(), *second.parameters(), shift]
    x = torch.randn(4, 8, dtype=torch.float64)

    def loss() -> Tensor:
        hidden = Scaled.apply(0.5, first(x) + shift)
        hidden = checkpoint(lambda h: F.gelu(second(h)), hidden, use_reentrant=False)
        left, _ = first(hidden).chunk(2, dim=1)
        return (left * shift[:4]).square().mean()

    expected = torch.autograd.grad(loss(), parameters)
    for _ in range(2):  # gradients add up
        backward(loss())
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * grad)


def test_nothing_is_left_behind() -> None:
    before = torch.Tensor.backward, F.scaled_dot_product_attention, torch.cuda.is_bf16_supported
    with PretendGpu():
        assert torch.Tensor.backward is backward
    assert (torch.Tensor.backward, F.scaled_dot_product_attention, torch.cuda.is_bf16_supported) == before
    x = torch.ones(3, requires_grad=True)
    x.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1]
