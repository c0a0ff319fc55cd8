"""What a person sees while a stage runs: a rich bar on a terminal, plain lines otherwise, and metrics.jsonl always."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdfast import durable
from sdfast.engine.followers import Follower
from sdfast.log import clock_time, console, log

_PLAIN_SECONDS = 10.0
_WAIT_SHOWN = 0.05  # share of the time waited for data from which a person should know of it


class Telemetry:
    """Progress and metrics of one stage."""

    def __init__(
        self,
        stage: str,
        directory: Path,
        steps: int,
        start: int,
        unit: str = "img",
        followers: Sequence[Follower] = (),
    ) -> None:
        """Go on after `start` of so many steps; `unit` is what a row is called beside a rate."""
        self.stage, self.steps, self.unit = stage, steps, unit
        self.path = directory / "metrics.jsonl"
        with durable.explain_os_error(self.path):
            directory.mkdir(parents=True, exist_ok=True)
            durable.check_appendable(self.path)
            _drop_lines_after(self.path, start)
            self.file = open(self.path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.bar: Any = None
        self.task: Any = None
        if console().is_terminal:
            self.bar, self.task = _rich_bar(stage, steps, start)
        self.said = time.monotonic()
        self.followers = followers
        for each in followers:
            each.begin(stage, directory, steps, start)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Log the values of `step` (steps done so far).

        Raises:
            RunError: they cannot be written.
        """
        with durable.explain_os_error(self.path):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        for each in self.followers:
            each.record(step, values)
        parts = {name.removeprefix("loss_"): value for name, value in values.items() if name.startswith("loss_")}
        shown = " ".join(f"{name} {_short(value)}" for name, value in (parts or {"loss": values["loss"]}).items())
        if self.bar is not None:
            self.bar.update(self.task, completed=step, losses=shown, rate=_speed(values, self.unit, brief=True))
        elif time.monotonic() - self.said >= _PLAIN_SECONDS or step == self.steps:
            self.said = time.monotonic()
            left = clock_time((self.steps - step) * values["step_seconds"])
            log.info("%s %d/%d  %s  %s  %s left", self.stage, step, self.steps, shown, _speed(values, self.unit), left)

    def flush(self) -> None:
        """Put the recorded lines on the disk (before a checkpoint that relies on them).

        Raises:
            RunError: they cannot be written.
        """
        with durable.explain_os_error(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """End the bar and close the files.

        Raises:
            RunError: what was recorded last cannot be written.
        """
        if self.bar is not None:
            self.bar.stop()
        for each in self.followers:
            each.end()
        with durable.explain_os_error(self.path):
            self.file.close()


def _speed(values: dict[str, float], unit: str, brief: bool = False) -> str:
    """Rows a second and what they mean: the share of the device's peak, or of the time that data was waited for."""
    rows = values["rate"]
    rate = f"{rows:.0f} {unit}/s" if rows >= 10 else f"{_short(rows)} {unit}/s"
    waits = values["wait_share"] >= _WAIT_SHOWN
    if brief:  # the bar fits into eighty columns
        if waits:
            return f"{rate} {values['wait_share']:.0%} wait"
        return f"{rate} {values['peak_share']:.0%} peak" if "peak_share" in values else rate
    if "tflops" in values:
        tera = values["tflops"]
        rate += f"  {_short(tera)} TFLOP/s" if tera >= 0.1 else f"  {_short(1000 * tera)} GFLOP/s"
        if "peak_share" in values:
            rate += f" ({100 * values['peak_share']:.0f} % of peak)"
    return rate + (f"  {100 * values['wait_share']:.0f} % waiting for data" if waits else "")


def _short(value: float) -> str:
    """Three digits or so, at most five characters below 100,000."""
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"


def _drop_lines_after(path: Path, step: int) -> None:
    """Forget what was recorded after the checkpoint that the run resumes from (and a torn last line)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    durable.write_bytes(path, "".join(kept if step else []).encode())


def _rich_bar(stage: str, steps: int, start: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TextColumn("[green]{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console(),
    )
    task = bar.add_task(stage, total=steps, completed=start, losses="", rate="")
    bar.start()
    return bar, task
