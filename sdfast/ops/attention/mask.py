"""Which weights of an attention the compiled kernel drops (csrc/cpu/attention_mask.inl.h): the specification.

A weight has 32 random bits that depend on a seed, its head, its query and its key alone, and is dropped where they are
below a threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ALL, _BITS = 1 << 32, (1 << 32) - 1


def threshold_of(rate: float) -> int:
    """The rate in units of 2^-32, rounded to the nearest; a rate of 1 drops all but one in 2^32."""
    return min(_ALL - 1, round(rate * _ALL))


def mask(seed: int, heads: int, queries: Tensor, keys: int, rate: float) -> Tensor:
    """What the weights are multiplied by.

    Args:
        seed: of 64 bits.
        heads: H.
        queries: [Nq] int64, rows of the queries among all.
        keys: of their sequence.
        rate: probability of a weight to be dropped.

    Returns:
        [H, Nq, keys] float64: 0, or what `threshold_of(rate)` leaves, so that the mean is 1.
    """
    low, high, head = seed & _BITS, seed >> 32 & _BITS, torch.arange(heads)[:, None, None]
    first, second = (
        _mixed(queries[:, None] + _mixed(head + _mixed(b + _mixed(torch.tensor(a)))))
        for a, b in ((low, high), (high ^ _BITS, low))
    )
    x = first + torch.arange(keys) * 0x9E3779B9 & _BITS
    x = (x ^ x >> 16) * 0x7FEB352D & _BITS ^ second
    x = (x ^ x >> 15) * 0x846CA68B & _BITS
    threshold = threshold_of(rate)
    return (x ^ x >> 16).ge(threshold).double() * (_ALL / (_ALL - threshold))


def _mixed(x: Tensor) -> Tensor:
    """A permutation of the 32-bit numbers ("lowbias32", Wellons, 2018), of what `x` is modulo 2^32."""
    x = x & _BITS
    x = (x ^ x >> 16) * 0x7FEB352D & _BITS
    x = (x ^ x >> 15) * 0x846CA68B & _BITS
    return x ^ x >> 16
