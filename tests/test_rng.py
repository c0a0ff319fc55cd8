"""The counter-based generator: published vectors, and addresses that do not depend on the batch."""

from __future__ import annotations

import torch

from sdfast.rng import derive_seed, philox_bits, philox_words, random_permutation


def philox_scalar(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 in plain Python integers."""
    for _ in range(10):
        p0, p1 = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (p1 >> 32) ^ counter[1] ^ key[0],
            p1 & 0xFFFFFFFF,
            (p0 >> 32) ^ counter[3] ^ key[1],
            p0 & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def test_plain_python_agrees_with_the_published_vector() -> None:
    # Random123's known-answer test for philox4x32-10 with counter and key zero.
    assert philox_scalar([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_tensor_version_agrees_with_plain_python() -> None:
    seed, epoch, stream = 0x123456789ABCDEF, 7, 3
    rows = torch.tensor([0, 5, 2**31 + 1])
    bits = philox_bits(seed, epoch, rows, 10, stream)
    for index, row in enumerate(rows.tolist()):
        expected: list[int] = []
        for block in range(3):
            expected += philox_scalar([block | stream << 16, row, epoch, 0], [seed & 0xFFFFFFFF, seed >> 32])
        assert bits[index].tolist() == expected[:10]


def test_bits_depend_on_the_address_alone() -> None:
    rows = torch.arange(50)
    together = philox_bits(1, 2, rows, 49, 0)
    alone = torch.cat([philox_bits(1, 2, rows[i : i + 1], 49, 0) for i in reversed(range(50))]).flip(0)
    assert torch.equal(together, alone)
    for other in (philox_bits(2, 2, rows, 49, 0), philox_bits(1, 3, rows, 49, 0), philox_bits(1, 2, rows, 49, 1)):
        assert (together == other).float().mean() < 0.01


def test_bits_are_uniform() -> None:
    bits = philox_bits(11, 0, torch.arange(2000), 64, 0).double() / 2**32
    assert abs(bits.mean() - 0.5) < 0.003
    assert abs(bits.var() - 1 / 12) < 0.002


def test_permutations_are_permutations_and_differ_by_epoch() -> None:
    first, second = random_permutation(3, 0, 1000), random_permutation(3, 1, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert (first == second).float().mean() < 0.02
    assert torch.equal(first, random_permutation(3, 0, 1000))


def test_derived_seeds_differ_by_name() -> None:
    seeds = {derive_seed(0, "pretrain"), derive_seed(0, "distill"), derive_seed(1, "pretrain")}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_words_at_a_position_are_a_block_of_the_bits() -> None:
    rows = torch.tensor([3, 900, 7])
    bits = philox_bits(5, 2, rows, 40, 4).view(3, 10, 4)
    which, positions = torch.tensor([2, 0, 1, 0]), torch.tensor([9, 0, 4, 3])
    assert torch.equal(philox_words(5, 2, rows[which], positions, 4), bits[which, positions])
