"""The Triton kernels without a GPU: run by Triton's interpreter, compiled for Hopper, traced by the compiler."""

from __future__ import annotations

import inspect
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mae_distill_cases import CASES, Case, build, evaluate

from sdfast.losses.mae_distill import dispatch, fused

triton = pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
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
    reason = dispatch.why_not("triton", "cpu")
    assert reason is not None and "TRITON_INTERPRET=1" in reason


@needs_interpreter
@pytest.mark.parametrize("operand", ["rows", "mask_ids"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_an_index_out_of_range_gives_nan_and_reads_nothing(operand: str, value: int) -> None:
    from sdfast.losses.mae_distill.arguments import check_arguments
    from sdfast.losses.mae_distill.triton_backend import _launch_eagerly

    arguments = build(Case("out of range", masked_only=True, bank=5, features=(3, 8), norm_pix=False))
    settings = {"mean": None, "std": None, "mask": None, "teacher_scale": None}
    operands = list(fused.operands_of(check_arguments(**arguments, **settings)))
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
    from sdfast.losses.mae_distill import triton_backend

    case = Case("programs", batch=9, patch_size=4, features=(5, 40), mask="uneven")
    few = evaluate(case, build(case), "triton")
    monkeypatch.setattr(triton_backend, "_multiprocessors", lambda device: 100)
    many = evaluate(case, build(case), "triton")
    assert all(torch.equal(few.grads[name], many.grads[name]) for name in few.grads)
    torch.testing.assert_close(few.output.loss, many.output.loss)


class Recorder:
    """Stands for a kernel: keeps the arguments of its launches."""

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *positional, **named: self.launches.append({"positional": positional, **named})


def compiled_for_hopper(kernel: Any, named: dict[str, Any]) -> Any:
    """Compile ``kernel`` for compute capability 9.0 as a launch with these arguments would."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.bool: "i1", torch.int32: "i32", torch.int64: "i64"}
    bound = inspect.signature(kernel.fn).bind(**named)
    signature, constants, attributes = {}, {}, {}
    for position, (parameter, (name, value)) in enumerate(zip(kernel.params, bound.arguments.items(), strict=True)):
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[(position,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(position,)] = "*" + types[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp64"
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hopper_code_has_wide_accesses_and_no_spills(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdfast.losses.mae_distill import triton_backend
    from sdfast.losses.mae_distill.triton_kernels import mae_distill_kernel

    monkeypatch.setattr(triton_backend, "_multiprocessors", lambda device: 132)
    recorder = Recorder()
    pred = torch.empty(64, 196, 768, dtype=dtype, device="meta")
    images, mask = torch.empty(64, 3, 224, 224, device="meta"), torch.empty(64, 196, dtype=torch.bool, device="meta")
    student = torch.empty(64, 197, 768, dtype=dtype, device="meta")
    teacher = torch.empty(64, 197, 768, device="meta")
    triton_backend.launch(
        Recorder(), recorder, pred, images, mask, None, student, teacher, None, None, [], [], 16, True, 1.0, 1.0,
        False, True, True,
    )  # fmt: skip
    (named,) = recorder.launches
    assert named.pop("num_warps") == 4 and not named.pop("positional")
    ptx = compiled_for_hopper(mae_distill_kernel, named).asm["ptx"]
    assert len(re.findall(r"ld\.global\S*\.v4\.", ptx)) >= 4  # predictions, student, teacher: 16 bytes at a time
    assert len(re.findall(r"st\.global\S*\.v4\.", ptx)) >= 2  # both gradients
    registers, spilled = resources(ptx)
    assert spilled == 0
    assert registers <= 64  # eight programs of 128 threads on a multiprocessor of 65,536 registers


def resources(ptx: str) -> tuple[int, int]:
    """Registers a thread and bytes spilled, as the assembler of the triton package reports them."""
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not assembler.is_file():
        pytest.skip("this triton brings no ptxas")
    command = [str(assembler), "-v", "-arch=sm_90a", "-o", os.devnull, "/dev/stdin"]
    report = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True).stderr
    used, spilled = re.search(r"Used (\d+) registers", report), re.findall(r"(\d+) bytes spill", report)
    assert used is not None
    return int(used.group(1)), sum(map(int, spilled))


@pytest.fixture
def a_hopper_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton believes that an H100 is there, for analyses that only compile."""
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())


@needs_compiler
@pytest.mark.usefixtures("a_hopper_driver")
def test_the_compiler_sees_both_kernels_and_what_they_write(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._functorch.aot_autograd import aot_function
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sdfast.losses.mae_distill import triton_backend

    assert triton_backend.why_not("cuda") is None
    monkeypatch.setattr(triton_backend, "_multiprocessors", lambda device: 132)
    arguments = build(Case("traced", bank=7, features=(3, 24)))
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def call(pred: Any, images: Any, mask: Any, student: Any, teacher: Any, rows: Any) -> Any:
        operator = torch.ops.sdfast.mae_distill_triton.default
        settings = ([], [], 16, True, 1.0, 1.0, False, True, True)
        return operator(pred, images, mask, None, student, teacher, rows, None, *settings)

    with FakeTensorMode():
        names = ("pred", "images", "mask", "student", "teacher", "rows")
        fakes = [torch.empty(arguments[n].shape, dtype=arguments[n].dtype, device="cuda") for n in names]
        aot_function(call, fw_compiler=keep)(*fakes)
    nodes = [n for n in graphs[0].graph.nodes if "triton_kernel_wrapper_functional" in str(n.target)]
    written = {"counters"}, {"grad_pred", "grad_student", "counters", "partial_sums", "loss", "mae", "distill"}
    assert [set(node.kwargs["tensors_to_clone"]) for node in nodes] == list(written)
