"""Every backend over the shared case table: errors, repeatability, the compiler, registration, bad input."""

from __future__ import annotations

import functools

import pytest
import torch
from mae_distill_cases import CASES, Case, Result, assert_within_twice_eager, build, evaluate, in_float64

from sdfast.losses import mae_distill_loss
from sdfast.ops import registry
from sdfast.ops.mae_distill.arguments import Arguments, check_arguments
from sdfast.ops.mae_distill.fused import SCHEMA, operands_of

BACKENDS = ("reference", "native", "triton")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


def require(backend: str, device: str, traced: bool = False) -> None:
    reason = registry.why_not("mae_distill", backend, device)
    if reason is not None:
        pytest.skip(f"{backend} on {device}: {reason}")
    if traced and backend == "triton" and device == "cpu":
        pytest.skip("Triton's interpreter cannot be traced; see test_mae_distill_triton.py")


@functools.cache
def expected(case: Case, device: str) -> tuple[Result, Result]:
    """Eager's own result in the case's dtypes, and the truth in float64."""
    arguments = build(case, device)
    return evaluate(case, arguments, "reference"), evaluate(case, in_float64(arguments), "reference")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_error_is_at_most_twice_that_of_eager(backend: str, case: Case, device: str) -> None:
    require(backend, device)
    eager, truth = expected(case, device)
    result = evaluate(case, build(case, device), backend)
    assert_within_twice_eager(case, result, eager, truth)
    assert not result.output.mae.requires_grad and not result.output.distill.requires_grad


@pytest.mark.parametrize("level", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_instruction_set(level: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    require("native", "cpu")
    eager, truth = expected(case, "cpu")
    monkeypatch.setenv("SDFAST_SIMD", level)
    try:
        torch.ops.sdfast.simd_level()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    assert_within_twice_eager(case, evaluate(case, build(case), "native"), eager, truth)


LARGE = Case("several chunks a thread", batch=8, height=224, width=224, features=(197, 100), grad_output=0.5)
SMALL = Case("several tiles a program", batch=5, height=32, width=48, patch_size=4, features=(30, 100), grad_output=0.5)


def repeated(backend: str, device: str) -> Case:
    """A case that keeps every thread or program busy several times over; small where it is interpreted."""
    return SMALL if backend == "triton" and device == "cpu" else LARGE


def same_bits(a: Result, b: Result) -> bool:
    pairs = [*zip(a.output, b.output, strict=True), *((a.grads[name], b.grads[name]) for name in a.grads)]
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_repetition_gives_the_same_bits(backend: str, device: str) -> None:
    require(backend, device)
    case = repeated(backend, device)
    first = evaluate(case, build(case, device), backend)
    for _ in range(4):
        assert same_bits(first, evaluate(case, build(case, device), backend))


def test_native_gives_the_same_bits_on_any_number_of_threads() -> None:
    require("native", "cpu")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = evaluate(LARGE, build(LARGE), "native")
        torch.set_num_threads(3)
        three = evaluate(LARGE, build(LARGE), "native")
    finally:
        torch.set_num_threads(threads)
    assert same_bits(one, three)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_backward_pass_after_another(backend: str, device: str) -> None:
    """A kept graph gives the same gradients again; grad_output may differ each time; .grad accumulates."""
    require(backend, device)
    arguments = build(repeated(backend, device), device)
    pred, student = arguments["pred"], arguments["student"]
    loss = mae_distill_loss(**arguments, backend=backend).loss
    grads = [
        torch.autograd.grad(loss, (pred, student), torch.full_like(loss, factor), retain_graph=factor != 4.0)
        for factor in (1.0, 2.0, 2.0, 4.0)
    ]
    for made, factor in zip(grads[1:], (2.0, 2.0, 4.0), strict=True):
        for ours, once in zip(made, grads[0], strict=True):
            assert torch.equal(ours, once * factor)
    for weight in (0.25, 0.75):
        (mae_distill_loss(**arguments, backend=backend).loss * weight).backward()
    torch.testing.assert_close(pred.grad, grads[0][0])
    torch.testing.assert_close(student.grad, grads[0][1])


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_a_second_derivative_is_refused(backend: str) -> None:
    require(backend, "cpu")
    arguments = build(CASES[0])
    loss = mae_distill_loss(**arguments, backend=backend).loss
    with pytest.raises(RuntimeError, match=r"no second derivative.*reference"):
        torch.autograd.grad(loss, arguments["pred"], create_graph=True)


COMPILED = [
    Case("compiled", grad_output=2.0),
    Case("compiled, bank", masked_only=True, bank=9, features=(3, 24), index_dtype=torch.int32),
    Case("compiled, uint8 and int8", image_dtype=torch.uint8, teacher_dtype=torch.int8, mask_dtype=torch.float32),
    Case("compiled, bfloat16", pred_dtype=torch.bfloat16, student_dtype=torch.bfloat16, layout="sliced"),
]


@pytest.mark.parametrize("case", COMPILED, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_compile_without_graph_break(backend: str, case: Case) -> None:
    require("reference" if backend == "auto" else backend, "cpu", traced=True)
    torch._dynamo.reset()
    arguments = build(case)
    wanted = [arguments["pred"], arguments["student"]]
    compiled = torch.compile(mae_distill_loss, fullgraph=True, backend="aot_eager")
    output = compiled(**arguments, backend=backend)
    grads = torch.autograd.grad(output.loss, wanted, torch.full_like(output.loss, case.grad_output))
    result = Result(output, dict(zip(("pred", "student"), grads, strict=True)))
    assert_within_twice_eager(case, result, *expected(case, "cpu"))


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_inductor_inside_a_model(backend: str) -> None:
    """The operator between ordinary layers, compiled as one graph."""
    require(backend, "cpu", traced=True)
    torch._dynamo.reset()
    case = Case("model", patch_size=4, height=8, width=8, channels=1, features=(16,), requires_grad="none")
    arguments = build(case)
    features, hidden = arguments.pop("student"), arguments.pop("pred")
    torch.manual_seed(0)
    decoder, encoder = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def step(backend: str) -> torch.Tensor:
        return mae_distill_loss(decoder(hidden), student=encoder(features), **arguments, backend=backend).loss * 3

    torch.compile(step, fullgraph=True)(backend).backward()
    ours = [p.grad.clone() for p in (*decoder.parameters(), *encoder.parameters())]
    decoder.zero_grad(), encoder.zero_grad()
    step("reference").backward()
    for mine, theirs in zip(ours, (*decoder.parameters(), *encoder.parameters()), strict=True):
        torch.testing.assert_close(mine, theirs.grad)


OPCHECKED = [
    Case("both"),
    Case("masked only, bank", masked_only=True, bank=7, features=(3, 8)),
    Case("pred alone, half", features=None, pred_dtype=torch.float16),
    Case("student alone, int8", pixel_part=False, teacher_dtype=torch.int8),
    Case("float64", pred_dtype=torch.float64, requires_grad="student"),
    Case("empty", batch=0),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", OPCHECKED, ids=str)
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_opcheck(backend: str, case: Case, device: str) -> None:
    require(backend, device)
    names = {"native": "mae_distill", "triton": "mae_distill_triton"}
    operator = getattr(torch.ops.sdfast, names[backend]).default
    arguments = build(case, device)
    reduction = arguments.pop("distill_reduction")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    if backend == "triton" and device == "cpu":
        checks = checks[:2]  # the interpreter cannot be traced
    torch.library.opcheck(operator, operands_of(check_arguments(Arguments(**arguments), reduction)), test_utils=checks)


def test_both_operators_have_one_schema() -> None:
    require("native", "cpu")
    assert str(torch.ops.sdfast.mae_distill.default._schema) == "sdfast::mae_distill" + SCHEMA
