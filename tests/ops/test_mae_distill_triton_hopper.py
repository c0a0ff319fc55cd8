"""The Triton kernels compiled for an H100 that is not there, from the very launches of a training step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hopper import Compiling, an_h100, resources  # noqa: F401 (a fixture)
from interpreted_triton import INTERPRETED
from loss_launches import CALLS, launch, multiprocessors_of_an_h100
from mae_distill_cases import Case, build

from sdfast.ops import registry
from sdfast.ops.mae_distill import triton_backend

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter replaces Triton's compiler"),
    pytest.mark.usefixtures("an_h100"),
]


@pytest.mark.parametrize("name", CALLS)
def test_hopper_code_has_wide_accesses_and_no_spills(name: str, tmp_path: Path) -> None:
    from sdfast.ops.mae_distill.triton_kernels import count_kernel, mae_distill_kernel

    call, compiling = CALLS[name], (Compiling(count_kernel), Compiling(mae_distill_kernel))
    launch(*compiling, **call.operands)
    count, kernel = (each.compiled for each in compiling)
    ptx = kernel.asm["ptx"]
    assert len(re.findall(r"ld\.global\S*\.v4\.", ptx)) >= call.loads
    assert len(re.findall(r"st\.global\S*\.v4\.", ptx)) >= call.stores
    assert kernel.metadata.num_warps == 4
    for each in (count, kernel):
        registers, local = resources(each, tmp_path / "kernel.cubin")
        assert local == 0
        assert registers <= 64  # eight programs of 128 threads on a multiprocessor of 65,536 registers


def test_the_compiler_sees_both_kernels_and_what_they_write() -> None:
    from torch._functorch.aot_autograd import aot_function
    from torch._library.triton import get_triton_kernels_for_op
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sdfast.ops.mae_distill.triton_kernels import count_kernel, mae_distill_kernel

    assert registry.why_not("mae_distill", "triton", "cuda") is None
    # A change of their source makes what the compiler has cached stale.
    assert set(get_triton_kernels_for_op(triton_backend.OPERATOR)) == {count_kernel, mae_distill_kernel}
    arguments = build(Case("traced", bank=7, features=(3, 24)))
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def call(pred: Any, images: Any, mask: Any, student: Any, teacher: Any, rows: Any) -> Any:
        operator = torch.ops.sdfast.mae_distill_triton.default
        settings = ([], [], 16, True, 1.0, 1.0, False, True, True)
        return operator(pred, images, mask, None, student, teacher, rows, None, *settings)

    with FakeTensorMode(), multiprocessors_of_an_h100():
        names = ("pred", "images", "mask", "student", "teacher", "rows")
        fakes = [torch.empty(arguments[n].shape, dtype=arguments[n].dtype, device="cuda") for n in names]
        aot_function(call, fw_compiler=keep)(*fakes)
    nodes = [n for n in graphs[0].graph.nodes if "triton_kernel_wrapper_functional" in str(n.target)]
    written = {"counters"}, {"grad_pred", "grad_student", "counters", "partial_sums", "loss", "mae", "distill"}
    assert [set(node.kwargs["tensors_to_clone"]) for node in nodes] == list(written)
