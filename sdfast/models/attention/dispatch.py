"""Which backend computes an attention: a named one, or the best that is there.

On the CPU `auto` is the compiled kernel where it can be had, else `sdpa`: a fixed rule, so that a resumed run gives the
same bits. On CUDA the candidates are timed once for each shape, as `calibration` says, and the fastest is kept; ragged
sequences, whose shape is new in every batch, go to the first that can take them without padding.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sdfast.losses.mae_distill.dispatch import constant_to_the_compiler
from sdfast.models.attention.calibration import Function, Shape, fastest
from sdfast.models.attention.groups import Groups
from sdfast.models.attention.native import native_attention_across, native_self_attention, why_not_native
from sdfast.models.attention.reference import reference_attention
from sdfast.models.attention.sdpa import sdpa_attention
from sdfast.models.attention.varlen import varlen_attention, why_not_varlen
from sdfast.models.attention.xformers_backend import why_not_xformers, xformers_attention

BACKENDS = ("reference", "sdpa", "native", "varlen", "xformers")
_FUNCTIONS: dict[str, Function] = {
    "reference": reference_attention,
    "sdpa": sdpa_attention,
    "varlen": varlen_attention,
    "xformers": xformers_attention,
}
_CANDIDATES = {"cpu": ("native", "sdpa"), "cuda": ("varlen", "xformers", "sdpa")}
_WITHOUT_DROPOUT = ("native", "varlen")
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
    heads, dim = some.shape[-2:]
    chosen = choose_backend(backend, some.device, some.dtype, heads, dim, _shape_of(groups), dropout > 0)
    if chosen == "native":
        return native_self_attention(qkv if isinstance(qkv, Tensor) else torch.stack(qkv, dim=1), groups).flatten(1)
    q, k, v = qkv.unbind(1) if isinstance(qkv, Tensor) else qkv
    return _FUNCTIONS[chosen](q, k, v, groups, dropout).flatten(1)


def attend_across(q: Tensor, kv: Tensor, groups: Groups, backend: str = "auto", dropout: float = 0.0) -> Tensor:
    """Softmax attention of some queries to the keys of their sequences.

    Args:
        q: [Tq, H, d] queries, group after group.
        kv: [Tk, 2, H, d] keys and values.
        groups: the sequences.
        backend, dropout: see `attend`.

    Returns:
        [Tq, H * d].

    Raises:
        ValueError, RuntimeError: see `attend`.
    """
    chosen = choose_backend(backend, q.device, q.dtype, q.shape[1], q.shape[2], _shape_of(groups), dropout > 0)
    if chosen == "native":
        return native_attention_across(q, kv, groups).flatten(1)
    k, v = kv.unbind(1)
    return _FUNCTIONS[chosen](q, k, v, groups, dropout).flatten(1)


def _shape_of(groups: Groups) -> Shape | None:
    """By which a calibration is remembered; where sizes are symbols to the compiler a typical shape stands for all."""
    shape = groups.shape
    if shape is None or not torch.compiler.is_compiling():
        return shape
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return shape if all(has_static_value(size) for each in shape for size in each) else _TYPICAL


def why_not(backend: str, device: torch.device, dtype: torch.dtype, dim: int, dropout: bool = False) -> str | None:
    """None when a backend can be used for heads of `dim` values, and with dropout where that is asked, else why not."""
    if dropout and backend in _WITHOUT_DROPOUT:
        return "it has no dropout of attention weights"
    if backend == "native":
        return why_not_native(device, dtype)
    if backend == "varlen":
        return why_not_varlen(device, dtype, dim)
    return why_not_xformers(device, dtype, dim) if backend == "xformers" else None


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
    if name != "auto":
        _check_named(name, device, dtype, dim, dropout)
        return name
    candidates = _ready(device, dtype, dim, dropout)
    if device.type == "cpu" or len(candidates) == 1 or shape is None or dropout:
        return candidates[0]
    return _calibrated(candidates, device, dtype, heads, dim, shape)


@functools.cache
def _check_named(name: str, device: torch.device, dtype: torch.dtype, dim: int, dropout: bool) -> None:
    if name not in BACKENDS:
        raise ValueError(f"attention backend should be one of auto, {', '.join(BACKENDS)}, not {name!r}")
    reason = why_not(name, device, dtype, dim, dropout)
    if reason is not None:
        raise RuntimeError(f"attention backend {name!r} is not available: {reason}")


@functools.cache
def _ready(device: torch.device, dtype: torch.dtype, dim: int, dropout: bool) -> tuple[str, ...]:
    known = _CANDIDATES.get(device.type, ("sdpa",))
    return tuple(name for name in known if why_not(name, device, dtype, dim, dropout) is None)


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
