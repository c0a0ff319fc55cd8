"""The loop: stop and resume to the same bits, micro-batches, records, and a loss that stops being finite."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdfast.config import Config
from sdfast.engine.loop import Trainer
from sdfast.engine.telemetry import Telemetry
from sdfast.errors import Interrupted, RunError
from sdfast.trackers.choose import trackers_of

STAGES = ("pretrain", "distill", "finetune")


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.objective.module.state_dict().items()}


def stop_after(trainer: Trainer, step: int, signal_number: int) -> None:
    """Send the process a signal while it works on `step`."""
    read = trainer.read

    def interrupting(rows: torch.Tensor) -> torch.Tensor:
        if trainer.steps_done == step:
            os.kill(os.getpid(), signal_number)
        return read(rows)

    trainer.read = interrupting


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("signal_number", "precision"), [(signal.SIGINT, "fp32"), (signal.SIGTERM, "fp32"), (signal.SIGINT, "bf16")]
)
def test_a_signal_saves_within_one_step_and_the_run_resumes_bit_for_bit(
    stage: str, signal_number: int, precision: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole = make_trainer(stage, directory=tmp_path / "whole", precision=precision)
    whole.run()
    cut = make_trainer(stage, directory=tmp_path / "cut", precision=precision)
    stop_after(cut, 6, signal_number)
    with pytest.raises(Interrupted) as stopped:
        cut.run()
    assert stopped.value.exit_code == 128 + signal_number
    assert cut.steps_done == 7
    torch.manual_seed(12345)  # the state must come from the checkpoint
    resumed = make_trainer(stage, directory=tmp_path / "cut", precision=precision)
    assert resumed.steps_done == 7
    resumed.run()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 7, 8, 12]
    assert resumed.seen == whole.seen


@pytest.mark.parametrize("stage", STAGES)
def test_records(stage: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer(stage).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    parts = {"pretrain": ["loss_mae"], "distill": ["loss_mae", "loss_distill"], "finetune": []}[stage]
    assert all(set(parts) | {"loss", "lr", "rate", "epoch"} <= set(line) for line in lines)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    if parts:
        assert lines[0]["loss"] == pytest.approx(sum(lines[0][part] for part in parts), rel=1e-5)


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_micro_batches_give_the_same_step(stage: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    whole = make_trainer(stage, directory=tmp_path / "1")
    parts = make_trainer(stage, directory=tmp_path / "3", accumulate=3)
    for trainer in (whole, parts):
        trainer.objective.module.double()
        trainer.objective.views.normalise.double()  # type: ignore[attr-defined]
        teacher = getattr(trainer.objective, "teacher", None)
        if teacher is not None:
            teacher.double()
        trainer.run()
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-9, atol=1e-11)


def test_micro_batches_of_bernoulli_masks_weigh_by_masked_patches(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer("pretrain")
    objective = trainer.objective
    objective.views.masking = objective.views.masking.model_copy(update={"mask": "bernoulli"})  # type: ignore[attr-defined]
    batch = trainer.order.batch(0)
    images, drawn = trainer.read(batch.rows), objective.draw(batch)
    whole = objective.loss(images, batch, drawn, slice(0, 16))["loss"]
    counts = drawn.mask.sum(1)
    assert counts.unique().numel() > 1
    halves = [objective.loss(images[p], batch, drawn, p)["loss"] for p in (slice(0, 5), slice(5, 16))]
    torch.testing.assert_close(sum(halves), whole, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_another_identity_is_not_resumed(make_trainer: Callable[..., Trainer]) -> None:
    make_trainer("pretrain", checkpoint_steps=5).run()
    assert make_trainer("pretrain").steps_done == 10
    assert make_trainer("pretrain", fingerprint="other").steps_done == 0


def test_damaged_checkpoints_are_skipped_with_a_warning(
    make_trainer: Callable[..., Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer("pretrain", checkpoint_steps=5).run()
    newest = tmp_path / "checkpoints" / "step-00000010" / "state-00000.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    assert make_trainer("pretrain").steps_done == 5
    assert "step-00000010" in caplog.text
    (tmp_path / "checkpoints" / "step-00000005" / "state-00000.safetensors").write_bytes(b"")
    assert make_trainer("pretrain").steps_done == 0


def test_a_large_state_is_written_in_several_files(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_trainer("pretrain", directory=tmp_path / "whole")
    whole.run()
    monkeypatch.setattr("sdfast.store.checkpoint._FILE_BYTES", 10_000)
    make_trainer("pretrain", checkpoint_steps=5).run()
    files = sorted((tmp_path / "checkpoints" / "step-00000010").glob("state-*.safetensors"))
    assert len(files) > 3
    resumed = make_trainer("pretrain")
    assert resumed.steps_done == 10
    resumed.run()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    files[2].unlink()
    assert make_trainer("pretrain").steps_done == 5


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer("pretrain", checkpoint_steps=3)
    with torch.no_grad():
        trainer.objective.module.get_parameter("encoder.norm.weight").fill_(float("nan"))
    with pytest.raises(RunError, match=r"loss of pretrain stopped being finite.*pretrain\.lr"):
        trainer.run()
    assert not list((tmp_path / "checkpoints").glob("step-*")) if (tmp_path / "checkpoints").exists() else True


def test_a_killed_writer_leaves_no_visible_checkpoint(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer("pretrain", checkpoint_steps=5).run()
    torn = tmp_path / "checkpoints" / ".staging-step-00000011"
    torn.mkdir()
    (torn / "state-00000.safetensors").write_bytes(b"half")
    assert make_trainer("pretrain").steps_done == 10


def test_tensorboard_events_when_asked(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    followers = trackers_of(Config().changed(["engine.tensorboard=true"]), None)
    make_trainer("pretrain", followers=followers).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("pretrain/loss")] == [4, 8, 12]


def test_a_terminal_shows_a_bar(make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "100")
    make_trainer("distill").run()
    assert "12/12" in screen.getvalue() and "distill 0.1" in screen.getvalue() and "img/s" in screen.getvalue()


def test_a_signal_while_a_record_is_written_saves_too(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer("pretrain")
    record = Telemetry.record

    def interrupted_record(self: Telemetry, step: int, values: dict[str, float]) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        record(self, step, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Telemetry, "record", interrupted_record)
        with pytest.raises(Interrupted):
            trainer.run()
    resumed = make_trainer("pretrain")
    assert resumed.steps_done == trainer.steps_done == 5  # the step after the one whose record was being written


def test_a_signal_in_the_last_step_stops_there(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer("pretrain")
    stop_after(trainer, 11, signal.SIGINT)
    with pytest.raises(Interrupted):
        trainer.run()
    resumed = make_trainer("pretrain")
    assert resumed.steps_done == 12
    resumed.run()
    assert resumed.seen == trainer.seen


def test_another_identitys_checkpoints_never_push_out_the_runs_own(
    make_trainer: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer("pretrain", checkpoint_steps=10).run()
    other = make_trainer("pretrain", fingerprint="other", checkpoint_steps=2, keep_checkpoints=1)
    assert other.steps_done == 0 and "identity changed" in caplog.text
    stop_after(other, 4, signal.SIGINT)
    with pytest.raises(Interrupted):
        other.run()
    assert make_trainer("pretrain", fingerprint="other").steps_done == 5
    assert make_trainer("pretrain").steps_done == 0


def test_what_killed_writers_left_is_swept(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".staging-step-00000003").mkdir(parents=True)
    make_trainer("pretrain", checkpoint_steps=5).run()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", "step-00000010"]


def test_garbage_in_the_records_does_not_stop_a_resumption(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    make_trainer("pretrain", checkpoint_steps=5).run()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\xff\xfe\x00{torn")
    make_trainer("pretrain").run()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 12
