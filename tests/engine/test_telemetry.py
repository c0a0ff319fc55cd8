"""What a person reads while a stage runs, and the speed in the records."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sdfast.data.parallel import seconds_waited, waiting
from sdfast.engine import clock, machine
from sdfast.engine.clock import Lap, Rate
from sdfast.engine.loop import Trainer
from sdfast.engine.machine import only_matmul_dtype
from sdfast.engine.telemetry import Telemetry

VALUES = {"loss": 3.612, "loss_mae": 0.5123, "loss_distill": 3.1, "lr": 1e-4, "step_seconds": 0.25, "epoch": 3}
SPEED = {"rate": 241.2, "wait_share": 0.001, "tflops": 0.1134, "peak_share": 0.7231}


@pytest.fixture
def line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., str]:
    """The plain line of the values."""

    def say(values: dict[str, float] = VALUES, **speed: float) -> str:
        caplog.set_level(logging.INFO, logger="sdfast")
        telemetry = Telemetry("distill", tmp_path, 200, 0)
        telemetry.said -= 60
        telemetry.record(40, {**values, **speed})
        telemetry.close()
        return caplog.messages[-1]

    return say


def test_a_plain_line(line: Callable[..., str]) -> None:
    assert line(**SPEED) == (
        "distill 40/200  mae 0.512 distill 3.10  241 img/s  0.113 TFLOP/s (72 % of peak)  0:40 left"
    )


def test_a_loss_without_parts_is_named(line: Callable[..., str]) -> None:
    values = {name: value for name, value in VALUES.items() if not name.startswith("loss_")}
    assert "40/200  loss 3.61  241 img/s" in line(values, **SPEED)


def test_waiting_is_named_from_where_it_matters(line: Callable[..., str]) -> None:
    assert "waiting" not in line(**{**SPEED, "wait_share": 0.049})
    assert "(72 % of peak)  31 % waiting for data  0:40 left" in line(**{**SPEED, "wait_share": 0.31})


def test_a_plain_line_without_a_peak_or_without_flops(line: Callable[..., str]) -> None:
    assert "241 img/s  0.113 TFLOP/s  0:40" in line(rate=241.2, wait_share=0.0, tflops=0.1134)
    assert "0.860 img/s  53.2 GFLOP/s  0:40" in line(rate=0.86, wait_share=0.0, tflops=0.0532)
    assert "241 img/s  0:40" in line(rate=241.2, wait_share=0.0)


@pytest.mark.parametrize("waited", [0.0, 0.99])
def test_the_bar_fits_into_eighty_columns(waited: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    telemetry = Telemetry("distill", tmp_path, 20_000, 0)
    losses = {"loss_mae": 0.4123, "loss_distill": 98.3}
    telemetry.record(10_000, {**VALUES, **losses, **SPEED})
    telemetry.record(19_999, {**VALUES, **losses, **SPEED, "rate": 2440.0, "wait_share": waited})
    telemetry.bar.refresh()
    telemetry.close()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).strip().splitlines()[-1]
    share = "99% wait" if waited else "72% peak"
    for words in ("distill", "19999/20000", "mae 0.412 distill 98.3", "2440 img/s", share):
        assert words in last
    assert len(last.strip()) <= 80


def test_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "matmul_peak", lambda device, dtype, anew=False: {torch.float32: 4e9}[dtype])
    cpu = torch.device("cpu")
    known = Rate(lambda: 2e6, cpu, torch.float32).of(Lap(seconds=2.0, steps=1, rows=300, waited=0.5))
    assert known == {"rate": 150.0, "wait_share": 0.25, "tflops": 3e-4, "peak_share": pytest.approx(0.075)}
    assert Rate(lambda: 2e6, cpu, None).of(Lap(2.0, 1, 300, 3.0)) == {"rate": 150.0, "wait_share": 1.0, "tflops": 3e-4}
    assert Rate(None, cpu, torch.float32).of(Lap(2.0, 1, 300, 0.0)) == {"rate": 150.0, "wait_share": 0.0}


def test_the_flops_of_a_row_are_counted_once_and_are_no_training_time(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "matmul_peak", lambda device, dtype, anew=False: 1e9)
    counted: list[float] = []

    def count() -> float:
        time.sleep(2.0)
        counted.append(1e6)
        return 1e6

    trainer = make_trainer("pretrain", flops_per_row=count, checkpoint_steps=6)
    assert counted == []
    trained = trainer.run()
    assert counted == [1e6] and trained.seconds < 2
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step_seconds"] for record in records) < 1  # in the laps of 2 steps that follow it too


def test_the_laps_of_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = [100.0], [0.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(clock, "seconds_waited", lambda: waited[0])

    def pass_by(seconds: float, of_it_waiting: float) -> None:
        now[0] += seconds
        waited[0] += of_it_waiting

    laps = clock.Clock(seconds=7.0)
    pass_by(50, 20)  # before the start
    laps.start(10, 160)
    pass_by(4, 1)
    assert laps.lap(14, 220) == Lap(seconds=4, steps=4, rows=60, waited=1)
    pass_by(1, 0.5)
    with laps.stopped():
        pass_by(30, 10)
    pass_by(1, 0.5)
    assert laps.lap(15, 236) == Lap(seconds=2, steps=1, rows=16, waited=1)
    assert laps.seconds == 7 + 4 + 2


def test_waiting_is_counted_also_when_it_ends_in_an_error() -> None:
    before = seconds_waited()

    def failing() -> None:
        with waiting():
            time.sleep(0.01)
            raise OSError

    with pytest.raises(OSError):
        failing()
    assert seconds_waited() - before >= 0.01


def test_the_records_of_a_stage_that_waits(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "matmul_peak", lambda device, dtype, anew=False: 1e9)
    trainer = make_trainer("pretrain", flops_per_row=lambda: 1e6)
    read = trainer.read

    def slow(rows: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return read(rows)

    trainer.read = slow
    trainer.run()
    for record in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        assert record["tflops"] == pytest.approx(record["rate"] * 1e-6)
        assert record["peak_share"] == pytest.approx(record["rate"] * 1e-3)
        assert 0.02 / record["step_seconds"] <= record["wait_share"] <= 1


def test_products_of_several_dtypes_have_no_peak(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    module = make_trainer("pretrain").objective.module
    cpu = torch.device("cpu")
    assert only_matmul_dtype("auto", cpu, module) == torch.float32
    assert only_matmul_dtype("bf16", cpu, module) == torch.bfloat16
    module.decoder.double()  # type: ignore[union-attr,operator]
    assert only_matmul_dtype("auto", cpu, module) is None


@pytest.mark.parametrize("has_kernels", [True, False])
def test_it_is_said_where_bf16_saves_no_time(
    has_kernels: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "has_bf16_products", lambda: has_kernels)
    with caplog.at_level("INFO"), machine.fp32_matmul("bf16", torch.device("cpu")):
        pass
    assert ("fp32 is as fast here" in caplog.text) is not has_kernels
