"""A graphed step: warmed up, captured once, fed through static tensors, and left for what does not fit. No GPU needed.

The capture is a stand-in that calls the function again at every replay, as a graph would run the same kernels on the
same addresses; the real one is in test_graph_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sdfast.data.order import Batch
from sdfast.engine.graph import GraphedStep
from sdfast.engine.loop import Trainer
from sdfast.engine.optim import build_optimizer, set_learning_rate
from sdfast.modalities.images.masking import patch_mask

CPU = torch.device("cpu")


def stand_in(log: list[str]) -> Callable[..., Any]:
    """Replays read what lies in the captured tensors and write into the captured outputs."""

    def capture(function: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
        log.append("capture")
        outputs: dict[str, Tensor] = {"loss": torch.zeros(())}

        def replay() -> None:
            log.append("replay")
            for name, value in function().items():
                outputs.setdefault(name, torch.zeros_like(value)).copy_(value)

        return replay, outputs

    return capture


@pytest.mark.parametrize("stage", ["pretrain", "distill", "finetune"])
def test_training_is_the_same(stage: str, make_trainer: Callable[..., Trainer], tmp_path: Any) -> None:
    plain = make_trainer(stage, directory=tmp_path / "plain")
    graphed = make_trainer(stage, directory=tmp_path / "graphed")
    assert graphed.objective.static
    log: list[str] = []
    for trainer in (plain, graphed):  # both read the rate from a tensor, in float32
        rule = trainer.objective.decay_rule
        trainer.engine.optimizer = build_optimizer(trainer.engine.parameters.items(), trainer.config, rule, CPU)
    graphed.engine._computed = GraphedStep(graphed.engine._compute, CPU, 16, stand_in(log))
    for trainer in (plain, graphed):
        torch.manual_seed(0)  # dropout
        trainer.run()
    assert (
        log[0] == "capture" and log.count("capture") == 1 and log.count("replay") == 6
    )  # of 12 steps, 3 are partial, 3 warm up
    for one, other in zip(plain.engine.parameters.values(), graphed.engine.parameters.values(), strict=True):
        assert torch.equal(one, other)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("plain", "graphed")]
    assert [line.split('"lr"')[0] for line in lines[0]] == [line.split('"lr"')[0] for line in lines[1]]


def test_new_inputs_reach_the_captured_tensors() -> None:
    seen = []

    def compute(images: Tensor, batch: Batch, drawn: Any) -> dict[str, Tensor]:
        seen.append((images, batch.rows, drawn.visible_ids))
        return {"loss": images.float().sum() + batch.rows.sum() + drawn.visible_ids.sum()}

    step = GraphedStep(compute, CPU, 4, stand_in([]))
    for number in range(6):
        rows = torch.arange(4) + number
        inputs = (torch.full((4, 2), number, dtype=torch.uint8), Batch(0, rows), patch_mask(0, 0, rows, 9, 0.75))
        assert float(step(*inputs)["loss"]) == float(compute(*inputs)["loss"])
    static = seen[-2]
    assert all(one is other for one, other in zip(static, seen[-4], strict=True)) and static[0] is not inputs[0]


def failing(error: Exception, dropped: list[str]) -> GraphedStep:
    """A step whose capture fails so; it writes down when what a step leaves is dropped."""

    def fails(function: Any) -> Any:
        raise error

    return GraphedStep(
        lambda images, batch, drawn: {"loss": images.float().sum()}, CPU, 2, fails, lambda: dropped.append("dropped")
    )


def losses(step: GraphedStep) -> list[float]:
    return [float(step(torch.full((2,), float(n)), Batch(0, torch.arange(2)), None)["loss"]) for n in range(8)]


def test_a_capture_that_fails_is_said_once_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    dropped: list[str] = []
    step = failing(RuntimeError("operation not permitted when stream is capturing"), dropped)
    assert losses(step) == [2.0 * n for n in range(8)] and not step.captured
    assert len([r for r in caplog.records if "not captured as a CUDA graph (operation not" in r.getMessage()]) == 1
    assert len(dropped) == 2  # before the attempt, for its memory, and after it


def test_a_capture_without_memory_says_what_to_do(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arm of a benchmark that runs ungraphed must not pass for a graphed one."""
    dropped: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: dropped.append("given back"))
    step = failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), dropped)
    assert losses(step) == [2.0 * n for n in range(8)] and not step.captured
    (said,) = (record.getMessage() for record in caplog.records)
    assert "out of memory" in said and "smaller batch_size" in said and "engine.cuda_graph=false" in said
    assert dropped == ["dropped", "dropped", "given back"]


def test_an_error_of_the_step_itself_is_raised() -> None:
    """It is met in the capture, which has no graph then, and again in the step that is computed right after."""
    calls = []

    def compute(images: Tensor, batch: Batch, drawn: Any) -> dict[str, Tensor]:
        calls.append(len(images))
        if len(calls) > 3:
            raise RuntimeError("shapes do not fit")
        return {"loss": images.sum()}

    def capture(function: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
        return lambda: None, function()

    step = GraphedStep(compute, CPU, 2, capture)
    batch = (torch.ones(2), Batch(0, torch.arange(2)), None)
    for _ in range(3):
        step(*batch)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        step(*batch)
    assert len(calls) == 5 and not step.captured


def test_an_engine_says_whether_its_step_is_a_graph(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer("pretrain")
    engine: Any = trainer.engine
    assert engine.graphed is None  # on a CPU none is asked for
    engine._computed = GraphedStep(engine._compute, CPU, 16, stand_in([]))
    graphed = []
    for _ in range(5):
        trainer.step()
        graphed.append(engine.graphed)
    assert graphed == [False, False, False, False, True]  # three warm up, and the fourth batch is partial


def test_a_capture_that_fails_half_way_leaves_nothing_in_the_next_step(
    make_trainer: Callable[..., Trainer], tmp_path: Any
) -> None:
    """What it computed was never run: its gradients are of no numbers."""

    def fails(function: Any) -> Any:
        for parameter in graphed.engine.parameters.values():
            parameter.grad = torch.full_like(parameter, float("nan"))
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = make_trainer("pretrain", directory=tmp_path / "plain")
    graphed = make_trainer("pretrain", directory=tmp_path / "graphed")
    graphed.engine._computed = GraphedStep(graphed.engine._compute, CPU, 16, fails)
    for trainer in (plain, graphed):
        trainer.run()
    assert all(torch.equal(value, graphed.engine.parameters[name]) for name, value in plain.engine.parameters.items())


def test_the_rate_is_set_where_it_is_kept(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer("pretrain")
    for rate_on in (None, CPU):
        optimizer = build_optimizer(trainer.engine.parameters.items(), trainer.config, "pretrain", rate_on)
        held = optimizer.param_groups[0]["lr"]
        set_learning_rate(optimizer, 0.25)
        assert all(float(group["lr"]) == 0.25 for group in optimizer.param_groups)
        assert rate_on is None or optimizer.param_groups[0]["lr"] is held


def test_the_optimizer_lets_itself_be_captured(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """torch's own check, on a stream that says it is capturing, and on one that warms up."""
    trainer = make_trainer("pretrain")
    optimizer = build_optimizer(trainer.engine.parameters.items(), trainer.config, "pretrain", CPU)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    for capturing in (False, True):
        stream = SimpleNamespace(is_capturing=lambda capturing=capturing: capturing)
        monkeypatch.setattr(torch.accelerator, "current_stream", lambda stream=stream: stream)
        optimizer._accelerator_graph_capture_health_check()
    assert not recwarn.list


def test_only_fixed_shapes_are_captured(make_trainer: Callable[..., Trainer]) -> None:
    objective: Any = make_trainer("distill").objective
    assert objective.static
    objective.views.masking = objective.views.masking.model_copy(update={"mask": "bernoulli"})
    assert not objective.static
