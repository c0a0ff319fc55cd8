"""A bf16 step on the CPU: its operators against float64 with torch's own bf16 as the measure, and whole layers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdfast.models.blocks import Block, PostNormBlock, Rows, TransformerShape, settled
from sdfast.ops import native
from sdfast.ops.attention import Group, Groups
from sdfast.ops.bias_gradients import reference
from sdfast.ops.cpu_half import cpu_half, is_cpu_half
from sdfast.ops.linear import Linear
from sdfast.ops.linear.fp32_matmul import has_bf16_products, mm, why_not_onednn
from sdfast.ops.norm import added_norm, is_joined, normed_sum
from sdfast.ops.registry import why_not

pytestmark = pytest.mark.skipif(
    why_not("added_norm", "half", "cpu", torch.bfloat16) is not None, reason=f"no compiled core: {native.why_not()}"
)
LEVELS = ["plain", "avx2", "avx512"]
# A processor with no more than AVX2, as far as torch, oneDNN and the compiled core can see.
OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "SDFAST_SIMD": "avx2"}
IS_OLDER = OLDER.items() <= os.environ.items()
SIZES = [(1, 1), (3, 7), (70, 48), (33, 65), (0, 5)]  # rows, width


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SDFAST_SIMD", request.param)
    try:
        torch.ops.sdfast.simd_level()
    except RuntimeError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def check(found: list[Tensor], truth: list[Tensor], eager: list[Tensor]) -> None:
    """At most twice the largest error of torch's own operations, and what a rounding in float32 costs."""
    for ours, true, theirs in zip(found, truth, eager, strict=True):
        assert ours.shape == true.shape and ours.dtype == theirs.dtype
        if true.numel():
            allowed = 2 * (theirs.double() - true).abs().max() + 1e-6 * (1 + true.abs().max())
            assert (ours.double() - true).abs().max() <= allowed


class Factors(TorchDispatchMode):
    """Of which dtypes matrix products are, after autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.dtypes |= {each.dtype for each in args}
        return function(*args, **(kwargs or {}))


def norm_of(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * drawn(width, seed=5))
        norm.bias.copy_(drawn(width, seed=6))
    return norm


def sums_and_gradients(
    function: Callable[..., tuple[Tensor, Tensor]], size: tuple[int, int], change: bool, dtype: torch.dtype
) -> list[Tensor]:
    """Both outputs, and the gradients of the residual, the change, the weight and the bias."""
    norm = norm_of(size[1]).to(dtype)
    x = (3 * drawn(*size) + 1).to(dtype).requires_grad_()
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    added = drawn(*size, seed=1).bfloat16().to(half).requires_grad_() if change else None
    made = function(norm, x, added)
    grads = [drawn(*size, seed=2).to(made[0].dtype), drawn(*size, seed=3).bfloat16().to(made[1].dtype)]
    inputs = [x, *([] if added is None else [added]), norm.weight, norm.bias]
    return [*(each.detach() for each in made), *torch.autograd.grad(list(made), inputs, grads)]


@pytest.mark.usefixtures("level", "autocast")
@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_sum_and_norm(size: tuple[int, int], change: bool) -> None:
    def formula(norm: nn.LayerNorm, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x if added is None else x + added
        y = norm(total)
        return total, y.to(torch.bfloat16) if y.dtype == torch.float32 else y

    with torch.autocast("cpu", enabled=False):
        truth = sums_and_gradients(formula, size, change, torch.float64)
    found = sums_and_gradients(added_norm, size, change, torch.float32)
    check(found, truth, sums_and_gradients(formula, size, change, torch.float32))


@pytest.mark.usefixtures("level", "autocast")
@pytest.mark.parametrize("size", SIZES)
def test_norm_of_a_sum_for_both(size: tuple[int, int]) -> None:
    def formula(norm: nn.LayerNorm, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        y = norm(x + added)
        return y, y.to(torch.bfloat16) if y.dtype == torch.float32 else y.clone()

    with torch.autocast("cpu", enabled=False):
        truth = sums_and_gradients(formula, size, True, torch.float64)
    found = sums_and_gradients(normed_sum, size, True, torch.float32)
    check(found, truth, sums_and_gradients(formula, size, True, torch.float32))


@pytest.mark.usefixtures("autocast")
def test_what_is_not_used_has_no_gradient() -> None:
    norm, x, change = norm_of(9), drawn(4, 9).requires_grad_(), drawn(4, 9, seed=1).bfloat16().requires_grad_()
    total, _ = added_norm(norm, x, change)
    grad, other = torch.autograd.grad(total.sum(), (x, change))
    assert torch.equal(grad, torch.ones(4, 9)) and torch.equal(other, torch.ones(4, 9).bfloat16())
    _, half = added_norm(norm, x, change)
    assert torch.autograd.grad(half.float().square().sum(), x)[0].abs().max() > 0
    shaped, normed = added_norm(norm, drawn(2, 3, 9), drawn(2, 3, 9, seed=1).bfloat16())
    assert shaped.shape == normed.shape == (2, 3, 9) and normed.dtype == torch.bfloat16


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("size", SIZES)
def test_gelu_backward(size: tuple[int, int]) -> None:
    grad, x = drawn(*size).bfloat16(), (3 * drawn(*size, seed=1)).bfloat16()
    eager = torch.ops.aten.gelu_backward(grad, x)
    found = torch.ops.sdfast.gelu_half_backward(grad, x)
    check(list(found), list(reference.gelu_backward(grad.double(), x.double())), [eager, eager.float().sum(dim=0)])


@pytest.mark.usefixtures("level")
def test_gelus_slope_everywhere() -> None:
    x = torch.linspace(-20, 20, 40_001).bfloat16()[None]
    x = torch.cat((x, torch.tensor([[float("nan"), 1e30, -1e30]]).bfloat16()), dim=1)
    slope, _ = torch.ops.sdfast.gelu_half_backward(torch.ones_like(x), x)
    true = reference.gelu_backward(torch.ones_like(x).double(), x.double())[0]
    assert (slope - true)[0, :-3].abs().max() < 2.0**-7  # the spacing of bfloat16 numbers above 1
    assert slope[0, -3:].isnan().tolist() == [True, False, False] and slope[0, -2] == 1 and slope[0, -1].abs() < 1e-5


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("size", SIZES)
def test_sum_of_rows(size: tuple[int, int]) -> None:
    x = drawn(*size).bfloat16()
    check([torch.ops.sdfast.sum_rows(x)], [x.double().sum(dim=0)], [x.float().sum(dim=0)])
    check([torch.ops.sdfast.sum_rows(x.t())], [x.double().sum(dim=1)], [x.float().sum(dim=1)])


def test_bits_do_not_depend_on_threads() -> None:
    x, change, norm, results = drawn(1000, 40), drawn(1000, 40, seed=1).bfloat16(), norm_of(40), []
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            total, half, _, stats = torch.ops.sdfast.added_norm(x, change, norm.weight, norm.bias, 1e-6, False)
            backward = torch.ops.sdfast.added_norm_backward(x, half, None, total, stats, norm.weight, True)
            results.append([total, half, *backward, *torch.ops.sdfast.gelu_half_backward(half, change)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.usefixtures("autocast")
@pytest.mark.parametrize("half_in", [False, True])
def test_a_linear_layer(half_in: bool) -> None:
    """Its weight's and bias's gradients are float32 sums: the rounding of torch's bf16 ones is not made."""
    layer, x = Linear(70, 50), drawn(90, 70)
    x = (x.bfloat16() if half_in else x).requires_grad_()
    grad = drawn(90, 50, seed=3).bfloat16()

    def run(on: bool) -> list[Tensor]:
        with cpu_half(on):
            out = layer(x)
            return [out.detach(), *torch.autograd.grad(out, (x, layer.weight, layer.bias), grad)]

    wide = [each.detach().bfloat16().double().requires_grad_() for each in (x, layer.weight, layer.bias)]
    with torch.autocast("cpu", enabled=False):
        out = F.linear(*wide)
        truth = [out.detach(), *torch.autograd.grad(out, wide, grad.double())]
    found, eager = run(True), run(False)
    check(found, truth, eager)
    assert (found[3] - truth[3]).abs().max() <= 1e-5 * truth[3].abs().max()  # no rounding to bfloat16
    residual = drawn(90, 50, seed=4)
    torch.testing.assert_close(layer(x, residual), residual + found[0], rtol=0, atol=0)


@pytest.mark.usefixtures("autocast")
def test_a_layer_with_gelu() -> None:
    layer, x, grad = Linear(30, 50), drawn(90, 30).bfloat16().requires_grad_(), drawn(90, 50, seed=3).bfloat16()
    names = []

    def run(on: bool) -> list[Tensor]:
        with cpu_half(on):
            out = layer.gelu(x)
            names.append(type(out.grad_fn).__name__)
            return [out.detach(), *torch.autograd.grad(out, (x, layer.weight, layer.bias), grad)]

    found, eager = run(True), run(False)
    assert names[0] != names[1]
    wide = [each.detach().bfloat16().double().requires_grad_() for each in (x, layer.weight, layer.bias)]
    with torch.autocast("cpu", enabled=False):
        out = F.gelu(F.linear(*wide))
        truth = [out.detach(), *torch.autograd.grad(out, wide, grad.double())]
    check(found, truth, eager)
    layer.bias.requires_grad_(False)
    assert torch.equal(layer.gelu(x), found[0])


def a_block(kind: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    torch.manual_seed(0)
    shape, groups = TransformerShape(48, 2, 3, 192), Groups((Group(4, 20, 20),))
    if kind == "post-norm":
        return PostNormBlock(shape, 1e-6), lambda block, x: block(x, groups)
    return Block(shape, 1e-6, True), lambda block, x: settled(*block.advance(block.advance(Rows(x), groups), groups))


@pytest.mark.parametrize("kind", ["pre-norm", "post-norm"])
def test_blocks(kind: str) -> None:
    """Values and gradients: as near to float64 as under torch's autocast, twice its error at most."""
    block, run = a_block(kind)
    x, grad = drawn(80, 48), drawn(80, 48, seed=2)

    def both(dtype: torch.dtype, half: bool, on: bool) -> list[Tensor]:
        here, module = x.to(dtype).requires_grad_(), block.to(dtype)
        with cpu_half(on), torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = run(module, here)
        assert out.dtype == dtype
        found = torch.autograd.grad(out, [here, *module.parameters()], grad.to(dtype))
        return [out.detach(), *(each.clone() for each in found)]

    found, eager = both(torch.float32, True, True), both(torch.float32, True, False)
    truth = both(torch.float64, False, True)
    assert not all(torch.equal(*each) for each in zip(found, eager, strict=True))
    for ours, theirs, true in zip(found, eager, truth, strict=True):
        errors = [(each.double() - true).norm() / true.norm() for each in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + 1e-6


@pytest.mark.usefixtures("autocast")
@pytest.mark.parametrize("bias", [None, drawn(7, seed=2)], ids=["alone", "with a bias"])
@pytest.mark.parametrize("has_kernels", [True, False])
def test_a_product(has_kernels: bool, bias: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdfast.ops.linear.fp32_matmul.has_bf16_products", lambda: has_kernels)
    left, right = drawn(90, 70).bfloat16(), drawn(70, 7, seed=1).bfloat16()
    added = None if bias is None else bias.bfloat16()
    with torch.autocast("cpu", enabled=False):
        truth = left.double() @ right.double() + (0 if added is None else added.double())
        eager = left @ right if added is None else torch.addmm(added, left, right)
    with Factors() as factors:
        found = mm(left, right, added)
    check([found], [truth], [eager])
    assert factors.dtypes == {torch.bfloat16 if has_kernels else torch.float32}


@pytest.mark.skipif(IS_OLDER, reason="it is this one")
def test_these_tests_without_avx512() -> None:
    here = Path(__file__)
    files = [here, here.with_name("test_linear.py"), here.with_name("test_linear_cross_entropy.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    environment = {**os.environ, **OLDER, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=here.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 60, done.stdout


def test_kernels_of_an_older_processor_are_not_asked_for() -> None:
    assert why_not("linear", "half", "cpu", torch.bfloat16) is None
    assert not IS_OLDER or not (has_bf16_products() or why_not_onednn() is None)


def test_where_it_is_off() -> None:
    x = drawn(3, 4)
    assert not is_joined(x)  # no autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert is_joined(x) and not is_joined(x.bfloat16()) and is_cpu_half("linear", x)
        with cpu_half(False):
            assert not is_joined(x) and not is_cpu_half("linear", x)
    with torch.autocast("cpu", torch.float16):
        assert not is_joined(x)
    norm = norm_of(4)
    total, y = added_norm(norm, x, x)
    assert torch.equal(total, 2 * x) and torch.equal(y, norm(2 * x)) and torch.equal(normed_sum(norm, x, x)[0], y)


def test_bad_operands_are_named() -> None:
    x, half, vector = drawn(3, 4), drawn(3, 4).bfloat16(), drawn(4)
    for given, sentence in (
        ((half, None, vector, vector), "x should be float32"),
        ((x, x, vector, vector), "change should be bfloat16"),
        ((x, half[:2], vector, vector), r"change should be \[rows, width\]"),
        ((x, half, vector[:3], vector), r"weight should be \[width\] of float32"),
    ):
        with pytest.raises(RuntimeError, match=sentence):
            torch.ops.sdfast.added_norm(*given, 1e-6, False)
    with pytest.raises(RuntimeError, match="grad should be bfloat16"):
        torch.ops.sdfast.gelu_half_backward(x, half)
