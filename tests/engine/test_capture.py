"""What a capture leaves behind, over a stand-in for torch's graph, allocator and generator. No GPU needed.

The stand-in ends a failed capture as torch 2.11, 2.13 and 2.14 do (`CUDAGraph::capture_end` and `reset`); the context
manager around it, `torch.cuda.graph`, is torch's own. The real thing is in test_graph_gpu.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sdfast.ops import capture
from sdfast.ops.capture import capture_cuda_graph, is_out_of_memory

POOL, DEVICE = (0, 7), 3


class Gpu:
    """A device with one memory pool, a generator, and streams that are words.

    Attributes:
        recording: to how many graphs' pools allocations go; `uses` counts who holds the pool.
        calls: of the private functions that end and release.
    """

    def __init__(self, torch_version: str, fails: str | None) -> None:
        self.version, self.fails = torch_version, fails
        self.stream = "of the step"
        self.recording = self.uses = 0
        self.calls: list[str] = []
        self.default = Generator(self)

    def end(self, device: int, pool: tuple[int, int]) -> None:
        assert (device, pool) == (DEVICE, POOL)
        if not self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.calls.append("end")
        self.recording -= 1

    def release(self, device: int, pool: tuple[int, int]) -> None:
        assert (device, pool) == (DEVICE, POOL)
        self.calls.append("release")
        self.uses -= 1
        assert self.uses >= 0

    def empty_cache(self) -> None:
        assert not self.recording, "captures_underway.empty() INTERNAL ASSERT FAILED"

    @contextlib.contextmanager
    def on(self, stream: str) -> Iterator[None]:
        """`torch.cuda.stream`, which `torch.cuda.graph` does not leave where the end of a capture fails."""
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def set_stream(self, stream: str) -> None:
        self.stream = stream


class Generator:
    device = torch.device("cpu")

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.capturing, self.state = gpu, False, 5

    def get_state(self) -> int:
        return self.state

    def set_state(self, state: int) -> None:
        self.state = state

    def graphsafe_set_state(self, other: Any) -> None:
        assert isinstance(other, torch.Generator)
        self.capturing = False


class Graph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.ended = gpu, False

    def capture_begin(self, pool: tuple[int, int], capture_error_mode: str, **_: Any) -> None:
        assert pool == POOL and capture_error_mode == "thread_local" and self.gpu.stream == "of the capture"
        self.gpu.recording, self.gpu.uses, self.gpu.default.capturing = 1, 1, True
        if self.gpu.fails == "begin":
            raise RuntimeError("operation not permitted")

    def capture_end(self) -> None:
        failed = self.gpu.fails in ("inside", "end")
        if failed and self.gpu.version == "2.11":
            raise RuntimeError("operation failed due to a previous error during capture")
        self.gpu.recording = 0
        if failed:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.gpu.default.capturing, self.ended = False, True
        if self.gpu.fails == "instantiate":
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def replay(self) -> None:
        self.gpu.calls.append("replay")

    def reset(self) -> None:
        """Gives the pool back, since 2.14 after a failure too."""
        if self.gpu.version == "2.14":
            self.gpu.default.capturing, self.gpu.recording = False, 0
        if self.ended or self.gpu.version == "2.14":
            self.gpu.uses -= 1


@pytest.fixture
def make_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gpu]:
    def make(version: str, fails: str | None = None) -> Gpu:
        gpu = Gpu(version, fails)
        for name, value in {
            "synchronize": lambda: None,
            "empty_cache": gpu.empty_cache,
            "current_stream": lambda: gpu.stream,
            "current_device": lambda: DEVICE,
            "set_stream": gpu.set_stream,
            "stream": gpu.on,
            "default_generators": {DEVICE: gpu.default},
            "CUDAGraph": lambda: Graph(gpu),
            "graph_pool_handle": lambda: POOL,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", "of the capture")
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", gpu.end)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", gpu.release)
        monkeypatch.setattr(torch.Tensor, "uniform_", draw)
        monkeypatch.setattr(capture, "_unended", [])
        if hasattr(torch.cuda, "_graph_annotations"):
            monkeypatch.setattr(torch.cuda._graph_annotations, "maybe_stamp_capture_root", lambda stream: None)
        return gpu

    return make


def draw(values: torch.Tensor, generator: Generator) -> torch.Tensor:
    """torch's rule outside of a capture; `increase` is the same for all distributions."""
    if generator.capturing:
        raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
    generator.state += 4
    return values


def expect_as_before(gpu: Gpu) -> None:
    assert gpu.stream == "of the step" and not gpu.recording
    assert not gpu.default.capturing and gpu.default.state == 5
    gpu.empty_cache()


VERSIONS = ["2.11", "2.13", "2.14"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_capture_that_succeeds_is_left_to_torch(version: str, make_gpu: Callable[..., Gpu]) -> None:
    gpu = make_gpu(version)
    replay, outputs = capture_cuda_graph(lambda: gpu.stream)
    assert outputs == "of the capture"
    replay()
    assert gpu.calls == ["replay"] and gpu.uses == 1
    expect_as_before(gpu)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("fails", ["begin", "inside", "end", "instantiate", "function"])
def test_a_capture_that_fails_leaves_nothing(version: str, fails: str, make_gpu: Callable[..., Gpu]) -> None:
    """`function`: the error is of no concern to CUDA, so that the capture itself ends well."""
    gpu = make_gpu(version, fails)

    def function() -> None:
        if fails in ("inside", "function"):
            raise ValueError("the first error")

    with pytest.raises(ValueError if fails in ("inside", "function") else RuntimeError) as caught:
        capture_cuda_graph(function)
    if fails in ("inside", "function"):
        assert str(caught.value) == "the first error"  # not that of the end
    expect_as_before(gpu)
    left = {"2.11": ("begin", "inside", "end"), "2.13": ("begin",), "2.14": ()}  # for us to end
    begun = fails in left[version]
    assert gpu.calls == (["end", "release"] if begun else [])
    assert gpu.uses == (1 if version == "2.13" and fails in ("inside", "end") else 0)  # 2.13 keeps the pool
    assert len(capture._unended) == begun


def test_what_a_failed_function_held_is_let_go(make_gpu: Callable[..., Gpu]) -> None:
    """Without a collection of garbage: an activation that outlives the error is memory that the next step lacks."""
    make_gpu("2.11", "inside")

    class Activation:
        alive = 0

        def __init__(self) -> None:
            Activation.alive += 1

        def __del__(self) -> None:
            Activation.alive -= 1

    def function() -> None:
        held = Activation()
        raise RuntimeError(f"with {held.alive} alive")

    with contextlib.suppress(RuntimeError):
        capture_cuda_graph(function)
    assert Activation.alive == 0


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("operation not permitted when stream is capturing"))
