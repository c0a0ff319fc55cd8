"""On a GPU: the captured step gives what the step gives, reads the rate from its tensor, and waits for nothing.

And what is left of a capture that fails is a process that trains on, and captures again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdfast.engine.loop import Trainer
from sdfast.ops.capture import capture_cuda_graph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_captured_and_plain_train_alike(stage: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    device = torch.device("cuda")
    plain = make_trainer(stage, directory=tmp_path / "plain", device=device, cuda_graph=False, precision="fp32")
    graphed = make_trainer(stage, directory=tmp_path / "graphed", device=device, precision="fp32")
    for trainer in (plain, graphed):
        trainer.run()
    states: list[Any] = [trainer.engine.graphed for trainer in (plain, graphed)]  # type: ignore[attr-defined]
    assert states == [None, True]
    for name, value in plain.engine.parameters.items():
        if not name.endswith("qkv.bias"):  # the key's part has no gradient but noise
            torch.testing.assert_close(value, graphed.engine.parameters[name], atol=2e-5, rtol=1e-3)


def test_a_step_waits_for_nothing(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer("distill", device=torch.device("cuda"))
    for _ in range(5):
        trainer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


HELD = 1 << 28  # bytes


def wait() -> None:
    torch.ones(3, device="cuda").sum().item()


def take_too_much() -> None:
    torch.empty(1 << 50, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("fail", [wait, take_too_much])
def test_a_failed_capture_leaves_the_process_as_it_was(fail: Callable[[], None]) -> None:
    """The streams, the memory (in its end torch 2.13 loses the pool), the random numbers, and pinned memory."""

    def function() -> None:
        held = torch.empty(HELD, dtype=torch.uint8, device="cuda")
        torch.rand(3, device="cuda")
        fail()
        held.fill_(0)

    torch.rand(3, device="cuda")
    torch.cuda.empty_cache()
    before, numbers = torch.cuda.memory_reserved(), torch.cuda.get_rng_state()
    for _ in range(2):
        try:
            capture_cuda_graph(function)
        except RuntimeError as error:
            said = str(error)
        else:
            pytest.fail("it was captured")
        assert ("out of memory" in said) == (fail is take_too_much), said
        gc.collect()
        torch.cuda.empty_cache()
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert torch.equal(torch.cuda.get_rng_state(), numbers)
        if not torch.__version__.startswith("2.13") or fail is take_too_much:
            assert torch.cuda.memory_reserved() - before < HELD / 2
    wanted = torch.rand(3, device="cuda")
    there = torch.arange(3.0).pin_memory().to("cuda", non_blocking=True)
    torch.cuda.set_rng_state(numbers)
    replay, drawn = capture_cuda_graph(lambda: torch.rand(3, device="cuda") + there)
    replay()
    torch.testing.assert_close(drawn, wanted + there)


@pytest.mark.parametrize("fail", [wait, take_too_much])
def test_training_goes_on_after_a_failed_capture(
    fail: Callable[[], None],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As without a graph; and the next trainer of the process has one."""

    def trainer_of(name: str, **settings: Any) -> Trainer:
        return make_trainer(
            "pretrain", directory=tmp_path / name, device=torch.device("cuda"), precision="fp32", **settings
        )

    plain, failing = trainer_of("plain", cuda_graph=False), trainer_of("failing")
    loss = failing.objective.loss

    def fails_in_a_capture(*inputs: Any) -> Any:
        parts = loss(*inputs)
        if torch.cuda.is_current_stream_capturing():
            fail()
        return parts

    monkeypatch.setattr(failing.objective, "loss", fails_in_a_capture)
    for trainer in (plain, failing):
        trainer.run()
        torch.cuda.empty_cache()
    engine: Any = failing.engine
    assert engine.graphed is False
    (said,) = [each.getMessage() for each in caplog.records if "not captured as a CUDA graph" in each.getMessage()]
    assert ("smaller batch_size" in said) == (fail is take_too_much)
    for name, value in plain.engine.parameters.items():  # type: ignore[attr-defined]
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(value, engine.parameters[name], atol=2e-5, rtol=1e-3)
    monkeypatch.undo()
    after: Any = trainer_of("after")
    after.run()
    assert after.engine.graphed
