"""The training loop: batches by address, one optimiser step each, durable checkpoints, a clean stop on a signal."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdfast.config import EngineConfig, OptimisationConfig
from sdfast.data.order import BatchOrder
from sdfast.data.parallel import waiting
from sdfast.engine.clock import Clock, Lap, Rate
from sdfast.engine.faults import FAULT, FiniteSteps, keep_fault, run_of
from sdfast.engine.followers import Follower
from sdfast.engine.machine import (
    arithmetic,
    changed_arithmetic,
    fp32_matmul,
    freed_pages_kept,
    only_matmul_dtype,
    resolve_precision,
    torch_fp32_matmul,
)
from sdfast.engine.optim import learning_rate
from sdfast.engine.selection import Best, Selection
from sdfast.engine.stopping import Agreement, StopRequest, Watchdog, stop_on_signal
from sdfast.engine.telemetry import Telemetry
from sdfast.engine.zero import Sharing, make_engine
from sdfast.errors import Interrupted, RunError
from sdfast.locks import check_held
from sdfast.log import log
from sdfast.models.compiled import nothing_new_compiled
from sdfast.objectives.base import Objective
from sdfast.ranks import explain_lost_process
from sdfast.rng import derive_seed
from sdfast.store import checkpoint


@dataclass(frozen=True)
class TrainingData:
    """What a stage learns from.

    Attributes:
        order: which rows each step takes.
        read: rows [B] int64 (CPU) -> the objective's inputs, [B, H, W, C] uint8 or a `TokenBatch`, on its device.
        unit: what a row is called beside a rate: `img`, `seq`.
        flops_per_row: counts those of a row's step, in the mean; called once, when a rate is first reported. Without it
            records hold no FLOP/s.
        names: rows [B] int64 -> what they are called in the source; without it a fault is kept without.
    """

    order: BatchOrder
    read: Callable[[Tensor], Any]
    unit: str = "img"
    flops_per_row: Callable[[], float] | None = None
    names: Callable[[Tensor], list[str]] | None = None


@dataclass(frozen=True)
class StageFolder:
    """Where a stage keeps its state and its records.

    Attributes:
        directory: of `checkpoints/` and `metrics.jsonl`.
        identity: everything that decides the result, by name; only checkpoints of the same are resumed.
        resume: whether to look for a checkpoint; those that are there are removed when not.
    """

    directory: Path
    identity: dict[str, Any]
    resume: bool = True


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
    """One stage's training: the objective, the optimiser and the place where the state lives.

    Attributes:
        steps_done: of the stage, those before a resumption among them.
        seen: rows that they took, over all processes.
    """

    def __init__(
        self,
        stage: str,
        objective: Objective,
        config: OptimisationConfig,
        engine: EngineConfig,
        data: TrainingData,
        folder: StageFolder,
        sharing: Sharing = Sharing(),  # noqa: B008 (frozen)
        selection: Selection | None = None,
        followers: Sequence[Follower] = (),
    ) -> None:
        """Set up a stage, at its beginning or where a checkpoint left it.

        Args:
            stage: its name, in messages and records.
            objective: what is minimised; its module is trained in place.
            config: steps, batch size, optimisation.
            engine: how to run.
            data: what it learns from.
            folder: where it keeps its state and records.
            sharing: over which processes; each has all the same arguments.
            selection: how to choose the weights that the module has in the end; the last ones when None.
            followers: who is told in process 0 how it goes.

        Raises:
            UserError: what `make_engine` cannot do with these settings.
        """
        self.stage, self.objective, self.config, self.settings = stage, objective, config, engine
        self.order, self.read, self.unit, self.flops_per_row = data.order, data.read, data.unit, data.flops_per_row
        self.names, self.zero_stage = data.names, sharing.zero.stage
        self.directory, self.identity = folder.directory, folder.identity
        self.ranks = sharing.ranks
        self.device = next(iter(objective.module.parameters())).device
        self.steps_done, self.seen, self.clock = 0, 0, Clock()
        self.selection, self.best, self.followers = selection, None, followers
        found = self._checkpoint(folder.resume)
        if found is not None:
            state = {n.removeprefix("module/"): found.read(n) for n in found.names if n.startswith("module/")}
            objective.module.load_state_dict(state)
        self.engine = make_engine(objective, stage, config, engine, self.device, sharing)
        if found is not None:
            self.engine.load(found.read, found.names)
            self.steps_done, self.seen, self.clock = found.step, found.values["seen"], Clock(found.values["seconds"])
            self.best = Best.of(found)
            log.info("%s: resuming at step %d of %d", stage, self.steps_done, config.steps)
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
                steps, start = self.config.steps, self.steps_done
                telemetry = Telemetry(self.stage, self.directory, steps, start, self.unit, self.followers)
                stack.callback(telemetry.close)
            stop = stack.enter_context(stop_on_signal(patient=self.ranks.world > 1))
            stack.enter_context(freed_pages_kept(self.device.type))
            stack.enter_context(fp32_matmul(self.settings.precision, self.device))
            stack.enter_context(explain_lost_process(self.ranks))
            watchdog = stack.enter_context(Watchdog(self.ranks, self.settings.timeout_seconds, self.stage))
            self._loop(telemetry, stop, watchdog)
            self.engine.release()
        if self.best is not None:
            self.objective.module.load_state_dict(self.best.state)
            log.info("%s: kept the weights of step %d of %d", self.stage, self.best.step, self.config.steps)
        return Trained(self.config.steps, self.clock.seconds, self.seen, self.best)

    def _loop(self, telemetry: Telemetry | None, stop: StopRequest, watchdog: Watchdog) -> None:
        """Batch, step, clock, log, compare, save, stop."""
        dtype = only_matmul_dtype(self.settings.precision, self.device, self.objective.module)
        rate = Rate(self.flops_per_row, self.device, dtype, self.ranks.world)
        agreement = Agreement(self.ranks)
        finite = FiniteSteps(self.device, self.steps_done)
        self._saved = time.monotonic()
        self.clock.start(self.steps_done, self.seen)
        while self.steps_done < self.config.steps:
            parts = self.step()
            watchdog.alive()
            finite.see(parts["loss"])
            signal_number, overdue = agreement.of(stop.signal_number or 0, self._is_overdue())
            last = self.steps_done == self.config.steps
            save = signal_number or (not last and (overdue or self._is_multiple_of(self.settings.checkpoint_steps)))
            compare = self.selection is not None and self.selection.due(self.steps_done, self.config.steps)
            if save or last or compare or self._is_multiple_of(self.settings.log_every):
                values = self._summed(parts, finite)  # waits for the device
                lap = self.clock.lap(self.steps_done, self.seen)
                with self.clock.stopped(), watchdog.paused():
                    scores = self._compare() if compare else {}
                if telemetry is not None:
                    telemetry.record(self.steps_done, values | self._pace(lap, rate) | scores)
            if save:
                self._save(telemetry)
                watchdog.alive()
            if signal_number:
                raise Interrupted(
                    f"stopped at step {self.steps_done} of {self.config.steps} of {self.stage}; the state is saved,"
                    " and the same command continues from here.",
                    signal_number,
                )
        agreement.last()

    def step(self) -> dict[str, Tensor]:
        """One optimiser step on the next batch.

        Returns:
            `loss` and its parts (0-D, detached, on the device): this process's contributions to the batch's. Where the
            step is a CUDA graph, the next one overwrites them.
        """
        batch = self.order.share(self.steps_done, self.ranks)
        self.objective.announce(batch)
        with waiting():
            inputs = self.read(batch.rows)
        drawn = self.objective.draw(batch)
        if self.steps_done + 1 < self.config.steps:
            self.objective.announce(self.order.share(self.steps_done + 1, self.ranks))
        # Dropout: a pure function of the step and the process, so that a resumed run needs no generator's state.
        torch.manual_seed(derive_seed(self.order.seed, "dropout", self.steps_done, self.ranks.rank))
        whole = batch.count == min(self.config.batch_size, len(self.order.rows))
        with contextlib.nullcontext() if whole else nothing_new_compiled(self.objective.module):
            parts = self.engine.step(inputs, batch, drawn, learning_rate(self.config, self.steps_done))
        self.steps_done += 1
        self.seen += batch.count
        return parts

    def _is_multiple_of(self, steps: int | None) -> bool:
        """Whether so many steps, or a multiple of them, are done."""
        return steps is not None and self.steps_done % steps == 0

    def _is_overdue(self) -> bool:
        """Whether process 0 has not saved for `engine.checkpoint_seconds`."""
        return self.ranks.is_first and time.monotonic() - self._saved >= self.settings.checkpoint_seconds

    def _summed(self, parts: dict[str, Tensor], finite: FiniteSteps) -> dict[str, float]:
        """The loss and its parts over all processes.

        Raises:
            RunError: in one of them the loss has not been finite; what that step was computed from is kept.
        """
        mine = [*(float(value) for value in parts.values()), finite.read()]
        *values, counts = zip(*self.ranks.exchange(mine), strict=True)
        summed = {name: sum(each) for name, each in zip(parts, values, strict=True)}
        if (last := int(min(counts))) == self.steps_done:
            return summed
        bad = last + 1
        self.ranks.first(lambda: self._keep_fault(bad, summed))
        run, section = run_of(self.directory), "pretrain" if self.stage == "head" else self.stage
        where = f"what it was computed from is in {self.directory / FAULT}"
        if run is not None:
            where = f"`sdfast replay --out {run}` runs that step again and names what is not finite"
        raise RunError(
            f"the loss of {self.stage} stopped being finite at step {bad}; lower {section}.lr (now"
            f" {self.config.lr:g}) or set engine.precision=fp32, and run the same command again; {where}."
        )

    def _keep_fault(self, bad: int, summed: dict[str, float]) -> None:
        """Keep what a step (counted from 1) was computed from; checkpoints of before stay."""
        batch, path = self.order.batch(bad - 1), checkpoint.newest(self.directory / "checkpoints", self.identity)
        values = {
            "stage": self.stage,
            "step": bad,
            "found_at": self.steps_done,
            "goes_on_from": 0 if path is None else checkpoint.Checkpoint.open(path).step,
            "seed": self.order.seed,
            "epoch": batch.epoch,
            "rows": batch.rows.tolist(),
            "names": None if self.names is None else self.names(batch.rows),
            "loss_when_found": summed,
            "lr": learning_rate(self.config, bad - 1),
            "batch_size": self.config.batch_size,
            "accumulate": self.settings.accumulate,
            "precision": resolve_precision(self.settings.precision, self.device),
            "processes": self.ranks.world,
            "zero": self.zero_stage,
            "identity": self.identity,
        }
        keep_fault(self.directory, values, self.read(batch.rows))

    def _pace(self, lap: Lap, rate: Rate) -> dict[str, float]:
        """Where the stage is and how fast it goes, for the record."""
        with self.clock.stopped():  # the first time a row's FLOPs are counted
            speed = rate.of(lap)
        return {
            "lr": learning_rate(self.config, self.steps_done - 1),
            **speed,
            "step_seconds": lap.seconds / lap.steps,
            "epoch": (self.steps_done - 1) // self.order.batches_per_epoch,
        }

    def _compare(self) -> dict[str, float]:
        """Keep the weights as they are now if they are the best so far; their scores, for the record."""
        assert self.selection is not None
        prefix, by = "module/", self.selection.by
        named = ((name, read) for name, read in self.engine.state() if name.startswith(prefix))
        state = {name.removeprefix(prefix): read().detach().to("cpu", copy=True) for name, read in named}
        with torch_fp32_matmul("highest"):
            scores = self.ranks.exchange(self.selection.score(state))[0]  # as process 0 sees it, whatever the machines
        best = self.best
        if best is None or scores[by] > best.scores[by]:
            self.best, told = Best(self.steps_done, scores, state), "the best so far"
        else:
            told = f"not above that of step {best.step}, {best.scores[by]:.4f}"
        log.info("%s: step %d: %s %.4f, %s", self.stage, self.steps_done, by, scores[by], told)
        return dict(scores)

    def _save(self, telemetry: Telemetry | None) -> None:
        with self.clock.stopped():
            if telemetry is not None:
                telemetry.flush()
            self.ranks.first(lambda: check_held(self.directory))
            values = {"seconds": self.clock.seconds, "seen": self.seen, "arithmetic": arithmetic(self.device)}
            state = self.engine.state()
            if self.best is not None:
                values |= self.best.values()
                state = itertools.chain(state, self.best.tensors())
            if self.ranks.is_first:
                folder, keep = self.directory / "checkpoints", self.settings.keep_checkpoints
                checkpoint.save(folder, self.steps_done, self.identity, state, values, keep)
            else:
                for _, read in state:
                    read()
        self._saved = time.monotonic()

    def _checkpoint(self, resume: bool) -> checkpoint.Checkpoint | None:
        """What to continue from: process 0 verifies it, and all read it."""
        directory = self.directory / "checkpoints"
        if not resume:
            self.ranks.first(lambda: checkpoint.clear(directory))
            return None
        path = self.ranks.first(lambda: checkpoint.newest(directory, self.identity))
        return None if path is None else checkpoint.Checkpoint.open(path)
