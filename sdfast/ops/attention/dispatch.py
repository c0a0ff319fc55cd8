"""Which backend computes an attention: a named one, or the best that is there.

On the CPU `auto` is the compiled kernel where it can be had, else `sdpa`: a fixed rule, so that a resumed run gives the
same bits. On CUDA the candidates are timed once for each shape, as `calibration` says, and the fastest is kept; ragged
sequences, whose shape is new in every batch, go to the first that can take them without padding. The compiled kernel
has no window: `sdpa` takes its place where one keeps a token from another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.ops.attention import native, sdpa
from sdfast.ops.attention.calibration import Function, Shape, fastest
from sdfast.ops.attention.flash import varlen_attention, why_not_varlen, why_not_xformers, xformers_attention
from sdfast.ops.attention.groups import Groups
from sdfast.ops.attention.reference import reference_attention
from sdfast.ops.registry import Backend, Op, Use, add, choose, constant_to_the_compiler, ready

# All take queries, keys and values by themselves but `native`, which takes them as they were projected.
_ROW = add(
    Op(
        "attention",
        {
            "reference": Backend(reference_attention),
            "sdpa": Backend(sdpa.sdpa_attention),
            "native": Backend(native.native_attention, native.why_not_native),
            "varlen": Backend(varlen_attention, why_not_varlen),
            "xformers": Backend(xformers_attention, why_not_xformers),
        },
        preferences={"cpu": ("native",), "cuda": ("varlen", "xformers")},
        otherwise="sdpa",
        noun="attention backend",
        flops={
            "sdfast::attention_forward": native.forward_flops,
            "sdfast::attention_backward": native.backward_flops,
            **{f"aten::_scaled_dot_product_{name}": sdpa.forward_flops for name in sdpa.KERNELS},
            **{f"aten::_scaled_dot_product_{name}_backward": sdpa.backward_flops for name in sdpa.KERNELS},
        },
    )
)
BACKENDS = tuple(_ROW.backends)
_FUNCTIONS: dict[str, Function] = {name: each.function for name, each in _ROW.backends.items() if name != "native"}
_TYPICAL: Shape = ((16, 197, 197),)
_known: dict[tuple[object, ...], str] = {}  # what was fastest


def attend(
    qkv: Tensor | tuple[Tensor, Tensor, Tensor], groups: Groups, backend: str = "auto", dropout: float = 0.0
) -> Tensor:
    """Softmax attention of every sequence to itself.

    Args:
        qkv: [T, 3, H, d], the queries, keys and values of T tokens, group after group; or each by itself, [T, H, d].
        groups: the sequences; queries and keys are the same tokens.
        backend: one of `BACKENDS`, or `auto`.
        dropout: probability of a weight to be dropped.

    Returns:
        [T, H * d].

    Raises:
        ValueError: an unknown backend.
        RuntimeError: a named backend that is not available, with the reason.
    """
    some = qkv if isinstance(qkv, Tensor) else qkv[0]
    chosen = _chosen(backend, some, groups, dropout)
    if chosen == "native":
        packed = qkv if isinstance(qkv, Tensor) else torch.stack(qkv, dim=1)
        return native.native_attention(packed, None, groups, dropout).flatten(1)
    q, k, v = qkv.unbind(1) if isinstance(qkv, Tensor) else qkv
    return _FUNCTIONS[chosen](q, k, v, groups, dropout).flatten(1)


def attend_across(q: Tensor, kv: Tensor, groups: Groups, backend: str = "auto", dropout: float = 0.0) -> Tensor:
    """Softmax attention of some queries to the keys of their sequences.

    Args:
        q: [Tq, H, d] queries, group after group.
        kv: [Tk, 2, H, d] keys and values.
        groups: the sequences.
        backend, dropout: as `attend` has them.

    Returns:
        [Tq, H * d].

    Raises:
        ValueError: an unknown backend.
        RuntimeError: a named backend that is not available, with the reason.
    """
    chosen = _chosen(backend, q, groups, dropout)
    if chosen == "native":
        return native.native_attention(q, kv, groups, dropout).flatten(1)
    k, v = kv.unbind(1)
    return _FUNCTIONS[chosen](q, k, v, groups, dropout).flatten(1)


def _chosen(name: str, some: Tensor, groups: Groups, dropout: float) -> str:
    heads, dim = some.shape[-2:]
    shape = None if groups.windowed else _shape_of(groups)
    chosen = choose_backend(name, some.device, some.dtype, heads, dim, shape, dropout > 0)
    if chosen == "native" and groups.windowed:
        return "sdpa"
    if chosen == "native" and name == "auto" and dropout and torch.compiler.is_compiling():
        return "sdpa"  # the kernel's seed is a number, which a graph does not draw
    return chosen


def _shape_of(groups: Groups) -> Shape | None:
    """What a calibration is remembered by; where sizes are symbols to the compiler a typical shape stands for all."""
    shape = groups.shape
    if shape is None or not torch.compiler.is_compiling():
        return shape
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return shape if all(has_static_value(size) for each in shape for size in each) else _TYPICAL


@constant_to_the_compiler
def choose_backend(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    dim: int,
    shape: Shape | None,
    dropout: bool = False,
) -> str:
    """The backend to use: `name` itself, or for `auto` the best for this device and shape (None for ragged ones).

    Raises:
        ValueError: an unknown name.
        RuntimeError: a named one that is not available.
    """
    use = Use(device.type, dtype, dim, dropout)
    if name != "auto":
        return choose("attention", name, *use)
    candidates = ready("attention", use)
    if device.type == "cpu" or len(candidates) == 1 or shape is None or dropout:
        return candidates[0]
    return _calibrated(candidates, device, dtype, heads, dim, shape)


def _calibrated(
    candidates: tuple[str, ...], device: torch.device, dtype: torch.dtype, heads: int, dim: int, shape: Shape
) -> str:
    """The fastest candidate, measured once; the first one where a step that is captured meets a shape as the first."""
    key = (candidates, device, dtype, heads, dim, shape)
    if key not in _known:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return candidates[0]
        _known[key] = fastest({name: _FUNCTIONS[name] for name in candidates}, device, dtype, heads, dim, shape)
    return _known[key]
