"""How `auto` chooses on a GPU: what is timed and how, and what the compiler and cuDNN are told. No GPU needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from sdfast.models.blocks import Block, TransformerShape, use_attention
from sdfast.ops.attention import Group, Groups, Ragged, calibration, dispatch, sdpa
from sdfast.ops.registry import constant_to_the_compiler

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SHAPE = ((3, 10, 10), (1, 4, 4))
KEY = (torch.bfloat16, 2, 8, SHAPE)


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_known", {})


def give_times(times: dict[str, float | Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each backend takes so long, or fails."""
    functions = {name: (lambda *_, name=name: name) for name in times}
    monkeypatch.setattr(dispatch, "_FUNCTIONS", functions)
    monkeypatch.setattr(calibration, "_round", lambda function, *_: function)

    def time(run: Callable[[], str], device: torch.device) -> float:
        value = times[run()]
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(calibration, "_time", time)


def test_the_fastest_is_taken_once(
    nothing_known: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    give_times({"varlen": 3e-5, "xformers": 1e-5, "sdpa": 2e-5}, monkeypatch)
    names = ("varlen", "xformers", "sdpa")
    with caplog.at_level("INFO", logger="sdfast"):
        assert dispatch._calibrated(names, CPU, *KEY) == "xformers"
    said = "xformers for 3 x 10 + 1 x 4 tokens in 2 heads of 8 (varlen 30 us, xformers 10 us, sdpa 20 us)"
    assert said in caplog.text
    monkeypatch.setattr(calibration, "_time", lambda *_: pytest.fail("it was timed twice"))
    assert dispatch._calibrated(names, CPU, *KEY) == "xformers"


def test_a_candidate_that_fails_drops_out(
    nothing_known: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no = RuntimeError("no kernel\nfor this card")
    give_times({"varlen": no, "xformers": NotImplementedError(), "sdpa": 2e-5}, monkeypatch)
    with caplog.at_level("INFO", logger="sdfast"):
        assert dispatch._calibrated(("varlen", "xformers", "sdpa"), CPU, *KEY) == "sdpa"
    assert "varlen does not run here (no kernel for this card)" in caplog.text
    assert dispatch._calibrated(("varlen", "xformers"), CPU, *KEY) == "sdpa"


def test_nothing_is_timed_inside_a_capture(nothing_known: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would become a part of the graph; what is known is used, and what is not is timed the next time."""
    times = {"varlen": 3e-5, "sdpa": 1e-5}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(calibration, "_time", lambda *_: pytest.fail("it was timed in a capture"))
    assert dispatch._calibrated(("varlen", "sdpa"), CUDA, *KEY) == "varlen"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    give_times(times, monkeypatch)
    assert dispatch._calibrated(("varlen", "sdpa"), CUDA, *KEY) == "sdpa"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert dispatch._calibrated(("varlen", "sdpa"), CUDA, *KEY) == "sdpa"


@pytest.mark.parametrize("across", [False, True])
def test_operands_lie_as_in_a_step(across: bool) -> None:
    """Views of one projection [T, 3, H, d], or of the queries and of the keys and values; gradients of the whole."""
    seen: list[Tensor] = []
    leaves: list[Any] = []

    def function(q: Tensor, k: Tensor, v: Tensor, groups: Groups, dropout: float) -> Tensor:
        seen.extend((q, k, v))
        leaves.extend(each.grad_fn.next_functions[0][0].variable for each in (q, v))  # type: ignore[union-attr]
        assert dropout == 0.0 and groups.shape == shape
        return q + k[: len(q)] * v[: len(q)]

    shape = ((2, 3, 5), (1, 4, 4)) if across else ((2, 5, 5), (1, 4, 4))
    calibration._round(function, CPU, torch.bfloat16, 2, 8, shape)()
    q, k, v = seen
    rows, sources = (10 if across else 14), (1 if across else 3)
    assert q.shape == (rows, 2, 8) and q.stride() == (sources * 16, 8, 1)
    assert k.shape == v.shape == (14, 2, 8) and k.stride() == v.stride() == ((2 if across else 3) * 16, 8, 1)
    assert v.storage_offset() - k.storage_offset() == 16 and q.dtype == torch.bfloat16
    assert (leaves[0] is leaves[1]) != across and leaves[1].shape == (14, 2 if across else 3, 2, 8)


@contextlib.contextmanager
def clock(monkeypatch: pytest.MonkeyPatch, capture: Callable[..., Any]) -> Iterator[None]:
    """A device whose events count calls: between two of them lie as many milliseconds as there were calls."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        patch.setattr(torch.cuda, "Event", lambda enable_timing: Event())
        patch.setattr(calibration, "capture_cuda_graph", capture)
        CALLS.clear()
        yield


CALLS: list[str] = []


class Event:
    def record(self) -> None:
        self.at = len(CALLS)

    def synchronize(self) -> None: ...

    def elapsed_time(self, stop: Event) -> float:
        return float(stop.at - self.at)


def test_it_is_timed_inside_a_graph_where_that_can_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def capture(function: Callable[[], None]) -> tuple[Callable[[], None], None]:
        return lambda: CALLS.append("replay"), function()

    def fails(function: Callable[[], None]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with clock(monkeypatch, capture), caplog.at_level("INFO", logger="sdfast"):
        assert calibration._time(lambda: CALLS.append("run"), CUDA) == pytest.approx(1e-3 / 10)  # ten in a graph
        assert CALLS == 13 * ["run"] + 2 * ["replay"] and not caplog.records
    with clock(monkeypatch, fails), caplog.at_level("INFO", logger="sdfast"):
        assert calibration._time(lambda: CALLS.append("run"), CUDA) == pytest.approx(1e-3)
        assert CALLS == 23 * ["run"] and "timed without a CUDA graph (operation not permitted" in caplog.text


def test_what_surrounds_the_first_call_does_not_reach_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come in the midst of a step: under autocast, without gradients, while activations are counted."""
    packed: list[Tensor] = []

    def function(q: Tensor, k: Tensor, v: Tensor, groups: Groups, dropout: float) -> Tensor:
        assert q.requires_grad and not q.is_inference() and not torch.is_autocast_enabled("cpu")
        return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]

    def time(run: Callable[[], None], device: torch.device) -> float:
        run()
        return 1.0

    monkeypatch.setattr(calibration, "_time", time)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda value: packed.append(value) or value, lambda value: value)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), hooks:
        with pytest.raises(AssertionError):  # so the test would see it
            calibration._times({"here": function}, CPU, torch.float32, 2, 8, SHAPE)
        assert calibration.fastest({"there": function}, CPU, torch.float32, 2, 8, SHAPE) == "there"
    assert not packed


def test_it_is_timed_while_the_compiler_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of a compiled block is traced: real numbers are drawn, and nothing waits for the compiler."""
    kinds: list[type] = []

    def function(q: Tensor, k: Tensor, v: Tensor, groups: Groups, dropout: float) -> Tensor:
        kinds.append(type(q))
        return q + k + v

    @constant_to_the_compiler
    def choose(name: str, *_: Any) -> str:
        return calibration.fastest({"sdpa": function}, CPU, torch.float32, 2, 8, SHAPE)

    monkeypatch.setattr(calibration, "_time", lambda run, device: run() or 1.0)
    monkeypatch.setattr(dispatch, "choose_backend", choose)
    torch._dynamo.reset()
    block = Block(TransformerShape(16, 1, 2, 32), 1e-6, True)
    use_attention(block, "auto")
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=False)
    compiled(torch.randn(10, 16, requires_grad=True), Groups((Group(2, 5, 5),))).sum().backward()
    assert kinds == [Tensor]


# ---- what the compiler traces ----------------------------------------------------------------------------------


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors that say they are on a GPU, and autocast as there."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cuda", torch.bfloat16):
        yield
    torch._dynamo.reset()


def padded(batch: int, tokens: int) -> Group:
    return Group(batch, tokens, tokens, torch.ones(batch, tokens, dtype=torch.bool, device="cuda"))


def compiled_block(dynamic: bool | None, graphs: list[torch.fx.GraphModule]) -> Callable[[int, Groups], None]:
    """Runs a block on so many tokens, compiled as a whole; it collects what the compiler made."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    with torch.device("cuda"):
        block = Block(TransformerShape(16, 1, 2, 32), 1e-6, True)
    use_attention(block, "auto")
    block.compile(backend=backend, fullgraph=True, dynamic=dynamic)
    return lambda tokens, groups: block(torch.zeros(tokens, 16, device="cuda"), groups)


@pytest.mark.parametrize("dynamic", [False, None])
def test_sizes_that_the_compiler_knows_are_timed_as_they_are(
    dynamic: bool | None, fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has made symbols of them, a typical shape stands for all."""
    shapes: list[Any] = []

    @constant_to_the_compiler
    def choose(name: str, device: Any, dtype: Any, heads: int, dim: int, shape: Any, dropout: bool) -> str:
        shapes.append(shape)
        return "sdpa"

    monkeypatch.setattr(dispatch, "choose_backend", choose)
    graphs: list[torch.fx.GraphModule] = []
    run = compiled_block(dynamic, graphs)
    for tokens in (5, 7):
        run(2 * tokens + 18, Groups((Group(2, tokens, tokens), Group(2, 9, 9))))
    second = ((2, 7, 7), (2, 9, 9)) if dynamic is False else dispatch._TYPICAL
    assert shapes == [((2, 5, 5), (2, 9, 9)), second] and len(graphs) == 2


def test_ragged_sequences_have_no_shape_to_time() -> None:
    assert dispatch._shape_of(Groups((Ragged(torch.tensor([3, 1])),))) is None
    assert dispatch._shape_of(Groups((Group(2, 3, 3),))) == ((2, 3, 3),)


@pytest.mark.gpu
def test_a_gpu_times_its_candidates_in_graphs(
    nothing_known: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From inside a block that is compiled under autocast, which computes with the choice."""
    torch._dynamo.reset()
    with torch.device("cuda"):
        block = Block(TransformerShape(128, 1, 2, 256), 1e-6, True)
        x = torch.randn(4 * 50 + 2 * 197, 128)
    use_attention(block, "auto")
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=False)
    groups = Groups((Group(4, 50, 50), Group(2, 197, 197)))
    with caplog.at_level("INFO", logger="sdfast"), torch.autocast("cuda", torch.bfloat16):
        out = compiled(x, groups)
    ((key, chosen),) = dispatch._known.items()
    assert chosen in key[0] and key[-1] == groups.shape  # type: ignore[operator]
    said = caplog.text
    assert f"{chosen} for 4 x 50 + 2 x 197 tokens in 2 heads of 64" in said
    assert "without a CUDA graph" not in said and "does not run here" not in said
    use_attention(block, "reference")
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(out, block(x, groups), atol=2e-2, rtol=2e-2)


# ---- cuDNN -----------------------------------------------------------------------------------------------------


def backends_of(mask: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> list[list[SDPBackend]]:
    """What torch may take where the sequences of a group [2, 9] have such a mask."""
    seen: list[list[SDPBackend]] = []
    attention = F.scaled_dot_product_attention

    def watched(*operands: Any, **options: Any) -> Tensor:
        seen.append(_cur_sdpa_kernel_backends())
        assert (options["attn_mask"] is None) == (mask is None)
        return attention(*operands, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q, k, v = (torch.zeros(18, 2, 8, device="cuda") for _ in range(3))
    sdpa.sdpa_attention(q, k, v, Groups((Group(2, 9, 9, mask),)))
    return seen


def test_cudnn_sees_no_mask(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient of the queries can be NaN there: pytorch#196678."""
    before = _cur_sdpa_kernel_backends()
    assert SDPBackend.CUDNN_ATTENTION in before
    mask = torch.ones(2, 9, dtype=torch.bool, device="cuda")
    ((*masked,),) = backends_of(mask, monkeypatch)
    assert set(masked) == set(before) - {SDPBackend.CUDNN_ATTENTION, SDPBackend.OVERRIDEABLE}
    assert _cur_sdpa_kernel_backends() == before


def test_without_a_mask_torch_takes_what_it_likes(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends_of(None, monkeypatch) == [_cur_sdpa_kernel_backends()]


def test_a_block_with_a_mask_is_one_graph(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it tells cuDNN off in it, around the masked group alone."""
    monkeypatch.setattr(dispatch, "_calibrated", lambda *_: "sdpa")
    graphs: list[torch.fx.GraphModule] = []
    run = compiled_block(False, graphs)
    run(28, Groups((padded(2, 5), Group(2, 9, 9))))
    (graph,) = graphs
    calls = [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]
    around = [name for name in calls if name in ("_sdpa_kernel", "scaled_dot_product_attention")]
    assert around == ["_sdpa_kernel", "scaled_dot_product_attention"] * 2  # off, masked, on again, whole


def test_on_a_cpu_a_mask_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "sdpa_kernel", lambda *_: pytest.fail("backends are chosen on a CPU"))
    q, k, v = (torch.randn(18, 2, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    valid = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    sdpa.sdpa_attention(q, k, v, Groups((Group(2, 9, 9, valid),)))


@pytest.mark.gpu
def test_gradients_under_a_mask_are_numbers() -> None:
    """The case of pytorch#196678: 64 keys, and every score about -120."""
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (0.1 * torch.randn(128, 2, 64, device="cuda", generator=generator) for _ in range(3))
    q[..., 0], k[..., 0] = 1.0, -120.0 * 64**0.5
    operands = [each.bfloat16().requires_grad_() for each in (q, k, v)]
    mask = torch.ones(2, 64, dtype=torch.bool, device="cuda")
    out = sdpa.sdpa_attention(*operands, Groups((Group(2, 64, 64, mask),)))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out, operands, torch.ones_like(out)))
