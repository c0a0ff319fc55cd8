"""Windows: which tokens see each other, what that costs, and that windows which keep nothing apart change no bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import WINDOWED, Case, Inputs, build, call, evaluate
from torch import Tensor

from sdfast.ops.attention import Group, Groups, Ragged, attend, attend_across, dispatch, flash, native, sdpa
from sdfast.ops.flops import flop_counter

LONG = Case("long", (), ragged=(((700,), None),), window=10)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("tokens", [11, 300])
def test_a_token_sees_those_at_most_so_far_away(tokens: int, backend: str) -> None:
    """With values that are unit vectors what comes out are the weights; queries and keys of zeros weigh all alike."""
    q, k, v = torch.zeros(2, tokens, 1, tokens), torch.zeros(tokens, 1, tokens), torch.eye(tokens)[:, None]
    weights = attend((q[0], k, v), Groups((Ragged(torch.tensor([tokens])),), 3), backend)
    away = (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs()
    wanted = (away <= 3).float()
    torch.testing.assert_close(weights, wanted / wanted.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("backend", ["reference", "sdpa", "auto"])
def test_some_queries_give_what_they_give_among_all(backend: str) -> None:
    inputs = build(replace(LONG, ragged=(((130, 4, 260), None),)))
    qkv, places = inputs.tensors[0], torch.tensor([0, 9, 129, 2, 0, 258, 259])
    rows, counts = places + torch.tensor([0, 0, 0, 130, 134, 134, 134]), torch.tensor([3, 1, 3])
    groups = Groups((Ragged(torch.tensor([130, 4, 260]), counts, places),), 10)
    found = attend_across(qkv[rows, 0], qkv[:, 1:], groups, backend)
    torch.testing.assert_close(found, call(inputs, backend)[rows], rtol=1e-5, atol=1e-6)


def test_nothing_comes_from_beyond_the_window() -> None:
    """A NaN reaches as far as the window, and no gradient comes from further away."""
    inputs = build(LONG)
    with torch.no_grad():
        inputs.tensors[0][350, 1:] = float("nan")
    out = call(inputs, "sdpa")
    near = (torch.arange(700) - 350).abs() <= 10
    assert out[near].isnan().all()
    # a block multiplies what its mask then hides: NaN times a weight of zero is NaN, as in any attention with a mask
    far = (torch.arange(700) - 350).abs() > 3 * 64
    assert out[far].isfinite().all()
    inputs = build(LONG)
    (grad,) = torch.autograd.grad(call(inputs, "sdpa")[350].sum(), inputs.tensors)
    assert grad[near].any(dim=-1).any() and not grad[~near].any()


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa"])
def test_a_window_that_keeps_nothing_apart_changes_no_bit(backend: str) -> None:
    case = Case("short", ((2, 9, 9, None),), ragged=(((17, 4), None),))
    plain, wide = evaluate(build(case), backend), evaluate(build(replace(case, window=16)), backend)
    assert torch.equal(plain.out, wide.out) and torch.equal(plain.grads[0], wide.grads[0])
    assert not build(replace(case, window=16)).groups.windowed and build(replace(case, window=15)).groups.windowed


def test_the_compiled_kernel_takes_what_no_window_keeps_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(native, "native_attention", lambda q, *_: calls.append(len(q)) or q[:, 0])
    monkeypatch.setattr(dispatch, "choose_backend", lambda *_: "native")
    for window in (16, 15):
        call(build(Case("short", ((1, 17, 17, None),), window=window)), "native")
    assert calls == [17]


def test_long_sequences_cost_what_their_windows_hold() -> None:
    """Twice the tokens are twice the FLOPs, and fewer than half of all pairs."""
    counts = []
    for tokens in (1280, 2560):
        qkv = torch.randn(tokens, 3, 1, 4, requires_grad=True)
        with flop_counter() as counter:
            attend(qkv, Groups((Group(1, tokens, tokens),), 32), "sdpa").sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[1] == 2 * counts[0] and counts[0] == 3 * 2 * 2 * 4 * 1280 * (64 + 2 * 32)


@pytest.mark.parametrize("case", WINDOWED[8:9] + WINDOWED[:1], ids=str)
def test_blocks_and_one_mask_give_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(case, dtype=torch.float64)
    blocks = evaluate(build(case), "sdpa")
    monkeypatch.setattr(sdpa, "worth_blocks", lambda *_: False)
    whole = evaluate(build(case), "sdpa")
    for ours, theirs in zip((blocks.out, *blocks.grads), (whole.out, *whole.grads), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tokens", [40, 300])
def test_dropout_keeps_the_mean_within_a_window(tokens: int) -> None:
    torch.manual_seed(0)
    inputs = build(Case("dropped", ((1, tokens, tokens, None),), heads=1, dim=4, window=3))
    draws = torch.stack([call(inputs, "sdpa", 0.3).detach() for _ in range(400)])
    error = draws.std(dim=0) / 400**0.5
    assert ((draws.mean(dim=0) - call(inputs, "reference").detach()).abs() <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("known", [True, False])
def test_varlen_is_given_the_window(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's operator has one, and all tokens ask; some tokens would stand for the last ones."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    seen: list[object] = []

    def with_window(q: Tensor, *operands: object, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
        seen.append(window_size)
        return q

    def without(q: Tensor, *operands: object) -> Tensor:
        seen.append(None)
        return q

    monkeypatch.setattr(varlen, "varlen_attn", with_window if known else without)
    flash._has_windows.cache_clear()

    def run(inputs: Inputs) -> Tensor:
        tensors = inputs.tensors
        q, k, v = tensors[0].unbind(1) if len(tensors) == 1 else (tensors[0], *tensors[1].unbind(1))
        return dispatch._FUNCTIONS["varlen"](q, k, v, inputs.groups)

    try:
        run(build(LONG))
        assert seen == ([(10, 10)] if known else [])
        run(build(replace(LONG, ragged=(((50, 40), (3, 2)),), across=True)))
        assert len(seen) == known
        run(build(replace(LONG, window=None)))
        assert seen[-1] == ((-1, -1) if known else None)
    finally:
        flash._has_windows.cache_clear()
