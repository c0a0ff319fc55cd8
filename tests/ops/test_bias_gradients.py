"""Biases' gradients made on the way: the kernels against float64, and what a layer's gradients are with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hopper import Compiling, an_h100, resources  # noqa: F401 (a fixture)
from interpreted_triton import INTERPRETED
from torch import Tensor

from sdfast.ops.bias_gradients import functional, reference
from sdfast.ops.linear import Linear
from sdfast.ops.linear import layer as linear_module
from sdfast.ops.registry import why_not

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="run by test_these_tests_in_the_interpreter")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
SIZES = [(1, 3), (32, 128), (129, 130), (200, 257), (0, 5)]


def drawn(*size: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], eager: tuple[Tensor, ...]) -> None:
    """At most twice the error of torch's own operations, and of a rounding in float32 where those make none."""
    for ours, true, theirs in zip(found, truth, eager, strict=True):
        assert ours.shape == true.shape
        allowed = 2 * (theirs.double().cpu() - true).abs().max() if true.numel() else 0.0
        room = 1e-6 * (1 + true.abs().max()) if true.numel() else 0.0
        assert ((ours.double().cpu() - true).abs() <= allowed + room).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("device", DEVICES)
def test_gelu_backward(device: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    if device == "cpu" and dtype == torch.bfloat16:
        dtype = torch.float32  # the interpreter cuts numbers off where a GPU rounds them to bfloat16
    from sdfast.ops.bias_gradients.triton_kernels import launch_gelu_backward

    grad, x = drawn(*size, dtype=dtype), 2 * drawn(*size, seed=1, dtype=dtype)
    found = launch_gelu_backward(grad.to(device), x.to(device))
    assert found[0].dtype == dtype and found[1].dtype == torch.float32
    eager = torch.ops.aten.gelu_backward(grad, x)
    check(found, reference.gelu_backward(grad.double(), x.double()), (eager, eager.float().sum(dim=0)))


@pytest.mark.parametrize("layout", ["dense", "heads last", "every second row"])
@pytest.mark.parametrize("size", [(1, 1, 3), (40, 3, 64), (130, 2, 65), (0, 1, 4)])
@pytest.mark.parametrize("device", DEVICES)
def test_join(device: str, size: tuple[int, int, int], layout: str) -> None:
    from sdfast.ops.bias_gradients.triton_kernels import launch_join

    rows, heads, dim = size
    shape = {"dense": size, "heads last": (rows, dim, heads), "every second row": (2 * rows, heads, dim)}[layout]
    parts = [drawn(*shape, seed=seed).to(device) for seed in range(3)]
    if layout == "heads last":
        parts = [part.transpose(1, 2) for part in parts]
    elif layout == "every second row":
        parts = [part[::2] for part in parts]
    joined, sums = launch_join(*parts)
    true, true_sums = reference.join(*(part.double().cpu() for part in parts))
    assert joined.is_contiguous() and torch.equal(joined.double().cpu(), true)
    check((sums,), (true_sums,), (true_sums.float(),))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces Triton's compiler")
def test_these_tests_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    here = Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not cuda", str(here)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=here.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 2 * len(SIZES) + 12, done.stdout


@pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces Triton's compiler")
@pytest.mark.usefixtures("an_h100")
@pytest.mark.parametrize("what", ["gelu", "join"])
def test_hopper_code_has_wide_accesses_and_no_spills(what: str, tmp_path: Path) -> None:
    """At the sizes of a step of ViT-B at batch 64."""
    pytest.importorskip("triton")
    from sdfast.ops.bias_gradients import triton_kernels

    def tensor(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device="meta")

    if what == "gelu":
        kernel = Compiling(triton_kernels.gelu_backward_kernel)
        triton_kernels.launch_gelu_backward(tensor(15808, 3072), tensor(15808, 3072), kernel)
    else:
        kernel = Compiling(triton_kernels.join_kernel)
        triton_kernels.launch_join(*(tensor(15808, 12, 64) for _ in range(3)), kernel)
    registers, local = resources(kernel.compiled, tmp_path / "kernel.cubin")
    assert local == 0
    assert registers <= 128  # four programs of 128 threads on a multiprocessor, which keeps its memory busy
    accesses = {way: len(re.findall(rf"{way}\.global\S*\.v4\.", kernel.compiled.asm["ptx"])) for way in ("ld", "st")}
    assert accesses["ld"] >= 4 and accesses["st"] >= 4


def mixed_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, layers take the way of a GPU, with the operators' references."""

    def product(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return torch.matmul(a, b) if out_dtype is None else torch.matmul(a.to(out_dtype), b.to(out_dtype))

    def namespace() -> Any:
        class Operators:
            gelu_backward_with_bias = staticmethod(reference.gelu_backward)
            join_with_bias = staticmethod(reference.join)

        return Operators

    monkeypatch.setattr(linear_module, "_is_mixed", lambda x, weight: weight.requires_grad)
    monkeypatch.setattr(linear_module, "why_not", lambda *_: None)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(torch.ops, "sdfast", namespace())


@pytest.mark.parametrize("what", ["gelu", "heads"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_layers_gradients(what: str, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(12, 24)
    with torch.no_grad():
        layer.bias.copy_(drawn(24, seed=5))
    x, grad = drawn(50, 12, dtype=torch.float32), drawn(50, 24, seed=3, dtype=torch.float32)

    def results(dtype: torch.dtype) -> list[Tensor]:
        own = Linear(12, 24).to(dtype)
        own.load_state_dict(layer.state_dict())
        given = x.to(dtype).requires_grad_()
        if frozen:
            own.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            out = own.gelu(given) if what == "gelu" else own.heads(given, 2)
        out = torch.stack(out, dim=1) if isinstance(out, tuple) else out
        wanted = [given] if frozen else [given, own.weight, own.bias]
        gradients = torch.autograd.grad(out, wanted, grad.view(out.shape).to(out.dtype))
        return [each.detach() for each in (out, *gradients)]

    truth, eager = results(torch.float64), results(torch.float32)
    with monkeypatch.context() as patch:
        mixed_layer(patch)
        found = results(torch.float32)
    assert [each.dtype for each in found[1:]] == [torch.float32] * (len(found) - 1)
    check(tuple(found), tuple(truth), tuple(eager))


def test_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(8, 24), torch.zeros(5, 8)
    assert why_not("join_with_bias", "triton", "cpu") is not None and not layer._bias_waits(x)
    assert isinstance(layer.heads(x, 2), Tensor)
    monkeypatch.setattr(linear_module, "_is_mixed", lambda x, weight: weight.requires_grad)
    monkeypatch.setattr(linear_module, "why_not", lambda *_: None)
    assert layer._bias_waits(x)
    assert not Linear(8, 24, bias=False)._bias_waits(x)
    layer.weight.ds_id = 3  # as ZeRO-3 marks it
    assert not layer._bias_waits(x)
    torch.testing.assert_close(layer.gelu(x), F.gelu(layer(x)))


def test_without_triton_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sdfast.ops.bias_gradients.triton_kernels", None)
    assert "triton cannot be imported" in (functional._why_not_registered.__wrapped__() or "")


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["gelu", "heads"])
def test_operators_on_a_gpu(what: str) -> None:
    assert why_not("join_with_bias", "triton", "cuda") is None
    x = drawn(100, 30, seed=2).cuda()
    if what == "gelu":
        torch.library.opcheck(torch.ops.sdfast.gelu_backward_with_bias.default, (drawn(100, 30).cuda(), x))
    else:
        parts = tuple(part.contiguous() for part in x.view(100, 3, 2, 5).unbind(1))
        torch.library.opcheck(torch.ops.sdfast.join_with_bias.default, parts)
