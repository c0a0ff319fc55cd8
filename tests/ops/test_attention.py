"""Every attention backend over the shared case table: errors, repeatability, padding, the compiler, registration."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from attention_cases import (
    CASES,
    WINDOWED,
    Case,
    Inputs,
    Result,
    asked,
    assert_within_twice_eager,
    build,
    call,
    evaluate,
    groups_of,
)
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from sdfast.config import EngineConfig
from sdfast.models.blocks import Block, TransformerShape, use_attention
from sdfast.ops import native as core
from sdfast.ops.attention import (
    BACKENDS,
    Group,
    Groups,
    Ragged,
    attend,
    attend_across,
    choose_backend,
    dispatch,
    flash,
    native,
    sdpa,
)
from sdfast.ops.attention.dropped import dropped_attention
from sdfast.ops.attention.mask import mask
from sdfast.ops.attention.reference import reference_attention
from sdfast.ops.registry import Use, forget, why_not

CPU = torch.device("cpu")
FAST = [backend for backend in BACKENDS if backend != "reference"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ON_CPU = ("sdpa", "native")
LEVELS = ["plain", "avx2", "avx512", "amx"]
OF_NATIVE = (torch.float32, torch.bfloat16)


def require(backend: str, case: Case, device: str = "cpu") -> None:
    reason = why_not("attention", backend, device, case.dtype, case.dim)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def on_devices(cases: list[Case]) -> list:
    """Each backend with each case that it is made for: on a CPU, and marked `gpu` on a GPU."""
    pairs = []
    for case in cases:
        pairs += [pytest.param(b, case, "cpu") for b in ON_CPU if b == "sdpa" or case.dtype in OF_NATIVE]
        pairs += [pytest.param(b, case, "cuda", marks=pytest.mark.gpu) for b in ("sdpa", "varlen", "xformers")]
    return pairs


@functools.cache
def expected(case: Case, device: str) -> tuple[Result, Result]:
    """Eager's own result in the case's dtype, and the truth in float64."""
    inputs = build(case, device)
    return evaluate(inputs, "reference"), evaluate(inputs.in_float64(), "reference")


@pytest.mark.parametrize(("backend", "case", "device"), on_devices(CASES + WINDOWED), ids=str)
def test_error_is_at_most_twice_that_of_eager(backend: str, case: Case, device: str) -> None:
    require(backend, case, device)
    inputs = build(case, device)
    assert_within_twice_eager(case, inputs, evaluate(inputs, backend), *expected(case, device))


def use_level(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require("native", CASES[0])
    monkeypatch.setenv("SDFAST_SIMD", level)
    try:
        torch.ops.sdfast.simd_level()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_level(level, monkeypatch)
    for case in CASES:
        if case.dtype in OF_NATIVE:
            inputs = build(case)
            assert_within_twice_eager(case, inputs, evaluate(inputs, "native"), *expected(case, "cpu"))


def test_the_reference_is_softmax_attention() -> None:
    """Against the formula for one query at a time."""
    case = Case("by hand", ((2, 4, 4, (4, 3)), (1, 5, 5, None)), dtype=torch.float64)
    inputs = build(case)
    out = call(inputs, "reference").view(-1, case.heads, case.dim)
    q, k, v = inputs.tensors[0].unbind(1)
    for first, keys in ((0, 4), (4, 3), (8, 5)):
        for query in range(first, first + keys):
            for head in range(case.heads):
                scores = k[first : first + keys, head] @ q[query, head] / case.dim**0.5
                weights = scores.exp() / scores.exp().sum()
                torch.testing.assert_close(out[query, head], weights @ v[first : first + keys, head])


def same_bits(a: Result, b: Result) -> bool:
    return all(torch.equal(x, y) for x, y in zip((a.out, *a.grads), (b.out, *b.grads), strict=True))


LARGE = Case("many heads", ((3, 50, 50, None), (3, 61, 61, (61, 7, 30))), heads=4, dim=32)


@pytest.mark.parametrize("backend", ["reference", *ON_CPU])
def test_repetition_gives_the_same_bits(backend: str) -> None:
    require(backend, LARGE)
    first = evaluate(build(LARGE), backend)
    for _ in range(3):
        assert same_bits(first, evaluate(build(LARGE), backend))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", OF_NATIVE, ids=str)
def test_native_gives_the_same_bits_on_any_number_of_threads(dtype: torch.dtype, dropout: float) -> None:
    require("native", LARGE)
    case = replace(LARGE, dtype=dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            results.append(evaluate(build(case), "native", dropout))
    finally:
        torch.set_num_threads(threads)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


PADDED = [case for case in CASES + WINDOWED if any(lengths for *_, lengths in case.groups)]


@pytest.mark.parametrize(("backend", "case", "device"), on_devices(PADDED), ids=str)
def test_padding_takes_no_part(backend: str, case: Case, device: str) -> None:
    """Whatever padding holds, the other rows keep their bits, and it receives no gradient."""
    require(backend, case, device)
    inputs = build(case, device)
    clean = evaluate(inputs, backend)
    groups = inputs.groups
    queries = asked(groups, device)
    keys = torch.cat(
        [
            torch.ones(g.batch * g.keys, dtype=torch.bool, device=device) if g.valid is None else g.valid.flatten()
            for g in groups.groups
        ]
    )
    changed = [tensor.detach().clone() for tensor in inputs.tensors]
    changed[-1][~keys] = 1e3
    spoilt = Inputs(tuple(tensor.requires_grad_() for tensor in changed), groups, inputs.grad_output)
    result = evaluate(spoilt, backend)
    assert torch.isfinite(result.out).all()
    assert torch.equal(result.out[queries], clean.out[queries])
    assert not result.grads[-1][~keys].any() and result.grads[-1][keys].any()
    for ours, before in zip(result.grads, clean.grads, strict=True):
        torch.testing.assert_close(ours, before)


@pytest.mark.parametrize("backend", ON_CPU)
def test_sequences_do_not_see_each_other(backend: str) -> None:
    """A NaN stays in its own sequence, in both directions."""
    case = Case("NaN", ((3, 6, 6, None), (2, 9, 9, None)))
    require(backend, case)
    inputs = build(case)
    with torch.no_grad():
        inputs.tensors[0][7, 1, 0, 3] = float("nan")  # a key of the second sequence
    result = evaluate(inputs, backend)
    others = torch.arange(36) // 6 != 1
    assert torch.isnan(result.out[6:12, :8]).all()
    assert torch.isfinite(result.out[others]).all() and torch.isfinite(result.out[6:12, 8:]).all()
    assert torch.isfinite(result.grads[0][others]).all()


def test_a_second_derivative_is_refused_by_native() -> None:
    case = Case("second derivative")
    require("native", case)
    inputs = build(case)
    (grad,) = torch.autograd.grad(call(inputs, "native").square().sum(), inputs.tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# ---- the operators ---------------------------------------------------------------------------------------------

PLAIN = (0.3, 0.0, 0)  # scale, dropout and seed


def operands(case: Case) -> tuple[Tensor, ...]:
    """q, k, v and bounds."""
    inputs = build(case)
    tensors = [tensor.detach() for tensor in inputs.tensors]
    q, k, v = (tensors[0], *tensors[1].unbind(1)) if case.across else tensors[0].unbind(1)
    return q, k, v, inputs.groups.bounds


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[6], replace(CASES[0], dtype=torch.bfloat16)], ids=str)
def test_opcheck(case: Case, dropout: float) -> None:
    require("native", case)
    q, k, v, bounds = operands(case)
    forward, backward = torch.ops.sdfast.attention_forward, torch.ops.sdfast.attention_backward
    further = bounds, 0.3, dropout, -5
    torch.library.opcheck(forward.default, (q, k, v, *further))
    out, lse = forward(q, k, v, *further)
    grads = [torch.empty(tensor.shape, dtype=case.dtype) for tensor in (q, k, v)]
    torch.library.opcheck(backward.default, (torch.randn_like(out), q, k, v, out, lse, *further, *grads))


@pytest.mark.parametrize("dtype", OF_NATIVE, ids=str)
def test_rows_of_no_sequence_are_zero(dtype: torch.dtype) -> None:
    require("native", CASES[0])
    q, k, v, _ = operands(replace(CASES[0], dtype=dtype))
    bounds = torch.tensor([[2, 5, 0, 10], [5, 5, 12, 20], [20, 30, 20, 30]])
    out, lse = torch.ops.sdfast.attention_forward(q, k, v, bounds, *PLAIN)
    grads = [torch.full(tensor.shape, 7.0, dtype=dtype) for tensor in (q, k, v)]
    torch.ops.sdfast.attention_backward(torch.ones_like(out), q, k, v, out, lse, bounds, *PLAIN, *grads)
    no_query = torch.ones(30, dtype=torch.bool)
    no_query[2:5] = no_query[20:] = False
    no_key = torch.ones(30, dtype=torch.bool)
    no_key[:10] = no_key[20:] = False
    assert not out[no_query].any() and out[~no_query].all()
    assert not grads[0][no_query].any() and not grads[1][no_key].any() and not grads[2][no_key].any()
    assert grads[2][~no_key].all()


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ([[0, 10, 0, 10], [10, 31, 10, 20]], "sequence 1 do not fit"),  # more rows than there are
        ([[0, 10, 0, 31]], "sequence 0 do not fit"),
        ([[-1, 10, 0, 10]], "sequence 0 do not fit"),
        ([[0, 10, -5, 10]], "sequence 0 do not fit"),
        ([[10, 9, 0, 10]], "sequence 0 do not fit"),
        ([[0, 10, 10, 9]], "sequence 0 do not fit"),
        ([[0, 10, 0, 10], [9, 20, 10, 20]], "sequence 1 do not fit"),  # a row of two sequences
        ([[0, 10, 0, 10], [10, 20, 9, 20]], "sequence 1 do not fit"),
        ([[0, 10, 5, 5]], "sequence 0 has no keys"),
        ([[0, 10, 0]], r"\[sequences, 4\]"),
        ([0, 10, 0, 10], r"\[sequences, 4\]"),
    ],
)
def test_bad_bounds_are_refused(bounds: list, words: str) -> None:
    require("native", CASES[0])
    q, k, v, _ = operands(CASES[0])
    made = torch.tensor(bounds)
    with pytest.raises(RuntimeError, match=words):
        torch.ops.sdfast.attention_forward(q, k, v, made, *PLAIN)
    out, lse = torch.empty_like(q), torch.empty(2, 30)
    with pytest.raises(RuntimeError, match=words):
        torch.ops.sdfast.attention_backward(out, q, k, v, out, lse, made, *PLAIN, q.clone(), k.clone(), v.clone())


def test_bad_operands_are_refused() -> None:
    require("native", CASES[0])
    q, k, v, bounds = operands(CASES[0])
    forward = torch.ops.sdfast.attention_forward
    for bad, words in (
        ((q.double(), k, v, bounds), "q should be float32 or bfloat16"),
        ((q.bfloat16(), k, v, bounds), "q and k should have the same type"),
        ((q, k, v.bfloat16(), bounds), "v has another type"),
        ((q, k[0], v, bounds), r"k should be \[tokens, heads, dim\]"),
        ((q, k, v[1:], bounds), "v has a wrong shape"),
        ((q[:, :1], k, v, bounds), "the same heads"),
        ((q.transpose(1, 2), k, v, bounds), "side by side"),
        ((q, k, v, bounds.int()), "int64"),
        ((q, k, v, bounds.t().contiguous().t()), "contiguous"),
    ):
        with pytest.raises(RuntimeError, match=words):
            forward(*bad, *PLAIN)
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(RuntimeError, match="dropout should be a probability"):
            forward(q, k, v, bounds, 0.3, rate, 0)
    out, lse = forward(q, k, v, bounds, *PLAIN)
    backward = functools.partial(torch.ops.sdfast.attention_backward, out, q, k, v, out)
    with pytest.raises(RuntimeError, match="grad_k has a wrong shape"):
        backward(lse, bounds, *PLAIN, q.clone(), k[1:].clone(), v.clone())
    with pytest.raises(RuntimeError, match="grad_v has another type"):
        backward(lse, bounds, *PLAIN, q.clone(), k.clone(), v.bfloat16())
    for bad_lse in (lse.t(), lse.bfloat16()):
        with pytest.raises(RuntimeError, match="lse should be"):
            backward(bad_lse, bounds, *PLAIN, q.clone(), k.clone(), v.clone())


# ---- the compiler ----------------------------------------------------------------------------------------------


def block_results(block: torch.nn.Module, groups: Groups) -> tuple[Tensor, ...]:
    x = torch.randn(sum(groups.query_sizes), 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    out = block(x, groups)
    rows = asked(groups)[:, None]
    return out, *torch.autograd.grad((out * out * rows).sum(), (x, *block.parameters()))


def compare_compiled(backend: str, compiler: str, cases: list[Case]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    block = Block(TransformerShape(16, 1, 2, 32), 1e-6, True)
    use_attention(block, backend)
    compiled = torch.compile(block, fullgraph=True, backend=compiler)
    for case in cases:
        groups = groups_of(case)
        for ours, plain in zip(block_results(compiled, groups), block_results(block, groups), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


TWO_GROUPS = Case("two groups", ((2, 5, 5, None), (2, 9, 9, None)))


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_compiled_block_has_no_graph_break(backend: str) -> None:
    """Also with another number of tokens afterwards, which the compiler sees as a symbol."""
    if backend == "native":
        require(backend, CASES[0])
    compare_compiled(backend, "aot_eager", [CASES[0], Case("others", ((4, 7, 7, None),))])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", *ON_CPU])
def test_a_block_compiled_by_inductor(backend: str) -> None:
    if backend == "native":
        require(backend, CASES[0])
    compare_compiled(backend, "inductor", [CASES[0], TWO_GROUPS, CASES[4], Case("others", ((4, 7, 7, None),))])


# ---- the choice ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_choice() -> None:
    forget()


@pytest.mark.parametrize(
    ("backend", "dtype", "words"),
    [
        ("xformers", torch.float32, "its kernels are for CUDA, not for cpu"),
        ("varlen", torch.bfloat16, "its kernels are for CUDA, not for cpu"),
        ("native", torch.float64, "it is for float32 and bfloat16 on the CPU, not for float64 on cpu"),
        ("native", torch.float16, "not for float16 on cpu"),
    ],
)
def test_an_absent_backend_raises_with_the_reason(backend: str, dtype: torch.dtype, words: str) -> None:
    inputs = build(Case("absent", dtype=dtype))
    with pytest.raises(RuntimeError, match=f"'{backend}' is not available: .*{words}"):
        call(inputs, backend)
    across = build(Case("absent", dtype=dtype, across=True))
    with pytest.raises(RuntimeError, match=f"'{backend}' is not available: .*{words}"):
        call(across, backend)


def test_xformers_is_not_imported_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints warnings where its kernels do not load."""
    monkeypatch.setattr(flash.importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert why_not("attention", "xformers", "cpu", torch.float32, 64) is not None


def test_the_key_takes_every_backend() -> None:
    assert get_args(EngineConfig.model_fields["attention"].annotation) == ("auto", *BACKENDS)


def test_an_unknown_backend_raises() -> None:
    with pytest.raises(ValueError, match="one of auto, reference, sdpa, native, varlen, xformers, not 'flash'"):
        call(build(CASES[0]), "flash")


def chosen(dtype: torch.dtype, dropout: bool = False) -> str:
    return choose_backend("auto", CPU, dtype, 2, 8, ((3, 10, 10),), dropout)


def test_auto_on_a_cpu(fresh_choice: None) -> None:
    require("native", CASES[0])
    for dropout in (False, True):
        assert chosen(torch.float32, dropout) == chosen(torch.bfloat16, dropout) == "native"
        assert chosen(torch.float64, dropout) == chosen(torch.float16, dropout) == "sdpa"
    inputs = build(CASES[0])
    assert same_bits(evaluate(inputs, "auto"), evaluate(inputs, "native"))


def test_auto_without_the_compiled_core(refuse: Callable[[str, str, str], None]) -> None:
    refuse("attention", "native", "it was not built")
    assert chosen(torch.float32) == chosen(torch.bfloat16) == chosen(torch.float32, True) == "sdpa"
    inputs = build(CASES[0])
    assert same_bits(evaluate(inputs, "auto"), evaluate(inputs, "sdpa"))
    with pytest.raises(RuntimeError, match="'native' is not available: it was not built"):
        call(inputs, "native")


def test_an_old_compiled_core_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    require("native", CASES[0])
    monkeypatch.setattr(core, "hasattr", lambda *_: False, raising=False)
    assert "build it again" in str(native.why_not_native(Use("cpu", torch.float32)))


@pytest.mark.parametrize("padded", [True, False])
def test_padding_has_gradients_with_varlen(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's operator takes `seqused_k` without gradients only, as here; whole sequences go to it."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    calls = []

    def operator(*operands: object, seqused_k: Tensor | None = None) -> Tensor:
        if seqused_k is not None:
            raise RuntimeError("seqused_k is an inference-only parameter.")
        calls.append(operands)
        return operands[0]  # type: ignore[return-value]

    monkeypatch.setattr(varlen, "varlen_attn", operator)
    lengths = (10, 4, 7) if padded else None
    inputs = build(Case("", ((3, 10, 10, lengths),)))
    q, k, v = inputs.tensors[0].unbind(1)
    out = dispatch._FUNCTIONS["varlen"](q, k, v, inputs.groups)
    assert bool(calls) != padded
    if padded:
        wanted = dispatch._FUNCTIONS["reference"](q, k, v, inputs.groups)
        torch.testing.assert_close(out, wanted)
        assert torch.autograd.grad(out.sum(), inputs.tensors[0])[0].isfinite().all()


# ---- the groups ------------------------------------------------------------------------------------------------


def test_groups_by_hand() -> None:
    valid = torch.tensor([[True, True, False], [True, True, True]])
    groups = Groups((Group(2, 3, 3, valid), Group(1, 4, 4)))
    assert groups.query_sizes == groups.key_sizes == [6, 4]
    assert groups.shape == ((2, 3, 3), (1, 4, 4)) and groups.longest == (4, 4) and groups.padded
    assert groups.bounds.tolist() == [[0, 2, 0, 2], [3, 6, 3, 6], [6, 10, 6, 10]]
    assert groups.bounds.dtype == torch.int64 and groups.bounds is groups.bounds
    queries, keys = groups.offsets(CPU)
    assert queries.tolist() == keys.tolist() == [0, 3, 6, 10] and queries.dtype == torch.int32
    assert groups.offsets(CPU)[0] is queries
    assert groups.lengths("queries") == [3, 3, 4]


def test_groups_with_other_queries_by_hand() -> None:
    valid = torch.tensor([[True, False, False, False, False], [True] * 5])
    groups = Groups((Group(2, 2, 5, valid), Group(1, 3, 1)))
    assert groups.query_sizes == [4, 3] and groups.key_sizes == [10, 1] and groups.longest == (3, 5)
    assert groups.bounds.tolist() == [[0, 2, 0, 1], [2, 4, 5, 10], [4, 7, 10, 11]]
    queries, keys = groups.offsets(CPU)
    assert queries.tolist() == [0, 2, 4, 7] and keys.tolist() == [0, 5, 10, 11]
    assert groups.lengths("queries") == [2, 2, 3] and groups.lengths("keys") == [5, 5, 1]
    assert groups.padded and not Groups((Group(2, 2, 5),)).padded


def test_ragged_groups_by_hand() -> None:
    groups = Groups((Ragged(torch.tensor([3, 1])), Group(1, 2, 2), Ragged(torch.tensor([2, 5]), torch.tensor([0, 4]))))
    assert groups.query_sizes == [4, 2, 4] and groups.key_sizes == [4, 2, 7] and groups.longest == (4, 5)
    assert groups.bounds.tolist() == [[0, 3, 0, 3], [3, 4, 3, 4], [4, 6, 4, 6], [6, 6, 6, 8], [6, 10, 8, 13]]
    queries, keys = groups.offsets(CPU)
    assert queries.tolist() == [0, 3, 4, 6, 6, 10] and keys.tolist() == [0, 3, 4, 6, 8, 13]
    assert groups.lengths("queries") == [3, 1, 2, 0, 4] and groups.lengths("keys") == [3, 1, 2, 2, 5]
    assert groups.shape is None and not groups.padded


def test_ragged_sequences_padded_for_a_launch() -> None:
    """What `sdpa` does away from the CPU."""
    for case in CASES:
        if case.ragged and case.dtype != torch.bfloat16 and "no query" not in case.name:
            inputs = build(case)
            (q, k, v), start = operands(case)[:3], (0, 0)
            for group in inputs.groups.groups:
                q_end, k_end = start[0] + group.rows[0], start[1] + group.rows[1]
                parts = q[start[0] : q_end], k[start[1] : k_end], v[start[1] : k_end]
                wanted = reference_attention(*parts, Groups((group,)))
                if isinstance(group, Ragged):
                    torch.testing.assert_close(sdpa._padded(parts, group, 0.0), wanted)
                start = q_end, k_end


# ---- dropout of attention weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", *ON_CPU])
@pytest.mark.parametrize("case", [CASES[1], Case("ragged", (), ragged=(((6, 9), (3, 9)),), across=True)], ids=str)
def test_dropout_keeps_the_mean(backend: str, case: Case) -> None:
    """Over many draws, within five of its own standard errors; and no draw is the undropped result."""
    require(backend, case)
    torch.manual_seed(0)
    inputs = build(case)
    draws = torch.stack([call(inputs, backend, 0.3).detach() for _ in range(400)])
    wanted = call(inputs, "reference").detach()
    error = draws.std(dim=0) / 400**0.5
    assert ((draws.mean(dim=0) - wanted).abs() <= 5 * error + 1e-6).all()
    assert (draws[0] - draws[1]).abs().max() > 0.01 < (draws[0] - wanted).abs().max()


def test_dropout_drops_weights() -> None:
    """With values that are unit vectors what comes out are the weights: dropped ones, or 1 / (1 - p) times as large."""
    q, k = (torch.randn(6, 1, 6, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    kv = torch.stack((k, torch.eye(6)[:, None]), dim=1)
    groups = Groups((Group(1, 6, 6),))
    plain = attend_across(q, kv, groups, "reference")
    torch.manual_seed(1)
    for backend in ("reference", *ON_CPU):
        require(backend, CASES[0])
        dropped = attend_across(q, kv, groups, backend, 0.5)
        gone = dropped == 0
        assert gone.any() and not gone.all()
        torch.testing.assert_close(dropped[~gone], 2 * plain[~gone])


@pytest.mark.parametrize("valid", [None, (9, 4)], ids=["whole", "padded"])
def test_the_gradient_of_dropped_attention_is_that_of_its_formula(valid: tuple[int, ...] | None) -> None:
    """The mask of a seed comes out of values that are unit vectors; eager code with it has the same gradients."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64) for n in (7, 9, 9))
    mask = None if valid is None else (torch.arange(9) < torch.tensor(valid)[:, None])[:, None, None]
    torch.manual_seed(3)
    kept = dropped_attention(q, k, torch.eye(9, dtype=torch.float64).expand(2, 3, 9, 9), mask, 0.25) != 0
    seen = kept if mask is None else kept | ~mask
    assert 0.15 < 1 - seen.double().mean() < 0.35

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) / 5**0.5
        scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        return (scores.softmax(dim=-1) * kept / 0.75) @ v

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)
        return dropped_attention(q, k, v, mask, 0.25)

    wanted = torch.randn(2, 3, 7, 5, generator=generator, dtype=torch.float64)
    found = []
    for function in (formula, ours):
        operands = [each.clone().requires_grad_() for each in (q, k, v)]
        out = function(*operands)
        found.append([out.detach(), *torch.autograd.grad(out, operands, wanted)])
    for theirs, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_dropped_weights_are_as_many_as_the_rate_says() -> None:
    """Of 4.2 million weights, within five standard errors, whatever their place among the four numbers of one draw."""
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 4, 1024, 4), torch.zeros(1, 4, 1024, 4), torch.eye(1024).expand(1, 4, 1024, 1024)
    for rate in (0.1, 0.5, 0.97):
        gone = (dropped_attention(q, k, v, None, rate) == 0).view(-1, 4).double().mean(dim=0)
        assert ((gone - rate).abs() <= 5 * (rate * (1 - rate) / 2**20) ** 0.5 + 2**-17).all()


def with_mask(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, seed: int, rate: float) -> Tensor:
    """The formula with the mask that `mask` specifies, sequence by sequence, in the operands' dtype."""
    out = q * 0.0
    for first, last, seen, end in bounds.tolist():
        queries, keys, values = (each.transpose(0, 1) for each in (q[first:last], k[seen:end], v[seen:end]))
        kept = mask(seed, q.shape[1], torch.arange(first, last), end - seen, rate)
        weights = (queries @ keys.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(dim=-1) * kept.to(q.dtype)
        out = out.index_copy(0, torch.arange(first, last), (weights @ values).transpose(0, 1))
    return out


MASKED = [case for case in CASES if case.dtype in OF_NATIVE]


@pytest.mark.parametrize("level", LEVELS)
def test_dropout_is_the_formula_with_the_specified_mask(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_level(level, monkeypatch)
    for number, case in enumerate(MASKED):
        inputs, found = build(case), []
        torch.manual_seed(number)
        seed = int(torch.empty((), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None))

        def formula(inputs: Inputs, seed: int = seed) -> Result:
            tensors = inputs.tensors
            q, k, v = tensors[0].unbind(1) if len(tensors) == 1 else (tensors[0], *tensors[1].unbind(1))
            out = with_mask(q, k, v, inputs.groups.bounds, seed, 0.3).flatten(1)
            return Result(out, torch.autograd.grad(out, tensors, inputs.grad_output))

        torch.manual_seed(number)
        found = evaluate(inputs, "native", 0.3)
        assert_within_twice_eager(case, inputs, found, formula(inputs), formula(inputs.in_float64()))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", [0, 1, -1, 1 << 62, -(1 << 63), 0x123456789ABCDEF])
def test_the_mask_is_the_specified_one(level: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of values that are unit vectors, at keys that fill no vector and queries that do not begin at row 0."""
    use_level(level, monkeypatch)
    q, k, bounds = torch.zeros(70, 3, 64), torch.zeros(64, 3, 64), torch.tensor([[0, 3, 0, 5], [9, 70, 5, 64]])
    v = torch.zeros(64, 3, 64)
    v[:5], v[5:] = torch.eye(5, 64)[:, None], torch.eye(59, 64)[:, None]
    for rate in (1e-3, 0.1, 0.5, 0.999, 1.0):
        out, _ = torch.ops.sdfast.attention_forward(q, k, v, bounds, 1.0, rate, seed)
        for first, last, seen, end in bounds.tolist():
            wanted = mask(seed, 3, torch.arange(first, last), end - seen, rate)
            weights = out[first:last, :, : end - seen].transpose(0, 1) * (end - seen)
            torch.testing.assert_close(weights.double(), wanted, rtol=1e-6, atol=0.0)


def test_a_mask_does_not_depend_on_what_else_is_there() -> None:
    """Neither on the other sequences' lengths, where its queries keep their rows, nor on how many heads there are."""
    wide = mask(7, 4, torch.arange(40), 50, 0.4)
    assert torch.equal(mask(7, 2, torch.arange(10, 20), 30, 0.4), wide[:2, 10:20, :30])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_masks_are_as_independent_random_numbers(rate: float) -> None:
    """Within five standard errors: means, how much the means along an axis spread, and products of two weights, of
    which one lies a little further along an axis, or is of another seed.
    """
    heads, queries, keys = 8, 256, 512
    variance = 1 / (1 - rate) - 1
    masks = [mask(seed, heads, torch.arange(queries), keys, rate) - 1 for seed in (0, 1, 1 << 32, -1, 1 << 63)]
    for number, each in enumerate(masks):
        assert each.mean().abs() <= 5 * (variance / each.numel()) ** 0.5
        products = [each * other for other in masks[:number]]
        for axis in range(3):
            along = each.mean(dim=axis)
            spread = along.square().mean() * each.shape[axis] / variance
            assert (spread - 1).abs() <= 5 * (3 / along.numel()) ** 0.5, (number, axis)
            for lag in (1, 2, 3, 4, 7, 16, 64, 255):
                if lag < each.shape[axis]:
                    length = each.shape[axis] - lag
                    products.append(each.narrow(axis, lag, length) * each.narrow(axis, 0, length))
        for product in products:
            assert product.mean().abs() <= 5 * variance / product.numel() ** 0.5, number


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("dtype", OF_NATIVE, ids=str)
def test_torchs_generator_decides_the_mask(backend: str, dtype: torch.dtype) -> None:
    case = Case("seeds", dtype=dtype)
    require("native", case)
    torch.manual_seed(4)
    first, second = evaluate(build(case), backend, 0.5), evaluate(build(case), backend, 0.5)
    torch.manual_seed(4)
    assert same_bits(first, evaluate(build(case), backend, 0.5)) and not same_bits(first, second)
    before = torch.get_rng_state()
    evaluate(build(case), backend)
    assert torch.equal(before, torch.get_rng_state()), "without dropout nothing is drawn"


def test_a_checkpoint_makes_the_same_mask_again() -> None:
    require("native", CASES[0])
    inputs, results = build(CASES[0]), []
    for kept in (True, False):
        torch.manual_seed(2)
        way = functools.partial(attend, groups=inputs.groups, backend="native", dropout=0.5)
        out = way(*inputs.tensors) if kept else checkpoint(way, *inputs.tensors, use_reentrant=False)
        torch.rand(3)  # what comes after it draws too
        results.append(Result(out, torch.autograd.grad(out, inputs.tensors, inputs.grad_output)))
    assert same_bits(*results)


def test_autocast_comes_to_the_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    require("native", Case("bfloat16", dtype=torch.bfloat16))
    block = Block(TransformerShape(16, 1, 2, 32), 1e-6, True)
    seen = []
    native_attention = dispatch.native.native_attention
    monkeypatch.setattr(
        dispatch.native, "native_attention", lambda q, *rest: seen.append(q.dtype) or native_attention(q, *rest)
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = block(torch.randn(10, 16), Groups((Group(2, 5, 5),)))
        block.attn.across(torch.randn(4, 16), torch.randn(10, 16), Groups((Group(2, 2, 5),)))
    out.sum().backward()
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_fake_tensors_pass_through_the_compiled_kernel(dropout: float) -> None:
    require("native", CASES[0])
    with FakeTensorMode():
        qkv = torch.randn(15, 3, 2, 8, dtype=torch.bfloat16, requires_grad=True)
        out = attend(qkv, Groups((Group(3, 5, 5),)), "native", dropout)
        (grad,) = torch.autograd.grad(out.sum(), qkv)
    assert out.shape == (15, 16) and out.dtype == grad.dtype == torch.bfloat16 and grad.shape == qkv.shape


def test_dropout_inside_a_compiled_graph() -> None:
    """There the seed cannot be drawn, so `auto` leaves it to `sdpa`."""
    torch._dynamo.reset()
    inputs = build(CASES[0])
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    out = compiled(inputs.tensors[0], inputs.groups, "auto", 0.5)
    assert torch.isfinite(torch.autograd.grad(out.sum(), inputs.tensors)[0]).all()


def test_attend_reads_the_layout_of_a_fused_projection() -> None:
    """Queries, then keys, then values in a row of [T, 3 * H * d]."""
    rows = torch.randn(6, 3 * 2 * 8, generator=torch.Generator().manual_seed(0))
    out = attend(rows.view(6, 3, 2, 8), Groups((Group(1, 6, 6),)), "reference")
    q, k, v = (part.view(6, 2, 8).transpose(0, 1)[None] for part in rows.chunk(3, dim=1))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(out, wanted)
