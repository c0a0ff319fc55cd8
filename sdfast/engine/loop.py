"""The training loop: batches by address, one optimiser step each, durable checkpoints, a clean stop on a signal."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdfast.config import EngineConfig, OptimisationConfig
from sdfast.data.order import BatchOrder
from sdfast.data.waiting import seconds_waited, waiting
from sdfast.engine import checkpoint
from sdfast.engine.agreement import Agreement
from sdfast.engine.allocator import freed_pages_kept
from sdfast.engine.arithmetic import arithmetic, changed_arithmetic
from sdfast.engine.base import Sharing, make_engine
from sdfast.engine.optim import learning_rate
from sdfast.engine.precision import full_float32, matmul_dtype, matmul_precision
from sdfast.engine.rate import Rate
from sdfast.engine.selection import Best, Selection
from sdfast.engine.signals import StopRequest, stop_on_signal
from sdfast.engine.telemetry import Telemetry
from sdfast.engine.watchdog import Watchdog
from sdfast.errors import Interrupted, RunError
from sdfast.locks import check_held
from sdfast.log import log
from sdfast.models.compiled import nothing_new_compiled
from sdfast.objectives.base import Objective
from sdfast.ranks import explain_lost_process
from sdfast.rng import derive_seed


@dataclass(frozen=True)
class Trained:
    """What a finished stage took, and which weights were kept where they were compared."""

    steps: int
    seconds: float
    rows: int
    best: Best | None = None

    @property
    def rows_per_second(self) -> float:
        """Training rate over the whole stage."""
        return self.rows / self.seconds if self.seconds else 0.0


class Trainer:
    """One stage's training: the objective, the optimiser and the place where the state lives."""

    def __init__(
        self,
        stage: str,
        objective: Objective,
        config: OptimisationConfig,
        engine: EngineConfig,
        order: BatchOrder,
        images: Callable[[Tensor], Any],
        directory: Path,
        inputs: dict[str, Any],
        resume: bool = True,
        flops_per_image: float | None = None,
        sharing: Sharing = Sharing(),  # noqa: B008 (frozen)
        unit: str = "img",
        selection: Selection | None = None,
    ) -> None:
        """Set up a stage.

        Args:
            stage: its name, in messages and records.
            objective: what is minimised; its module is trained in place.
            config: steps, batch size, optimisation.
            engine: how to run.
            order: the batches.
            images: rows [B] int64 (CPU) -> [B, H, W, C] uint8, or a `TokenBatch`, on the module's device.
            directory: where `checkpoints/` and `metrics.jsonl` go.
            inputs: everything that decides the result, by name; only checkpoints of the same are resumed.
            resume: whether to look for a checkpoint.
            flops_per_image: of one image's step, for the records; without it they hold no FLOP/s.
            sharing: over which processes; each has all the same arguments.
            unit: what a row is called beside a rate: `img`, `seq`.
            selection: how to choose the weights that the module has in the end; the last ones when None.
        """
        self.stage, self.objective, self.config, self.settings = stage, objective, config, engine
        self.order, self.images, self.directory, self.inputs = order, images, directory, inputs
        self.ranks = sharing.ranks
        self.device = next(iter(objective.module.parameters())).device
        self.flops_per_image, self.unit = flops_per_image, unit
        self.step, self.seconds, self.seen = 0, 0.0, 0
        self.selection, self.best = selection, None
        found = self._checkpoint(resume)
        if found is not None:
            state = {n.removeprefix("module/"): found.read(n) for n in found.names if n.startswith("module/")}
            objective.module.load_state_dict(state)
        self.engine = make_engine(objective, stage, config, engine, self.device, sharing)
        if found is not None:
            self.engine.load(found.read, found.names)
            self.step, self.seconds, self.seen = found.step, found.values["seconds"], found.values["seen"]
            self.best = Best.of(found)
            log.info("%s: resuming at step %d of %d", stage, self.step, config.steps)
            if (changed := changed_arithmetic(found.values.get("arithmetic"), arithmetic(self.device))) is not None:
                log.warning("%s: the last bits may differ from those of an uninterrupted run (%s)", stage, changed)

    def run(self) -> Trained:
        """Train to the last step.

        Raises:
            RunError: the loss stopped being finite, or another process was lost.
            Interrupted: a signal came; the state is saved.
        """
        self.objective.module.train()
        with contextlib.ExitStack() as stack:
            telemetry = None
            if self.ranks.is_first:
                telemetry = Telemetry(
                    self.stage,
                    self.directory,
                    self.config.steps,
                    self.step,
                    tensorboard=self.settings.tensorboard,
                    unit=self.unit,
                )
                stack.callback(telemetry.close)
            stop = stack.enter_context(stop_on_signal(patient=self.ranks.world > 1))
            if self.device.type == "cpu":
                stack.enter_context(freed_pages_kept())
            stack.enter_context(matmul_precision(self.settings.precision, self.device))
            stack.enter_context(explain_lost_process(self.ranks))
            watchdog = stack.enter_context(Watchdog(self.ranks, self.settings.timeout_seconds, self.stage))
            self._run(telemetry, stop, watchdog)
            self.engine.release()
        if self.best is not None:
            self.objective.module.load_state_dict(self.best.state)
            log.info("%s: kept the weights of step %d of %d", self.stage, self.best.step, self.config.steps)
        return Trained(self.config.steps, self.seconds, self.seen, self.best)

    def _run(self, telemetry: Telemetry | None, stop: StopRequest, watchdog: Watchdog) -> None:
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        products = matmul_dtype(self.settings.precision, self.device, self.objective.module)
        rates = Rate(self.flops_per_image, self.device, products, self.ranks.world)
        agreement = Agreement(self.ranks)
        saved = lap = time.monotonic()
        lap_step, lap_seen, lap_waited = self.step, self.seen, seconds_waited()
        while self.step < self.config.steps:
            parts = self._one_step()
            watchdog.alive()
            finite &= torch.isfinite(parts["loss"])
            self.step += 1
            done = self.step == self.config.steps
            late = self.ranks.is_first and time.monotonic() - saved >= self.settings.checkpoint_seconds
            signal_number, due = agreement.of(stop.signal_number or 0, late)
            every = self.settings.checkpoint_steps
            due = ((due or (every is not None and self.step % every == 0)) and not done) or signal_number
            compared = self.selection is not None and self.selection.due(self.step, self.config.steps)
            if due or done or compared or self.step % self.settings.log_every == 0:
                values = self._summed(parts, finite)  # waits for the device
                now = time.monotonic()
                self.seconds += now - lap
                step_seconds = (now - lap) / (self.step - lap_step)
                values["lr"] = learning_rate(self.config, self.step - 1)
                values |= rates.of(self.seen - lap_seen, now - lap, seconds_waited() - lap_waited)
                values["step_seconds"] = step_seconds
                values["epoch"] = (self.step - 1) // self.order.batches_per_epoch
                if compared:
                    watchdog.pause()
                    values |= self._compare()
                    watchdog.alive()
                    now = time.monotonic()
                if telemetry is not None:
                    telemetry.record(self.step, values)
                lap, lap_step, lap_seen, lap_waited = now, self.step, self.seen, seconds_waited()
            if due:
                if telemetry is not None:
                    telemetry.flush()
                self._save()
                watchdog.alive()
                saved = lap = time.monotonic()
            if signal_number:
                raise Interrupted(
                    f"stopped at step {self.step} of {self.config.steps} of {self.stage}; the state is saved, and the"
                    " same command continues from here.",
                    signal_number,
                )
        agreement.last()

    def _one_step(self) -> dict[str, Tensor]:
        batch = self.order.share(self.step, self.ranks)
        self.objective.announce(batch)
        with waiting():
            images = self.images(batch.rows)
        drawn = self.objective.draw(batch)
        if self.step + 1 < self.config.steps:
            self.objective.announce(self.order.share(self.step + 1, self.ranks))
        # Dropout: a pure function of the step and the process, so that a resumed run needs no generator's state.
        torch.manual_seed(derive_seed(self.order.seed, "dropout", self.step, self.ranks.rank))
        whole = batch.count == min(self.config.batch_size, len(self.order.rows))
        with contextlib.nullcontext() if whole else nothing_new_compiled(self.objective.module):
            parts = self.engine.step(images, batch, drawn, learning_rate(self.config, self.step))
        self.seen += batch.count
        return parts

    def _summed(self, parts: dict[str, Tensor], finite: Tensor) -> dict[str, float]:
        """The loss and its parts over all processes.

        Raises:
            RunError: in one of them the loss has not been finite.
        """
        mine = [*(float(value) for value in parts.values()), float(~finite)]
        *values, wrong = (sum(each) for each in zip(*self.ranks.exchange(mine), strict=True))
        if wrong:
            raise RunError(
                f"the loss of {self.stage} stopped being finite at or before step {self.step}; lower {self.stage}.lr"
                f" (now {self.config.lr:g}) or set engine.precision=fp32, and run the same command again."
            )
        return dict(zip(parts, values, strict=True))

    def _compare(self) -> dict[str, float]:
        """Keep the weights as they are now if they are the best so far; their scores, for the record."""
        assert self.selection is not None
        prefix, by = "module/", self.selection.by
        named = ((name, read) for name, read in self.engine.state() if name.startswith(prefix))
        state = {name.removeprefix(prefix): read().detach().to("cpu", copy=True) for name, read in named}
        with full_float32():
            scores = self.ranks.exchange(self.selection.score(state))[0]  # as process 0 sees it, whatever the machines
        best = self.best
        if best is None or scores[by] > best.scores[by]:
            self.best, told = Best(self.step, scores, state), "the best so far"
        else:
            told = f"not above that of step {best.step}, {best.scores[by]:.4f}"
        log.info("%s: step %d: %s %.4f, %s", self.stage, self.step, by, scores[by], told)
        return dict(scores)

    def _save(self) -> None:
        self.ranks.first(lambda: check_held(self.directory))
        values: dict[str, Any] = {"seconds": self.seconds, "seen": self.seen, "arithmetic": arithmetic(self.device)}
        state = self.engine.state()
        if self.best is not None:
            values |= self.best.values()
            state = itertools.chain(state, self.best.tensors())
        if self.ranks.is_first:
            keep = self.settings.keep_checkpoints
            checkpoint.save(self.directory / "checkpoints", self.step, self.inputs, state, values, keep)
        else:
            for _, read in state:
                read()

    def _checkpoint(self, resume: bool) -> checkpoint.Checkpoint | None:
        """What to continue from: process 0 verifies it, and all read it."""
        directory = self.directory / "checkpoints"
        if not resume:
            self.ranks.first(lambda: checkpoint.clear(directory))
            return None
        path = self.ranks.first(lambda: checkpoint.newest(directory, self.inputs))
        return None if path is None else checkpoint.Checkpoint.open(path)
