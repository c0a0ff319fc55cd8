"""What is counted of a step's operators: the same whichever backend computes them."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from sdfast.ops import native
from sdfast.ops.attention import Group, Groups, Ragged, attend
from sdfast.ops.flops import flop_counter
from sdfast.ops.linear import linear
from sdfast.ops.linear.fp32_matmul import float32_products, why_not_onednn

needs_native = pytest.mark.skipif(not native.available(), reason=f"no compiled core: {native.why_not()}")


def counted(groups: Groups, backend: str, dropout: float = 0.0) -> tuple[int, int]:
    """Of the forward, and of the backward pass."""
    qkv = torch.randn(sum(groups.query_sizes), 3, 2, 4, requires_grad=True)
    with flop_counter() as forward:
        out = attend(qkv, groups, backend, dropout)
    with flop_counter() as backward:
        out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "reference", "sdpa"])
@pytest.mark.parametrize(
    ("groups", "pairs"),
    [
        (Groups((Group(3, 5, 5),)), 75),
        (Groups((Group(3, 5, 5), Group(2, 7, 7))), 173),
        (Groups((Ragged(torch.tensor([2, 9, 1])),)), 86),
    ],
)
def test_attention_is_two_products_and_four_behind_it(backend: str, groups: Groups, pairs: int) -> None:
    one = 2 * 2 * 4 * pairs
    assert counted(groups, backend) == (2 * one, 4 * one)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "sdpa"])
def test_dropout_of_weights_costs_no_product(backend: str) -> None:
    one = 2 * 2 * 4 * 75
    assert counted(Groups((Group(3, 5, 5),)), backend, 0.5) == (2 * one, 4 * one)


@needs_native
def test_padding_is_not_counted_by_the_kernel_that_leaves_it_out() -> None:
    valid = torch.arange(5) < torch.tensor([[2], [5], [3]])
    assert counted(Groups((Group(3, 5, 5, valid),)), "native")[0] == 2 * 2 * 2 * 4 * (4 + 25 + 9)


@needs_native
def test_the_compiled_attention_says_that_fake_tensors_have_no_lengths() -> None:
    with FakeTensorMode(), pytest.raises(RuntimeError, match="count with another backend"):
        counted(Groups((Group(3, 5, 5),)), "native")


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_fake_tensors_count_the_same(backend: str) -> None:
    with FakeTensorMode():
        made = counted(Groups((Group(3, 5, 5), Group(2, 7, 7))), backend)
    assert made == counted(Groups((Group(3, 5, 5), Group(2, 7, 7))), backend)


@pytest.mark.parametrize("how", ["ieee", pytest.param("bf16x6", marks=needs_native)])
def test_a_linear_layer_is_one_product_and_two_behind_it(how: str) -> None:
    x, weight, bias = (torch.randn(size, requires_grad=True) for size in ((64, 24), (40, 24), (40,)))
    with float32_products(how):  # type: ignore[arg-type]
        with flop_counter() as forward:
            out = linear(x, weight, bias)
        with flop_counter() as backward:
            out.sum().backward()
    one = 2 * 64 * 24 * 40
    assert (forward.get_total_flops(), backward.get_total_flops()) == (one, 2 * one)


@pytest.mark.skipif(why_not_onednn() is not None, reason="no oneDNN for linear layers here")
def test_torchs_own_counter_keeps_what_it_knew() -> None:
    flop_counter()
    with float32_products("ieee"), FlopCounterMode(display=False) as counter:
        linear(torch.randn(64, 24), torch.randn(40, 24), None)
    assert counter.get_total_flops() == 0
