"""Products of float32 matrices out of six bfloat16 ones, against float64 and torch's own float32."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sdfast.config import EngineConfig
from sdfast.engine.machine import cpu_settings
from sdfast.engine.peak import matmul_peak
from sdfast.errors import UserError
from sdfast.ops import native
from sdfast.ops.linear import fp32_matmul

needs_core = pytest.mark.skipif(not native.available(), reason=f"no compiled core: {native.why_not()}")


@pytest.fixture(params=["plain", "amx"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if (reason := fp32_matmul.why_not_bf16x6()) is not None:
        pytest.skip(reason)
    monkeypatch.setenv("SDFAST_SIMD", request.param)
    try:
        torch.ops.sdfast.simd_level()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    return request.param


def factors(rows: int, depth: int, columns: int, spread: float = 0.0) -> tuple[Tensor, Tensor]:
    """Normal numbers; with `spread`, of sizes that differ by e^(3 spread) and more."""
    rng = torch.Generator().manual_seed(rows * depth + columns)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng) * (spread * torch.randn(shape, generator=rng)).exp()

    return drawn(rows, depth), drawn(depth, columns)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same matrix with other strides."""
    wide = torch.full((x.shape[0], x.shape[1] + 5), float("nan"))
    wide[:, 2:-3] = x
    tall = torch.full((x.shape[1] + 1, x.shape[0]), float("nan"))
    tall[1:] = x.t()
    loose = torch.full((2 * x.shape[0], 2 * x.shape[1]), float("nan"))
    loose[::2, ::2] = x
    return {"rows": x, "columns": x.t().contiguous().t(), "cut": wide[:, 2:-3], "cut columns": tall[1:].t()} | {
        "no neighbours": loose[::2, ::2]
    }


SIZES = [(1, 1, 1), (3, 5, 2), (16, 32, 16), (33, 31, 65), (64, 33, 40), (70, 129, 31), (5, 800, 7), (257, 70, 290)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_error_is_at_most_twice_that_of_eager(size: tuple[int, int, int], level: str) -> None:
    left, right = factors(*size)
    rng = torch.Generator().manual_seed(1)
    bias, residual = torch.randn(size[2], generator=rng), torch.randn(size[0], size[2], generator=rng)
    for given in itertools.product((None, bias), (None, residual)):
        added = sum(each for each in given if each is not None)
        truth, eager = left.double() @ right.double() + added, left @ right + added
        ours = fp32_matmul.bf16x6(left, right, *given)
        unit = torch.finfo(torch.float32).eps / 2 * truth.abs().max()
        assert (ours - truth).abs().max() <= 2 * max((eager - truth).abs().max(), unit)


def test_a_sum_of_many_is_more_exact_than_eagers(level: str) -> None:
    left, right = factors(128, 768, 96)
    truth = left.double() @ right.double()
    errors = [(each - truth).square().mean() for each in (fp32_matmul.bf16x6(left, right), left @ right)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("spread", [3.0, 8.0])
def test_numbers_of_very_different_sizes(spread: float, level: str) -> None:
    """By the size of what is summed: a product's error is measured against the sum of absolute values."""
    left, right = factors(40, 200, 40, spread)
    truth, summed = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    ours, eager = (((each - truth).abs() / summed).max() for each in (fp32_matmul.bf16x6(left, right), left @ right))
    assert ours <= 2 * max(eager, torch.tensor(torch.finfo(torch.float32).eps / 2))


def test_integers_are_exact(level: str) -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-(2**8), 2**8, shape, generator=rng).float() for shape in ((50, 200), (200, 60)))
    assert torch.equal(fp32_matmul.bf16x6(left, right), left @ right)


def test_single_numbers_keep_their_24_bits(level: str) -> None:
    x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    x = torch.cat((x, torch.tensor([[1 + 2**-23], [2 - 2**-23], [3e38], [-1e-30], [0.0], [16777215.0]])))
    assert torch.equal(fp32_matmul.bf16x6(x, torch.ones(1, 3)), x.expand(-1, 3))


def test_layouts_give_the_same_bits(level: str) -> None:
    left, right = factors(45, 70, 50)
    plain = fp32_matmul.bf16x6(left, right)
    for (one, a), (other, b) in itertools.product(layouts(left).items(), layouts(right).items()):
        assert torch.equal(fp32_matmul.bf16x6(a, b), plain), (one, other)
    expanded = left[:1].expand(45, -1)
    assert torch.equal(fp32_matmul.bf16x6(expanded, right), plain[:1].expand(45, -1))


def test_bits_depend_on_neither_threads_nor_other_rows(level: str) -> None:
    left, right = factors(300, 100, 260)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(fp32_matmul.bf16x6(left, right))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert torch.equal(fp32_matmul.bf16x6(left[17:23], right), results[0][17:23])


def test_what_is_not_finite_stays_so(level: str) -> None:
    left, right = factors(40, 40, 40)
    for bad in (float("nan"), float("inf"), -float("inf")):
        left[3, 5] = bad
        finite = fp32_matmul.bf16x6(left, right).isfinite()
        assert not finite[3].any() and finite.sum() == 39 * 40


def test_empty_and_ill_fitting_matrices(level: str) -> None:
    assert fp32_matmul.bf16x6(torch.zeros(0, 3), torch.zeros(3, 4)).shape == (0, 4)
    assert fp32_matmul.bf16x6(torch.zeros(3, 4), torch.zeros(4, 0)).shape == (3, 0)
    matrix, double = torch.zeros(3, 4), torch.zeros(4, 3, dtype=torch.float64)
    for arguments, message in [
        ((matrix, matrix), "left has 4 columns and right 3 rows"),
        ((matrix, double), "right should be float32"),
        ((matrix[0], matrix), "left should be a matrix"),
        ((matrix, matrix.t(), torch.zeros(4)), r"bias should be \[3\]"),
        ((matrix, matrix.t(), None, torch.zeros(3, 4)), r"residual should be \[3, 3\]"),
        ((torch.zeros(3, 0), torch.zeros(0, 4)), "nothing to sum over"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            fp32_matmul.bf16x6(*arguments)


@needs_core
def test_the_operator_is_a_good_one() -> None:
    left, right = factors(40, 33, 20)
    fp32_matmul.why_not_bf16x6()
    operator = torch.ops.sdfast.bf16x6_product.default
    for bias, residual in ((None, None), (torch.randn(20), torch.randn(40, 20))):
        torch.library.opcheck(operator, (left, right, bias, residual))


@needs_core
def test_auto_is_bf16x6_where_amx_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDFAST_SIMD", raising=False)
    assert fp32_matmul.bf16x6_is_on() == (torch.ops.sdfast.simd_level() == "amx")
    monkeypatch.setenv("SDFAST_SIMD", "plain")
    assert not fp32_matmul.bf16x6_is_on()
    with fp32_matmul.float32_products("bf16x6"):
        assert fp32_matmul.bf16x6_is_on()
        with fp32_matmul.float32_products("ieee"):
            assert not fp32_matmul.bf16x6_is_on()
        assert fp32_matmul.bf16x6_is_on()
    assert not fp32_matmul.bf16x6_is_on()


@needs_core
def test_the_peak_is_that_of_the_products_in_use() -> None:
    cpu = torch.device("cpu")
    with fp32_matmul.float32_products("ieee"):
        torch.mm(torch.ones(2, 2), torch.ones(2, 2))
        ieee = matmul_peak(cpu, torch.float32)
    with fp32_matmul.float32_products("bf16x6"):
        assert matmul_peak(cpu, torch.float32) != ieee


def test_of_several_processes_none_may_ask_for_bf16x6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(
            UserError, match=r"engine\.fp32_products=bf16x6 cannot be used here: several processes.*use auto"
        ),
        cpu_settings(EngineConfig(fp32_products="bf16x6"), torch.device("cpu")),
    ):
        pass


def test_without_the_compiled_core_bf16x6_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp32_matmul, "why_not_bf16x6", lambda: "it was not built")
    monkeypatch.setattr("sdfast.engine.machine.why_not_bf16x6", lambda: "it was not built")
    with (
        pytest.raises(UserError, match=r"engine\.fp32_products=bf16x6 cannot be used here: it was not built; use auto"),
        cpu_settings(EngineConfig(fp32_products="bf16x6"), torch.device("cpu")),
    ):
        pass
    with pytest.raises(RuntimeError, match="not available: it was not built"), fp32_matmul.float32_products("bf16x6"):
        pass
    with cpu_settings(EngineConfig(fp32_products="auto"), torch.device("cpu")):
        pass
