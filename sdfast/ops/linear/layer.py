"""A linear layer whose float32 products on a CPU are the fastest that are known (see `sdfast.ops.linear.fp32_matmul`).

torch multiplies float32 matrices with MKL, which adds the bias in a pass of its own. With AVX-512 oneDNN's kernels,
which take the bias and a residual along, are faster for the forward product and for the gradient of the input; MKL is
faster for the gradient of the weights, so that one stays (benchmarks/results/step_cpu.md has the numbers). On a
processor with AMX they are bf16x6 products.

On a GPU under autocast the product that gives the weights' gradient is written in float32 at once, as the weights are,
where torch writes it in half precision and converts it.

oneDNN makes a kernel for every number of rows it meets, and keeps it. Where that number changes from step to step, as
it does for texts, making them takes longer than they save, and keeping them takes memory: MKL stays there.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sdfast.ops.bias_gradients import apart_with_bias, gelu_with_bias
from sdfast.ops.cpu_half import is_cpu_half, why_not_cpu_half
from sdfast.ops.gelu import gelu
from sdfast.ops.linear.fp32_matmul import (
    Product,
    bf16x6,
    bf16x6_is_on,
    has_bf16_products,
    mm,
    onednn,
    several_processes,
    why_not_bf16x6,
    why_not_onednn,
)
from sdfast.ops.registry import Backend, Op, Use, add, why_not

_SMALLEST_ROWS = 64  # below, the call costs more than the product
_SMALLEST_WEIGHTS = 256 * 256  # below, splitting the rows costs more than what bf16x6 saves of the weights' gradient


class Linear(nn.Linear):
    """`torch.nn.Linear`, and the same with a residual added to its output.

    Attributes:
        keyless: sizes of queries, keys and values, where these are its output and keys have no bias; see `keyless`.
    """

    keyless: tuple[int, int, int] | None = None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, rows_vary: bool = False) -> None:
        """rows_vary: the number of rows changes from step to step."""
        super().__init__(in_features, out_features, bias)
        self.rows_vary = rows_vary

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., in] -> [..., out]; `residual` has the output's shape."""
        return linear(input, self.weight, self.whole_bias(), residual, self.rows_vary)

    def whole_bias(self) -> Tensor | None:
        """What is added to the product: [out], or None."""
        if self.keyless is None or self.bias is None:
            return self.bias
        queries, keys, values = self.keyless
        of_queries, of_values = self.bias.split((queries, values))
        return torch.cat((of_queries, of_queries.new_zeros(keys), of_values))

    def gelu(self, x: Tensor) -> Tensor:
        """Exact GELU of its output, [T, in] -> [T, out]."""
        on_gpu = self._bias_waits(x)
        if on_gpu or self._bias_waits_on_cpu(x):
            return gelu_with_bias(linear(x, self.weight, self.bias.detach()), self.bias, half=not on_gpu)
        return gelu(self(x))

    def heads(self, x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        """Its output as queries, keys and values of `count` heads, x [T, in]: three [T, H, d], or one [T, 3, H, d]."""
        if self._bias_waits(x):
            bias = self.whole_bias()
            assert bias is not None
            qkv = linear(x, self.weight, bias.detach())
            return apart_with_bias(qkv.view(len(x), 3, count, -1), bias)
        return self(x).view(x.shape[0], 3, count, -1)

    def _bias_waits(self, x: Tensor) -> bool:
        """Whether the bias's gradient is made by what follows: see `sdfast.ops.bias_gradients`."""
        return (
            self._bias_is_trained()
            and _is_mixed(x, self.weight)
            and why_not("gelu_backward_with_bias", "triton", x.device.type) is None
        )

    def _bias_waits_on_cpu(self, x: Tensor) -> bool:
        """The same for GELU in the compiled core."""
        return (
            self._bias_is_trained()
            and torch.is_grad_enabled()
            and _is_half(x, self.weight)
            and is_cpu_half("gelu_backward_with_bias", x)
        )

    def _bias_is_trained(self) -> bool:
        # ds_id: of ZeRO-3, which gathers weights when a layer is called
        return self.bias is not None and self.bias.requires_grad and not hasattr(self.weight, "ds_id")


def keyless(in_features: int, sizes: tuple[int, int, int], rows_vary: bool = False) -> Linear:
    """Queries, keys and values of these sizes, of which keys have no bias: `bias` is that of queries and values.

    Under rotary positions the bias of keys is not without effect, so that it may not be trained where there is none.
    """
    layer = Linear(in_features, sum(sizes), False, rows_vary)
    layer.keyless, layer.bias = sizes, nn.Parameter(layer.weight.new_zeros(sizes[0] + sizes[2]))
    return layer


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, rows_vary: bool = False
) -> Tensor:
    """x weight^T + bias (+ residual).

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out], or None.
        residual: [..., out], or None.
        rows_vary: the number of rows changes from step to step.

    Returns:
        [..., out].
    """
    if _is_ours(x, weight):
        if bf16x6_is_on():
            return _Linear.apply(bf16x6, x, weight, bias, residual)
        if not rows_vary and why_not_onednn() is None and not several_processes():
            return _Linear.apply(onednn, x, weight, bias, residual)
    if _is_mixed(x, weight):
        return _mixed_linear(x, weight, bias, residual)
    if _is_half(x, weight):
        return _half_linear(x, weight, bias, residual)
    return reference_linear(x, weight, bias, residual)


def reference_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """The specification: torch's linear layer, and the residual added to its output; see `linear`."""
    out = F.linear(x, weight, bias)
    return out if residual is None else residual + out


def _is_ours(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: the compiler cannot look into what follows
        and x.dim() == 2
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[0] >= _SMALLEST_ROWS
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, product: Product, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.product = product
        return product(x, weight.t(), bias, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, product = grad_outputs[0], ctx.product
        _, wants_x, wants_weight, wants_bias, wants_residual = ctx.needs_input_grad
        of_weight = bf16x6 if product is bf16x6 and weight.numel() >= _SMALLEST_WEIGHTS else torch.mm
        return (
            None,
            product(grad, weight, None, None) if wants_x else None,
            of_weight(grad.t(), x) if wants_weight else None,
            grad.sum(dim=0) if wants_bias else None,
            grad if wants_residual else None,
        )


def _is_mixed(x: Tensor, weight: Tensor) -> bool:
    """Whether autocast on a GPU makes a product of half precision with weights that are trained in float32."""
    return (
        x.device.type == "cuda"
        and x.dim() > 1
        and torch.is_autocast_enabled("cuda")
        and weight.dtype == torch.float32
        and weight.requires_grad
        and torch.is_grad_enabled()
    )


def _mixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    out = _MixedLinear.apply(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))
    return out if residual is None else residual + out


class _MixedLinear(torch.autograd.Function):
    """x [T, in], weight [out, in] and bias [out] in float32 -> [T, out] in autocast's half precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        half = torch.get_autocast_dtype("cuda")
        ctx.dtype = x.dtype
        x, weight = x.to(half), weight.to(half)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, None if bias is None else bias.to(half))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad_outputs[0]
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            torch.mm(grad, weight).to(ctx.dtype) if wants_x else None,
            torch.mm(grad.t(), x, out_dtype=torch.float32) if wants_weight else None,
            grad.sum(dim=0, dtype=torch.float32) if wants_bias else None,
        )


def _is_half(x: Tensor, weight: Tensor) -> bool:
    return x.dim() == 2 and weight.dtype == torch.float32 and is_cpu_half("linear", x)


def _half_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    out: Tensor = _HalfLinear.apply(x, weight, bias)
    return out if residual is None else residual + out


class _HalfLinear(torch.autograd.Function):
    """x [T, in], weight [out, in] and bias [out] in float32 -> [T, out] in bfloat16, on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.dtype = x.dtype
        x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
        ctx.save_for_backward(x, weight)
        product = onednn if has_bf16_products() else mm
        return product(x, weight.t(), None if bias is None else bias.to(torch.bfloat16))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad_outputs[0]
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            mm(grad, weight).to(ctx.dtype) if wants_x else None,
            mm(grad.t(), x).float() if wants_weight else None,
            torch.ops.sdfast.sum_rows(grad) if wants_bias else None,
        )


def _why_not_half(use: Use) -> str | None:
    if (reason := why_not_cpu_half(use)) is not None:
        return reason
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        return "it is known to win on processors with AVX only"
    _register_half()
    return None


@functools.cache
def _register_half() -> None:
    """Once a process: torch 2.11 refuses it a second time."""
    torch.library.register_fake("sdfast::sum_rows", lambda x: x.new_empty(x.shape[1], dtype=torch.float32))


def _flops(x: Tensor, *others: Any, out_val: Tensor, **more: Any) -> int:
    """FLOPs of x [rows, in] -> [rows, out], a multiply-add being 2."""
    return 2 * x.shape[0] * x.shape[1] * out_val.shape[1]


# Which one computes is asked at every call: it depends on a setting, on the rows and on other processes.
_BACKENDS = {
    "reference": Backend(reference_linear),
    "bf16x6": Backend(functools.partial(_Linear.apply, bf16x6), lambda use: why_not_bf16x6()),
    "onednn": Backend(functools.partial(_Linear.apply, onednn), lambda use: why_not_onednn()),
    "mixed": Backend(_mixed_linear, lambda use: None if use.device == "cuda" else "it is for autocast on a GPU"),
    "half": Backend(_half_linear, _why_not_half),
}
_PREFERENCES = {"cpu": ("half", "bf16x6", "onednn"), "cuda": ("mixed",)}
add(Op("linear", _BACKENDS, _PREFERENCES, flops={"mkldnn::_linear_pointwise": _flops}))
