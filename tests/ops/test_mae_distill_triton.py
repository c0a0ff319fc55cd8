"""The Triton backend without a GPU: the kernels in Triton's interpreter, and the operator that torch is shown."""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from interpreted_triton import INTERPRETED
from mae_distill_cases import CASES, Case, build, evaluate

from sdfast.ops import registry
from sdfast.ops.mae_distill import fused

triton = pytest.importorskip("triton")
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="run by test_the_suite_in_the_interpreter")
needs_compiler = pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces Triton's compiler")


@needs_compiler
def test_the_suite_in_the_interpreter() -> None:
    """TRITON_INTERPRET has to be set before triton is imported, hence a process of its own."""
    here = Path(__file__).parent
    files = [here / "test_mae_distill.py", Path(__file__)]
    options = ["-q", "-p", "no:cacheprovider", "-k", "triton and not cuda", "-rs"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=here.parents[1])
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed.group(1)) > len(CASES), result.stdout


@needs_compiler
def test_cpu_tensors_need_the_interpreter() -> None:
    reason = registry.why_not("mae_distill", "triton", "cpu")
    assert reason is not None and "TRITON_INTERPRET=1" in reason


def test_the_operator_takes_what_the_compiled_one_takes() -> None:
    """torch derives the schema; it names no results and writes sizes as symbols, which are integers all the same."""
    assert registry.why_not("mae_distill", "triton", "cuda") is None
    made, wanted = torch.ops.sdfast.mae_distill_triton.default._schema, torch._C.parse_schema("any" + fused.SCHEMA)
    assert [(a.name, str(a.type)) for a in made.arguments] == [(a.name, str(a.type)) for a in wanted.arguments]
    assert not any(a.kwarg_only or a.alias_info or a.has_default_value() for a in made.arguments)
    assert [str(r.type) for r in made.returns] == [str(r.type) for r in wanted.returns]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch does not take the operator, as 2.11 did not take one of unnamed operands."""
    from sdfast.ops.mae_distill import triton_backend

    def fail() -> None:
        raise ValueError("infer_schema(func): no\nvarargs")

    monkeypatch.setattr(triton_backend, "_register", fail)
    registry.forget()
    yield
    registry.forget()


@pytest.mark.usefixtures("refused")
def test_a_torch_that_refuses_the_operator_leaves_a_run_the_next_backend(
    refuse: Callable[[str, str, str | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    refuse("mae_distill", "native", None)
    reason = f"torch {torch.__version__} does not take its operator (ValueError: infer_schema(func): no varargs)"
    with caplog.at_level(logging.WARNING, logger="sdfast"):
        assert [registry.choose("mae_distill", "auto", "cuda") for _ in range(2)] == ["native", "native"]
    (record,) = caplog.records
    assert record.getMessage() == f"mae_distill_loss on cuda uses the native backend (triton: {reason})"
    with pytest.raises(RuntimeError, match=re.escape(f"backend 'triton' is not available on cuda: {reason}")):
        registry.choose("mae_distill", "triton", "cuda")


@needs_interpreter
@pytest.mark.parametrize("operand", ["rows", "mask_ids"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_an_index_out_of_range_gives_nan_and_reads_nothing(operand: str, value: int) -> None:
    from sdfast.ops.mae_distill.arguments import Arguments, check_arguments
    from sdfast.ops.mae_distill.triton_backend import _launch_eagerly

    arguments = build(Case("out of range", masked_only=True, bank=5, features=(3, 8), norm_pix=False))
    reduction = arguments.pop("distill_reduction")
    operands = list(fused.operands_of(check_arguments(Arguments(**arguments), reduction)))
    position = {"mask_ids": 3, "rows": 6}[operand]
    operands[position] = operands[position].clone()
    operands[position].view(-1)[1] = value
    loss, mae, distill, grad_pred, grad_student = _launch_eagerly(*operands)
    assert math.isnan(loss.item())
    bad, good, grad = (distill, mae, grad_student) if operand == "rows" else (mae, distill, grad_pred)
    assert math.isnan(bad.item()) and math.isfinite(good.item())
    wrong = torch.isnan(grad).flatten(1 if operand == "rows" else 2).all(-1).view(-1)
    assert wrong.nonzero().tolist() == [[1]] and torch.isfinite(grad).any()


@needs_interpreter
def test_the_number_of_programs_does_not_matter_for_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdfast.ops.mae_distill import triton_backend

    case = Case("programs", batch=9, patch_size=4, features=(5, 40), mask="uneven")
    few = evaluate(case, build(case), "triton")
    monkeypatch.setattr(triton_backend, "_multiprocessors", lambda device: 100)
    many = evaluate(case, build(case), "triton")
    assert all(torch.equal(few.grads[name], many.grads[name]) for name in few.grads)
    torch.testing.assert_close(few.output.loss, many.output.loss)
