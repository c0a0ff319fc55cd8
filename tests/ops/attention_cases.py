"""The shared case table of the attention backends, and the rule for their errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdfast.ops.attention import Group, Groups, Ragged, attend, attend_across

Lengths = tuple[int, ...] | None  # valid tokens of each sequence of a group; None when none is padded


@dataclass(frozen=True)
class Case:
    """One row of the table: how to build the inputs of one call."""

    name: str
    groups: tuple[tuple[int, int, int, Lengths], ...] = ((3, 10, 10, None),)  # batch, queries, keys, lengths
    ragged: tuple[tuple[tuple[int, ...], tuple[int, ...] | None], ...] = ()  # keys and, where others, queries
    heads: int = 2
    dim: int = 8
    dtype: torch.dtype = torch.float32
    across: bool = False  # queries apart from keys and values (`attend_across`)
    layout: str = "packed"  # packed | sliced (rows with gaps) | strided (the values of a head apart)
    largest: float = 0.0  # when above 0: the largest |score|
    grad_output: float = 1.0
    window: int | None = None  # queries apart from keys stand at places that are drawn

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("one group"),
    Case("two groups of different length", ((2, 13, 13, None), (2, 50, 50, None)), heads=3, dim=64),
    Case("three groups", ((1, 5, 5, None), (4, 3, 3, None), (2, 8, 8, None)), dim=16),
    Case("ViT's lengths", ((1, 50, 50, None), (1, 197, 197, None)), heads=1, dim=64),
    Case("padded", ((3, 10, 10, (10, 4, 7)),)),
    Case("padded beside whole", ((3, 12, 12, (5, 12, 1)), (2, 20, 20, None)), dim=24),
    Case("some queries", ((3, 4, 10, None),), across=True),
    Case("one query", ((3, 1, 37, None),), across=True, dim=32),
    Case("more queries than keys", ((2, 21, 6, None), (1, 3, 9, None)), across=True),
    Case("some queries, padded keys", ((3, 4, 10, (10, 3, 8)),), across=True),
    Case("all queries across", ((2, 11, 11, None),), across=True, dim=16),
    Case("single tokens", ((5, 1, 1, None),)),
    Case("a single key", ((2, 6, 1, None),), across=True),
    Case("one sequence", ((1, 33, 33, None),), heads=1),
    Case("no sequence", ((0, 7, 7, None),)),
    Case("no sequence in one group", ((0, 7, 7, None), (2, 5, 5, None))),
    Case("values not a multiple of 8", ((2, 19, 19, None),), heads=3, dim=20),
    Case("an odd number of values", ((2, 17, 17, None),), dim=13),
    Case("one value", ((2, 9, 9, None),), dim=1),
    Case("rows with gaps", ((2, 12, 12, None), (1, 7, 7, None)), layout="sliced"),
    Case("rows with gaps, some queries", ((2, 3, 12, None),), across=True, layout="sliced"),
    Case("values apart", ((2, 12, 12, None),), layout="strided", dim=16),
    Case("values apart, some queries", ((2, 5, 12, None),), across=True, layout="strided"),
    Case("scores up to 80", ((2, 23, 23, None),), largest=80.0),
    Case("grad_output 2.5", grad_output=2.5),
    Case("grad_output -0.125, some queries", ((2, 3, 12, None),), across=True, grad_output=-0.125),
    Case("float64", ((2, 11, 11, None), (2, 6, 6, (6, 2))), dtype=torch.float64),
    Case("float64, some queries", ((2, 4, 11, None),), across=True, dtype=torch.float64),
    Case("ragged", (), ragged=(((5, 1, 9, 9, 17), None),), heads=3, dim=16),
    Case("ragged, beside a group", ((2, 7, 7, None),), ragged=(((5, 30, 3), None), ((2, 2), None)), dim=64),
    Case("ragged, some queries", (), ragged=(((5, 12, 9, 1), (2, 0, 9, 1)), ((3, 3), (1, 1))), across=True),
    Case("ragged, no query at all", (), ragged=(((5, 12), (0, 0)),), across=True),
    Case("ragged, float64", (), ragged=(((5, 12, 4), None),), dtype=torch.float64),
    Case("ragged, bfloat16", (), ragged=(((5, 40, 12), None),), dtype=torch.bfloat16, dim=32),
    Case("bfloat16", ((2, 11, 11, None), (2, 30, 30, None)), dtype=torch.bfloat16, dim=32),
    Case("bfloat16, padded", ((3, 12, 12, (5, 12, 1)),), dtype=torch.bfloat16, dim=32),
    Case("bfloat16, ViT's lengths", ((1, 50, 50, None), (1, 197, 197, None)), dtype=torch.bfloat16, heads=1, dim=64),
    Case("bfloat16, wide heads", ((2, 53, 53, (53, 18)),), dtype=torch.bfloat16, dim=80),
    Case("bfloat16, an odd number of values", ((2, 17, 17, None),), dtype=torch.bfloat16, dim=13),
    Case("bfloat16, one query", ((3, 1, 37, None),), dtype=torch.bfloat16, across=True, dim=64),
    Case("bfloat16, some queries", ((2, 21, 36, (36, 4)),), dtype=torch.bfloat16, across=True, dim=32, layout="sliced"),
    Case("bfloat16, values apart", ((2, 12, 12, None),), dtype=torch.bfloat16, layout="strided", dim=16),
    Case("bfloat16, scores up to 80", ((2, 23, 23, None),), dtype=torch.bfloat16, largest=80.0),
    Case("float16", ((2, 11, 11, None), (2, 30, 30, None)), dtype=torch.float16, dim=32),
]
WINDOWED = [
    Case("a window", ((2, 23, 23, None),), window=4),
    Case("a window of none but itself", ((2, 9, 9, None),), window=0),
    Case("a window as wide as the sequences", ((2, 9, 9, None),), window=8),
    Case("a window and padding", ((3, 20, 20, (20, 4, 13)), (1, 7, 7, None)), window=5),
    Case("a window, some queries", ((3, 4, 19, None),), across=True, window=3, dim=16),
    Case("a window, some queries, padded keys", ((3, 4, 10, (10, 4, 8)),), across=True, window=2),
    Case("a window, ragged", (), ragged=(((5, 1, 19, 19, 27), None), ((2, 30), None)), window=6, heads=3, dim=16),
    Case("a window, ragged, some queries", (), ragged=(((5, 12, 9, 1), (2, 0, 9, 1)),), across=True, window=2),
    Case("a window in blocks", ((2, 300, 300, None),), window=40, dim=16),
    Case("a window in blocks that are full", ((1, 320, 320, None), (2, 3, 3, None)), window=20),
    Case("a window in blocks, ragged", (), ragged=(((301, 5, 217, 217), None),), window=3, layout="sliced"),
    Case("a window in blocks, float64", ((1, 261, 261, None),), window=24, dtype=torch.float64),
    Case("a window in blocks, bfloat16", (), ragged=(((400, 30), None),), window=40, dtype=torch.bfloat16, dim=32),
]


@dataclass(frozen=True)
class Inputs:
    """The tensors of one call ([T, 3, H, d], or [Tq, H, d] and [Tk, 2, H, d]), its sequences, and grad_output."""

    tensors: tuple[Tensor, ...]
    groups: Groups
    grad_output: Tensor

    def in_float64(self) -> Inputs:
        wide = tuple(tensor.detach().double().requires_grad_() for tensor in self.tensors)
        return Inputs(wide, self.groups, self.grad_output.double())


def build(case: Case, device: str = "cpu", seed: int = 0) -> Inputs:
    """The same for every backend; grad_output is zero at padded queries, as nothing is read of them."""
    rng = torch.Generator().manual_seed(seed)
    groups = groups_of(case, device)
    queries, keys = sum(groups.query_sizes), sum(groups.key_sizes)
    shapes = (
        [(queries, case.heads, case.dim), (keys, 2, case.heads, case.dim)]
        if case.across
        else [(queries, 3, case.heads, case.dim)]
    )
    tensors = [torch.randn(shape, generator=rng) for shape in shapes]
    if case.largest:
        stretch = (case.largest / _largest_score(tensors, groups, case)) ** 0.5
        for tensor, parts in zip(tensors, ((1, 1) if case.across else (2,)), strict=True):
            (tensor if tensor.dim() == 3 else tensor[:, :parts]).mul_(stretch)
    grad_output = torch.randn((queries, case.heads * case.dim), generator=rng) * case.grad_output
    grad_output = grad_output.to(device).masked_fill(~asked(groups, device)[:, None], 0.0)
    laid_out = tuple(lay_out(t.to(device, case.dtype), case.layout).requires_grad_() for t in tensors)
    return Inputs(laid_out, groups, grad_output.to(case.dtype))


def groups_of(case: Case, device: str = "cpu") -> Groups:
    made: list[Group | Ragged] = []
    rng = torch.Generator().manual_seed(1)

    def places(queries: int, keys: int) -> Tensor | None:
        apart = case.across and case.window is not None
        return torch.randperm(keys, generator=rng)[:queries].sort().values if apart else None

    for batch, queries, keys, lengths in case.groups:
        valid = None
        if lengths is not None:
            valid = (torch.arange(keys) < torch.tensor(lengths)[:, None]).to(device)
        stand = [places(queries, keys) for keys in lengths or [keys] * batch]
        made.append(Group(batch, queries, keys, valid, _joined(stand, torch.stack)))
    for lengths, asking in case.ragged:
        stand = [places(some, keys) for some, keys in zip(asking or lengths, lengths, strict=True)]
        asked_for = None if asking is None else torch.tensor(asking)
        made.append(Ragged(torch.tensor(lengths), asked_for, _joined(stand, torch.cat)))
    return Groups(tuple(made), case.window)


def _joined(stand: list[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    there = [each for each in stand if each is not None]
    return join(there) if there else None


def asked(groups: Groups, device: str = "cpu") -> Tensor:
    """[Tq] bool, False at queries that are padding."""
    parts = [
        torch.ones(group.rows[0], dtype=torch.bool, device=device)
        if group.valid is None or group.rows[0] != group.rows[1]
        else group.valid.flatten()
        for group in groups.groups
    ]
    return torch.cat(parts)


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "packed":
        return tensor.contiguous()
    if layout == "strided":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 5), 77.0, dtype=tensor.dtype, device=tensor.device)
    wide[..., 2:-3] = tensor
    return wide[..., 2:-3]


@dataclass(frozen=True)
class Result:
    """What comes out, [Tq, H * d], and the gradients of the inputs."""

    out: Tensor
    grads: tuple[Tensor, ...]


def call(inputs: Inputs, backend: str, dropout: float = 0.0) -> Tensor:
    function = attend if len(inputs.tensors) == 1 else attend_across
    return function(*inputs.tensors, inputs.groups, backend, dropout)


def evaluate(inputs: Inputs, backend: str, dropout: float = 0.0) -> Result:
    out = call(inputs, backend, dropout)
    return Result(out, torch.autograd.grad(out, inputs.tensors, inputs.grad_output))


def assert_within_twice_eager(case: Case, inputs: Inputs, fast: Result, eager: Result, truth: Result) -> None:
    """Largest error of every output at most twice eager's own, or a few rounding units of the largest exact value (of
    1 where that is smaller): in so few numbers eager's error is a matter of luck. What comes out at padded queries is
    only asked to be finite.
    """
    rows = asked(inputs.groups, str(fast.out.device))[:, None]
    triples = [("out", *(torch.where(rows, result.out, 0.0) for result in (fast, eager, truth)))]
    triples += [(f"grad {i}", *each) for i, each in enumerate(zip(fast.grads, eager.grads, truth.grads, strict=True))]
    assert torch.isfinite(fast.out).all(), f"{case}: out is not finite"
    for name, ours, plain, exact in triples:
        assert ours.dtype == plain.dtype and ours.shape == plain.shape, f"{case}: {name} has another kind"
        assert torch.isfinite(ours).all(), f"{case}: {name} is not finite"
        if exact.numel() == 0:
            continue
        error = (ours.double() - exact.double()).abs().max().item()
        eagers = (plain.double() - exact.double()).abs().max().item()
        unit = torch.finfo(ours.dtype).eps / 2 * max(1.0, exact.double().abs().max().item())
        # In float64 the truth is itself eager's, so eager's own error is unknown. Fast backward passes make the weights
        # again from the logarithm of their sum: a score's rounding unit is their relative error.
        units = (2 if ours.dtype in (torch.bfloat16, torch.float16) else 16) * max(1.0, case.largest / 16)
        allowed = units * unit if ours.dtype == torch.float64 else max(2 * eagers, units * unit)
        assert error <= allowed, f"{case}: {name} is off by {error:.3g}, eager by {eagers:.3g}"


def _largest_score(tensors: list[Tensor], groups: Groups, case: Case) -> float:
    q, k = (tensors[0], tensors[1][:, 0]) if case.across else (tensors[0][:, 0], tensors[0][:, 1])
    largest = 0.0
    for asking, seen in zip(q.split(groups.query_sizes), k.split(groups.key_sizes), strict=True):
        largest = max(largest, torch.einsum("qhd,khd->hqk", asking, seen).abs().max().item())
    return largest * case.dim**-0.5
