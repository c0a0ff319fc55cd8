"""Without the compiled core a layer does no more than torch's own functions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from work_counter import work_of

from sdfast.ops import native, registry
from sdfast.ops.attention import Group, Groups, attend, choose_backend
from sdfast.ops.gelu import gelu


@pytest.fixture(autouse=True)
def no_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def absent() -> None:
        raise native.NativeLibraryError("it was not built")

    monkeypatch.setattr(native, "load", absent)
    registry.forget()
    yield
    registry.forget()


@pytest.mark.parametrize("sizes", [((8, 50),), ((8, 50), (8, 13))])
def test_attention_moves_no_more_bytes_than_torchs_function_by_itself(sizes: tuple[tuple[int, int], ...]) -> None:
    qkv = torch.randn(sum(batch * count for batch, count in sizes), 3, 4, 16, requires_grad=True)
    groups = Groups(tuple(Group(batch, count, count) for batch, count in sizes))
    assert choose_backend("auto", qkv.device, qkv.dtype, 4, 16, groups.shape) == "sdpa"

    def plain() -> Tensor:
        out, first = [], 0
        for batch, count in sizes:
            rows = qkv[first : first + batch * count].view(batch, count, 3, 4, 16)
            out.append(F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in rows.unbind(2))))
            first += batch * count
        flat = [each.transpose(1, 2).reshape(-1, 64) for each in out]
        return (flat[0] if len(flat) == 1 else torch.cat(flat)).sum()

    ours, theirs = work_of(lambda: attend(qkv, groups).sum(), qkv), work_of(plain, qkv)
    assert ours.moved <= theirs.moved


def test_gelu_is_torchs() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    ours, theirs = work_of(lambda: gelu(x).sum(), x), work_of(lambda: F.gelu(x).sum(), x)
    assert (ours.moved, ours.passes) == (theirs.moved, theirs.passes)
