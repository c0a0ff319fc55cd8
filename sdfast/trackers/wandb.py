"""Weights & Biases."""

from __future__ import annotations

import functools
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.log import log
from sdfast.trackers.tracker import Tracker

_DIGITS = 4  # bytes of an id


class WeightsAndBiases(Tracker):
    """One run of W&B, online or as WANDB_MODE says; its files are in `wandb/` of the run directory.

    The history can only be added to: of a run that is resumed, records after the resumed step stand there twice. Each
    stage has an axis of its own, `<stage>/step`.
    """

    name = "wandb"
    _run: Any = None

    def open(self, root: Path, title: str, kept: str | None) -> str:
        """Start a run, or go on with one."""
        _is_ours()
        import wandb

        settings = wandb.Settings(console="off", silent=True, reinit="create_new", x_disable_stats=True)
        self._run = wandb.init(
            id=kept or secrets.token_hex(_DIGITS),
            resume="allow",
            project=self.tracked.project,
            name=title,
            dir=str(root),
            config=dict(self.tracked.config),
            allow_val_change=True,
            settings=settings,
        )
        offline = f"offline; `wandb sync {root / 'wandb'}/offline-run-*` sends it"
        log.info("wandb: %s", offline if self._run.offline else self._run.url)
        return self._run.id

    def announce(self) -> None:
        """Give the stage its axis."""
        self._run.define_metric(f"{self.label}/step", hidden=True)
        self._run.define_metric(f"{self.label}/*", step_metric=f"{self.label}/step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A row of the history."""
        self._run.log({**values, f"{self.label}/step": step})

    def sum_up(self, values: Mapping[str, float]) -> None:
        """The summary."""
        self._run.summary.update(dict(values))

    def show(self, step: int, files: Mapping[str, Path]) -> None:
        """Images of the history."""
        import wandb

        self._run.log({name: wandb.Image(str(path), caption=f"step {step}") for name, path in files.items()})

    def close(self) -> None:
        """End the run; and the service that sends it, where nobody else can use it."""
        import wandb

        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=0 if self.done else 1)
        if _is_ours() and wandb.run is None:
            wandb.teardown()


@functools.cache
def _is_ours() -> bool:
    """Whether nobody else in this process had loaded the package when this was first asked."""
    return "wandb" not in sys.modules
