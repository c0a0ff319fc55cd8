"""The compiled GELU against torch's in float64, with torch's own float32 error as the measure."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sdfast.ops import gelu as module
from sdfast.ops import native
from sdfast.ops.gelu import gelu

needs_native = pytest.mark.skipif(not native.available(), reason=f"no compiled core: {native.why_not()}")


def value_and_slope(function: object, x: torch.Tensor, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)  # type: ignore[operator]
    (slope,) = torch.autograd.grad((factor * y).sum(), x)
    return y.detach(), slope


@needs_native
@pytest.mark.parametrize("simd", ["plain", "avx2", "avx512"])
def test_error_is_at_most_twice_eagers(simd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDFAST_SIMD", simd)
    try:
        torch.ops.sdfast.simd_level()
    except RuntimeError as error:
        pytest.skip(str(error))
    for reach in (0.1, 1.0, 3.0, 20.0):
        x = torch.linspace(-reach, reach, 100_003)
        truth, eager = value_and_slope(F.gelu, x.double(), 3.0), value_and_slope(F.gelu, x, 3.0)
        for ours, theirs, right in zip(value_and_slope(gelu, x, 3.0), eager, truth, strict=True):
            assert (ours - right).abs().max() <= 2 * (theirs - right).abs().max() + 1e-8


@needs_native
def test_strides_empty_and_not_a_number() -> None:
    x = torch.randn(6, 10).t()[::2]
    torch.testing.assert_close(value_and_slope(gelu, x), value_and_slope(F.gelu, x))
    assert gelu(torch.empty(0, 3, requires_grad=True)).shape == (0, 3)
    y, slope = value_and_slope(gelu, torch.tensor([1.0, float("nan"), 0.0, 200.0, -200.0]))
    assert torch.equal(y.isnan(), slope.isnan()) and y.isnan().tolist() == [False, True, False, False, False]
    assert y[2:].tolist() == [0.0, 200.0, 0.0] and slope[3:].tolist() == [1.0, 0.0]
    with pytest.raises(RuntimeError, match="float32"):
        torch.ops.sdfast.gelu(torch.zeros(2, dtype=torch.float64))


@needs_native
def test_bits_do_not_depend_on_threads() -> None:
    x, threads, results = torch.randn(100_001), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(value_and_slope(gelu, x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_elsewhere_it_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50)
    assert torch.equal(gelu(x), F.gelu(x))  # no gradient is wanted
    assert torch.equal(value_and_slope(gelu, x.double())[1], value_and_slope(F.gelu, x.double())[1])
    monkeypatch.setattr(module, "choose", lambda *_: "reference")
    assert torch.equal(value_and_slope(gelu, x)[1], value_and_slope(F.gelu, x)[1])
