"""Choosing a backend: explicit ones raise when absent, auto falls back and says so once."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from mae_distill_cases import Case, build, evaluate

from sdfast.losses import mae_distill_loss
from sdfast.ops import registry


@pytest.fixture
def nothing_compiled(refuse: Callable[[str, str, str], None]) -> None:
    refuse("mae_distill", "native", "it was not built")


@pytest.mark.usefixtures("nothing_compiled")
def test_an_explicit_backend_that_is_absent_raises() -> None:
    with pytest.raises(RuntimeError, match="backend 'native' is not available on cpu: it was not built"):
        mae_distill_loss(**build(Case("absent")), backend="native")


@pytest.mark.usefixtures("nothing_compiled")
def test_auto_falls_back_with_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sdfast"):
        results = [evaluate(Case("fallback"), build(Case("fallback")), "auto") for _ in range(3)]
    assert [record.getMessage() for record in caplog.records] == [
        "mae_distill_loss on cpu uses the reference (native: it was not built)"
    ]
    reference = evaluate(Case("fallback"), build(Case("fallback")), "reference")
    assert torch.equal(results[0].output.loss, reference.output.loss)


def test_auto_takes_the_compiled_operator_on_the_cpu() -> None:
    reason = registry.why_not("mae_distill", "native", "cpu")
    if reason is not None:
        pytest.skip(reason)
    assert registry.choose("mae_distill", "auto", "cpu") == "native"
    case = Case("auto")
    auto, native = evaluate(case, build(case), "auto"), evaluate(case, build(case), "native")
    assert torch.equal(auto.output.loss, native.output.loss)


def test_a_device_without_fast_backends_takes_the_reference() -> None:
    case = Case("meta")
    arguments = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in build(case).items()}
    assert mae_distill_loss(**arguments).loss.shape == ()


def test_importing_the_losses_imports_neither_triton_nor_the_compiler_nor_the_rest_of_sdfast() -> None:
    code = (
        "import sys, sdfast.losses\n"
        "heavy = {'triton', 'torch._dynamo', 'torch._inductor', 'transformers', 'numba'} & set(sys.modules)\n"
        "ours = ('sdfast.losses', 'sdfast.ops')\n"
        "other = [m for m in sys.modules if m.startswith('sdfast.') and not m.startswith(ours)]\n"
        "assert not heavy and not other, (heavy, other)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
