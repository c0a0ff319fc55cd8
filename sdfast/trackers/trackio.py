"""trackio."""

from __future__ import annotations

import contextlib
import io
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.log import log
from sdfast.trackers.tracker import Tracker

_DIGITS = 3  # bytes that tell apart runs of one name


class Trackio(Tracker):
    """One run of trackio, in its database on this machine, or as TRACKIO_SPACE_ID and TRACKIO_SERVER_URL say.

    The history can only be added to: of a run that is resumed, records after the resumed step stand there twice, at the
    same steps. A run is known by its name, which therefore ends with some digits.
    """

    name = "trackio"
    _run: Any = None

    def open(self, root: Path, title: str, kept: str | None) -> str:
        """Start a run, or go on with one."""
        import trackio

        name = kept or f"{title}-{secrets.token_hex(_DIGITS)}"
        with contextlib.redirect_stdout(io.StringIO()):  # what it prints belongs to no command
            self._run = trackio.init(
                self.tracked.project,
                name=name,
                config=dict(self.tracked.config),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        log.info("trackio: run %s of project %s; `trackio show` shows it", name, self.tracked.project)
        return name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics at a step."""
        self._run.log(dict(values), step=step)

    def sum_up(self, values: Mapping[str, float]) -> None:
        """Metrics of step 0."""
        self.log(0, values)

    def show(self, step: int, files: Mapping[str, Path]) -> None:
        """Images at a step."""
        import trackio

        self._run.log({name: trackio.Image(str(path)) for name, path in files.items()}, step=step)

    def close(self) -> None:
        """Write what is still to be written."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()
