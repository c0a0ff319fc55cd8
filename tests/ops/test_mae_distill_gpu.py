"""On a GPU: nothing waits for the device, a CUDA graph captures forward and backward, autocast changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from mae_distill_cases import Case, build

from sdfast.losses import mae_distill_loss
from sdfast.ops import registry

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

CASES = [
    Case("mask"),
    Case("float mask, bank", mask_dtype=torch.float32, bank=9, features=(5, 24)),
    Case("ids, bytes, int8", masked_only=True, image_dtype=torch.uint8, teacher_dtype=torch.int8, bank=9),
    Case("bfloat16", pred_dtype=torch.bfloat16, student_dtype=torch.bfloat16, grad_output=0.5),
]


@pytest.fixture(params=["triton", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = registry.why_not("mae_distill", request.param, "cuda")
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def syncs_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("syncs_are_errors")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_host_synchronisation(backend: str, case: Case) -> None:
    torch.cuda.set_sync_debug_mode("default")
    arguments = build(case, "cuda")
    mae_distill_loss(**arguments, backend=backend)  # compiles and loads
    factor = torch.full((), case.grad_output, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    mae_distill_loss(**arguments, backend=backend).loss.backward(factor)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cuda_graph(backend: str, case: Case) -> None:
    arguments = build(case, "cuda")
    wanted = [arguments["pred"], arguments["student"]]

    def step() -> tuple[torch.Tensor, ...]:
        loss = mae_distill_loss(**arguments, backend=backend).loss
        return (loss, *torch.autograd.grad(loss * case.grad_output, wanted))

    expected = [t.clone() for t in step()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        graph.replay()
        for ours, theirs in zip(captured, expected, strict=True):
            assert torch.equal(ours, theirs)


def test_index_out_of_range_gives_nan(backend: str) -> None:
    arguments = build(Case("rows", bank=5), "cuda")
    arguments["rows"][1] = 5
    output = mae_distill_loss(**arguments, backend=backend)
    assert output.loss.isnan() and output.distill.isnan() and output.mae.isfinite()
