"""A counter-based generator (Philox-4x32-10; Salmon et al., SC 2011): random bits as a pure function of their address.

Masks, flips and the order of the rows are drawn from it, keyed by (seed, epoch, row), so that they depend on neither
the batch size, nor the worker, nor the rank, nor the device, and a resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_U32 = 0xFFFFFFFF

# What a stream is for: one constant per use, so that no two uses share random bits.
STREAM_MASK, STREAM_ORDER, STREAM_FLIP, STREAM_AUGMENT, STREAM_TOKEN, STREAM_BALANCE = 0, 1, 2, 3, 4, 5


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for one use (a stage, a round, a part), a pure function of the run's seed and the names."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _mulhilo(multiplier: int, value: Tensor) -> tuple[Tensor, Tensor]:
    # int64 arithmetic wraps, and the wrapped product still has the right 64 bits.
    product = value * multiplier
    return (product >> 32) & _U32, product & _U32


def philox_bits(seed: int, epoch: int | Tensor, rows: Tensor, count: int, stream: int) -> Tensor:
    """Random 32-bit words addressed by (seed, stream, epoch, row, position).

    Args:
        seed: 63-bit key.
        epoch: counter word, below 2**32; or one for each row, [B] int64 on the rows' device.
        rows: [B] int64 row numbers, below 2**32; the result lies on their device.
        count: words per row.
        stream: counter word that separates the uses (`STREAM_MASK`, ...), below 2**16.

    Returns:
        [B, count] int64, each in [0, 2**32).
    """
    blocks = (count + 3) // 4
    position = torch.arange(blocks, device=rows.device, dtype=torch.int64)
    shape = (rows.shape[0], blocks)
    c0 = (position | (stream << 16)).expand(shape)
    c1 = rows.to(torch.int64).unsqueeze(1).expand(shape)
    if isinstance(epoch, Tensor):
        c2 = (epoch & _U32).unsqueeze(1).expand(shape)
    else:
        c2 = torch.full(shape, epoch & _U32, dtype=torch.int64, device=rows.device)
    words = _philox(c0, c1, c2, seed)
    return torch.stack(words, dim=-1).reshape(rows.shape[0], blocks * 4)[:, :count]


def philox_words(seed: int, epoch: int, rows: Tensor, positions: Tensor, stream: int) -> Tensor:
    """Four random 32-bit words for each (row, position): block number `positions` of `philox_bits`, without the others.

    Args:
        seed, epoch, stream: see `philox_bits`.
        rows: [N] int64 row numbers, below 2**32; the result lies on their device.
        positions: [N] int64, below 2**16.

    Returns:
        [N, 4] int64, each in [0, 2**32).
    """
    epochs = torch.full_like(rows, epoch & _U32)
    return torch.stack(_philox(positions | (stream << 16), rows, epochs, seed), dim=-1)


def _philox(c0: Tensor, c1: Tensor, c2: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of the counter (c0, c1, c2, 0), all of one shape."""
    c3 = torch.zeros_like(c1)
    k0, k1 = seed & _U32, (seed >> 32) & _U32
    for _ in range(10):
        hi0, lo0 = _mulhilo(_M0, c0)
        hi1, lo1 = _mulhilo(_M1, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _U32, (k1 + _W1) & _U32
    return c0, c1, c2, c3


def random_permutation(seed: int, epoch: int, count: int) -> Tensor:
    """A permutation of range(count) for this (seed, epoch): [count] int64 on the CPU."""
    bits = philox_bits(seed, epoch, torch.arange(count), 2, STREAM_ORDER)
    return torch.argsort(bits[:, 0] << 31 | bits[:, 1] >> 1, stable=True)
