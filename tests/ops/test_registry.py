"""The registry of operators: every row is whole, has its tests and its benchmark, and chooses in the one idiom."""

from __future__ import annotations

import ast
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdfast.ops import registry
from sdfast.ops.registry import Backend, Op, Use

ROOT = Path(__file__).parents[2]
ROWS = registry.all_rows()
# By row: the file of tests over its case table, and of its benchmark.
WHERE = {
    "added_norm": ("test_cpu_half.py", "bench_gelu.py"),
    "attention": ("test_attention.py", "bench_attention.py"),
    "gelu": ("test_gelu.py", "bench_gelu.py"),
    "gelu_backward_with_bias": ("test_bias_gradients.py", "bench_gelu.py"),
    "join_with_bias": ("test_bias_gradients.py", "bench_gelu.py"),
    "linear": ("test_linear.py", "bench_linear.py"),
    "linear_cross_entropy": ("test_linear_cross_entropy.py", "bench_linear_losses.py"),
    "linear_kl": ("test_linear_kl.py", "bench_linear_losses.py"),
    "mae_distill": ("test_mae_distill.py", "bench_losses.py"),
}


@pytest.mark.parametrize("name", sorted(ROWS | WHERE))
def test_every_row_is_whole(name: str) -> None:
    row = ROWS[name]
    assert row.name == name and next(iter(row.backends)) == "reference"
    assert {row.otherwise, *sum(row.preferences.values(), ())} <= row.backends.keys()
    for device in ("cpu", "cuda", "meta"):
        use = Use(device, torch.float32, 64)
        assert row.backends["reference"].why_not(use) is None and row.backends[row.otherwise].why_not(use) is None
        for backend in row.backends.values():
            reason = backend.why_not(use)
            assert reason is None or (isinstance(reason, str) and reason)
    assert all("::" in operator for operator in row.flops)


@pytest.mark.parametrize("name", sorted(ROWS | WHERE))
def test_every_row_has_tests_and_a_benchmark(name: str) -> None:
    tests, benchmark = WHERE[name]
    assert (ROOT / "tests" / "ops" / tests).is_file()
    assert (ROOT / "benchmarks" / benchmark).is_file()
    said = (ROOT / "benchmarks" / "README.md").read_text()
    assert f"benchmarks/{benchmark} " in said


def test_every_module_that_enters_a_row_is_asked_for_it() -> None:
    found = set()
    for path in (ROOT / "sdfast" / "ops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "sdfast.ops.registry":
                found |= {
                    path.relative_to(ROOT / "sdfast" / "ops").with_suffix("").parts[0]
                    for n in node.names
                    if n.name == "add"
                }
    assert found == set(registry._FOLDERS)


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Op:
    """Of three backends, of which the best is not there."""
    asked: list[Use] = []

    def no(use: Use) -> str:
        asked.append(use)
        return "it is away"

    backends = {"reference": Backend(max), "fast": Backend(max, no), "slow": Backend(max)}
    monkeypatch.setattr(registry, "_rows", dict(registry._rows))
    registry.forget()
    made = registry.add(Op("made", backends, {"cpu": ("fast", "slow"), "cuda": ("fast",)}, called="made_loss"))
    made.backends["fast"].why_not.__dict__["asked"] = asked
    return made


def test_the_best_that_is_there_and_why_not_the_others_once(op: Op, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sdfast"):
        assert [registry.choose("made", "auto", "cpu") for _ in range(3)] == ["slow"] * 3
        assert registry.choose("made", "auto", "cuda") == registry.choose("made", "auto", "meta") == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "made_loss on cpu uses the slow backend (fast: it is away)",
        "made_loss on cuda uses the reference (fast: it is away)",
    ]
    assert {record.name for record in caplog.records} == {"sdfast.losses"}
    assert [use.device for use in op.backends["fast"].why_not.__dict__["asked"]] == ["cpu", "cuda"]


def test_a_named_one_is_taken_or_refused(op: Op) -> None:
    assert registry.choose("made", "slow", "cuda") == "slow"
    with pytest.raises(RuntimeError, match=r"^backend 'fast' is not available on cpu: it is away$"):
        registry.choose("made", "fast", "cpu")
    with pytest.raises(ValueError, match=r"^backend should be one of auto, reference, fast, slow, not 'quick'$"):
        registry.choose("made", "quick", "cpu")
    assert registry.why_not("made", "fast", "cpu") == "it is away"
    assert registry.why_not("made", "auto", "cpu") is None


@pytest.mark.parametrize("ask", [registry.choose, registry.why_not])
def test_the_compiler_asks_while_it_traces(ask: Callable[..., str | None], op: Op) -> None:
    torch._dynamo.reset()

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * (2 if ask("made", "auto", x.device.type, x.dtype) == "slow" else 3)

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(2)), double(torch.ones(2)))


@pytest.mark.parametrize("room", ["ops", "losses"])
def test_operators_and_losses_import_torch_alone(room: str) -> None:
    """And each other; Triton and xformers where they are there."""
    imported: set[str] = set()
    for path in (ROOT / "sdfast" / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported |= {f"{node.module}.{name.name}" for name in node.names}
    ours = {name for name in imported if name.split(".")[0] == "sdfast"}
    assert {name.split(".")[1] for name in ours} <= ({"ops"} if room == "ops" else {"ops", "losses"})
    others = {name.split(".")[0] for name in imported - ours}
    assert others - sys.stdlib_module_names <= {"torch", "triton"}
