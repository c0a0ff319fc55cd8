"""A disk that refuses what is added to a file: the sentence names the file, and what is only a view is gone without."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdfast.config import Config
from sdfast.engine.loop import Trainer
from sdfast.engine.telemetry import Telemetry
from sdfast.errors import RunError, UserError
from sdfast.log import attach_file, log
from sdfast.trackers.choose import trackers_of

FULL = Path("/dev/full")
VALUES = {"loss": 1.0, "rate": 5.0, "wait_share": 0.0, "step_seconds": 0.1}
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@needs_full
def test_a_log_that_cannot_be_written_is_said_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = attach_file(tmp_path / "log.txt")
    assert isinstance(handler, logging.FileHandler)
    log.info("before")
    handler.stream.close()
    handler.stream = open(FULL, "w")  # noqa: SIM115 (closed by the handler)
    for _ in range(3):
        log.info("after")
    handler.close()
    log.removeHandler(handler)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and str(tmp_path / "log.txt") in warnings[0] and "the disk is full" in warnings[0]
    assert (tmp_path / "log.txt").read_text().endswith("INFO before\n")
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_name_that_is_no_text_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "propagate", False)  # else pytest keeps it, and pytest-xdist cannot send it
    handler = attach_file(tmp_path / "log.txt")
    log.info("data: %s", os.fsdecode(b"caf\xe9"))
    handler.close()
    log.removeHandler(handler)
    assert "data: caf\\udce9" in (tmp_path / "log.txt").read_text()
    assert "Traceback" not in capsys.readouterr().err


@needs_full
@pytest.mark.parametrize("call", ["record", "flush", "close"])
def test_metrics_that_cannot_be_written_end_the_run_in_one_sentence(call: str, tmp_path: Path) -> None:
    telemetry = Telemetry("pretrain", tmp_path, 10, 0)
    telemetry.file.close()
    telemetry.file = open(FULL, "a", buffering=1 if call == "record" else 1 << 16, encoding="utf-8")  # noqa: SIM115
    if call != "record":
        telemetry.record(1, VALUES)
    act: dict[str, Callable[[], None]] = {
        "record": lambda: telemetry.record(1, VALUES),
        "flush": telemetry.flush,
        "close": telemetry.close,
    }
    with pytest.raises(RunError) as caught:
        act[call]()
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'metrics.jsonl'}: the disk is full")


def test_events_that_cannot_be_written_are_said_once_and_the_run_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    make_trainer: Callable[..., Trainer],
) -> None:
    record_writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

    def refuse(self: Any, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(record_writer.RecordWriter, "write", refuse)
    raised: list[Any] = []
    hook = raised.append
    monkeypatch.setattr(threading, "excepthook", hook)
    followers = trackers_of(Config().changed(["engine.tensorboard=true"]), None)
    make_trainer("pretrain", followers=followers).run()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert not raised and threading.excepthook == hook
    said = [record.getMessage() for record in caplog.records if "tensorboard" in record.getMessage()]
    assert len(said) == 1 and str(tmp_path / "tensorboard") in said[0] and "the disk is full" in said[0]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_added_to(name: str, kind: str, tmp_path: Path) -> None:
    make: dict[str, Callable[[Path], None]] = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/null"),
        "folder": os.mkdir,
    }
    make[kind](tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is no file that could be added to; move it away"):
        attach_file(tmp_path / name) if name == "log.txt" else Telemetry("pretrain", tmp_path, 10, 0)


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "log.txt").symlink_to("elsewhere")
    handler = attach_file(tmp_path / "log.txt")
    log.info("more")
    handler.close()
    log.removeHandler(handler)
    assert (tmp_path / "elsewhere").read_text().splitlines()[-1].endswith("INFO more")


@pytest.mark.parametrize("limit", [600, 9_000])
def test_a_file_that_may_not_grow_is_named(limit: int, tmp_path: Path) -> None:
    """With a limit of the process, which is to its files as a full disk is: of the pack's, and of a checkpoint's."""
    script = (
        "import resource, sys; from sdfast.cli.main import run;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY)); sys.exit(run(sys.argv[1:]))"
    )
    words = ["train", "--stage", "pretrain", "--out", str(tmp_path / "run"), "data.limit=9", "pretrain.steps=3"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"sdfast: cannot write {tmp_path / 'run'}"), done.stderr
    assert "a file may not grow so large here" in last and "Traceback" not in done.stderr


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_cannot_be_written_is_named(unbuffered: str) -> None:
    with open(FULL, "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sdfast", "config", "show"],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert (done.returncode, done.stderr) == (1, "sdfast: the standard output: no space left on device.\n")
