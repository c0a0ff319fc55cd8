"""The training loop: batches by address, one optimiser step each, durable checkpoints, a clean stop on a signal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdfast.config import EngineConfig, OptimisationConfig
from sdfast.data.order import Batch, BatchOrder
from sdfast.data.waiting import seconds_waited, waiting
from sdfast.engine import checkpoint
from sdfast.engine.allocator import freed_pages_kept
from sdfast.engine.graph import Compute, GraphedStep
from sdfast.engine.optim import build_optimizer, learning_rate, set_learning_rate
from sdfast.engine.rate import Rate
from sdfast.engine.signals import StopRequest, stop_on_signal
from sdfast.engine.telemetry import Telemetry
from sdfast.errors import Interrupted, RunError
from sdfast.log import log
from sdfast.objectives.base import Objective, micro_slices


@dataclass(frozen=True)
class Trained:
    """What a finished stage took."""

    steps: int
    seconds: float
    images: int

    @property
    def images_per_second(self) -> float:
        """Training rate over the whole stage."""
        return self.images / self.seconds if self.seconds else 0.0


class Trainer:
    """One stage's training: the objective, the optimiser and the place where the state lives."""

    def __init__(
        self,
        stage: str,
        objective: Objective,
        config: OptimisationConfig,
        engine: EngineConfig,
        order: BatchOrder,
        images: Callable[[Tensor], Tensor],
        directory: Path,
        inputs: dict[str, Any],
        resume: bool = True,
        flops_per_image: float | None = None,
    ) -> None:
        """Set up a stage.

        Args:
            stage: its name, in messages and records.
            objective: what is minimised; its module is trained in place.
            config: steps, batch size, optimisation.
            engine: how to run.
            order: the batches.
            images: rows [B] int64 (CPU) -> [B, H, W, C] uint8 on the module's device.
            directory: where `checkpoints/` and `metrics.jsonl` go.
            inputs: everything that decides the result, by name; only checkpoints of the same are resumed.
            resume: whether to look for a checkpoint.
            flops_per_image: of one image's step, for the records; without it they hold no FLOP/s.
        """
        self.stage, self.objective, self.config, self.engine = stage, objective, config, engine
        self.order, self.images, self.directory, self.inputs = order, images, directory, inputs
        self.parameters = {name: p for name, p in objective.trained_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        graphed = self.device.type == "cuda" and engine.cuda_graph and objective.static and engine.accumulate == 1
        rate_on = self.device if graphed else None
        self.optimizer = build_optimizer(self.parameters.items(), config, objective.decay_rule, rate_on)
        self._computed: Compute = (
            GraphedStep(self._compute, self.device, config.batch_size) if graphed else self._compute
        )
        self.flops_per_image = flops_per_image
        self.step, self.seconds, self.seen = 0, 0.0, 0
        if resume:
            self._resume()
        else:
            checkpoint.clear(directory / "checkpoints")

    def run(self) -> Trained:
        """Train to the last step.

        Raises:
            RunError: the loss stopped being finite.
            Interrupted: a signal came; the state is saved.
        """
        self.objective.module.train()
        telemetry = Telemetry(
            self.stage, self.directory, self.config.steps, self.step, tensorboard=self.engine.tensorboard
        )
        try:
            pages = freed_pages_kept() if self.device.type == "cpu" else contextlib.nullcontext()
            with stop_on_signal() as stop, pages, matmul_precision(self.engine.precision, self.device):
                self._run(telemetry, stop)
        finally:
            telemetry.close()
        return Trained(self.config.steps, self.seconds, self.seen)

    def _run(self, telemetry: Telemetry, stop: StopRequest) -> None:
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        rates = Rate(self.flops_per_image, self.device, self._matmul_dtype())
        saved = lap = time.monotonic()
        lap_step, lap_seen, lap_waited = self.step, self.seen, seconds_waited()
        while self.step < self.config.steps:
            parts = self._one_step()
            finite &= torch.isfinite(parts["loss"])
            self.step += 1
            done = self.step == self.config.steps
            due = time.monotonic() - saved >= self.engine.checkpoint_seconds or (
                self.engine.checkpoint_steps is not None and self.step % self.engine.checkpoint_steps == 0
            )
            signal_number = stop.signal_number  # read once: it may come at any moment
            due = (due and not done) or signal_number is not None
            if due or done or self.step % self.engine.log_every == 0:
                values = {name: float(value) for name, value in parts.items()}  # waits for the device
                if not finite:
                    self._raise_not_finite()
                now = time.monotonic()
                self.seconds += now - lap
                step_seconds = (now - lap) / (self.step - lap_step)
                values["lr"] = learning_rate(self.config, self.step - 1)
                values |= rates.of(self.seen - lap_seen, now - lap, seconds_waited() - lap_waited)
                values["step_seconds"] = step_seconds
                values["epoch"] = (self.step - 1) // self.order.batches_per_epoch
                telemetry.record(self.step, values)
                lap, lap_step, lap_seen, lap_waited = now, self.step, self.seen, seconds_waited()
            if due:
                telemetry.flush()
                self._save()
                saved = lap = time.monotonic()
            if signal_number is not None:
                raise Interrupted(
                    f"stopped at step {self.step} of {self.config.steps} of {self.stage}; the state is saved, and the"
                    " same command continues from here.",
                    signal_number,
                )

    def _one_step(self) -> dict[str, Tensor]:
        batch = self.order.batch(self.step)
        self.objective.announce(batch)
        with waiting():
            images = self.images(batch.rows)
        drawn = self.objective.draw(batch)
        if self.step + 1 < self.config.steps:
            self.objective.announce(self.order.batch(self.step + 1))
        set_learning_rate(self.optimizer, learning_rate(self.config, self.step))
        total = self._computed(images, batch, drawn)
        self.seen += len(batch.rows)
        return total

    def _compute(self, images: Tensor, batch: Batch, drawn: Any) -> dict[str, Tensor]:
        """Gradients of a batch, and the optimiser's step; the learning rate is set."""
        total: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)  # first: a capture that failed half-way leaves gradients
        for part in micro_slices(len(batch.rows), self.engine.accumulate):
            with self._autocast():
                parts = self.objective.loss(images[part], batch, drawn, part)
            parts["loss"].backward()
            for name, value in parts.items():
                total[name] = total[name] + value.detach() if name in total else value.detach()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        self.optimizer.step()
        return total

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if resolve_precision(self.engine.precision, self.device) == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _matmul_dtype(self) -> torch.dtype | None:
        """Of the matrix products; None where they are of several."""
        if resolve_precision(self.engine.precision, self.device) == "bf16":
            return torch.bfloat16
        dtypes = {parameter.dtype for parameter in self.objective.module.parameters()}
        return dtypes.pop() if len(dtypes) == 1 else None

    def _raise_not_finite(self) -> None:
        raise RunError(
            f"the loss of {self.stage} stopped being finite at or before step {self.step}; lower {self.stage}.lr"
            f" (now {self.config.lr:g}) or set engine.precision=fp32, and run the same command again."
        )

    def _save(self) -> None:
        tensors = {f"module/{name}": value for name, value in self.objective.module.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{name}/{key}"] = value
        tensors["rng/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        values = {"seconds": self.seconds, "seen": self.seen}
        keep = self.engine.keep_checkpoints
        checkpoint.save(self.directory / "checkpoints", self.step, self.inputs, tensors, values, keep)

    def _resume(self) -> None:
        found = checkpoint.load_newest(self.directory / "checkpoints", self.inputs)
        if found is None:
            return
        prefix = "module/"
        state = {name[len(prefix) :]: value for name, value in found.tensors.items() if name.startswith(prefix)}
        self.objective.module.load_state_dict(state)
        for name, parameter in self.parameters.items():
            prefix = f"optimizer/{name}/"
            self.optimizer.state[parameter] = {
                key[len(prefix) :]: value.to(self.device)
                for key, value in found.tensors.items()
                if key.startswith(prefix)
            }
        torch.set_rng_state(found.tensors["rng/cpu"])
        if self.device.type == "cuda" and "rng/cuda" in found.tensors:
            torch.cuda.set_rng_state(found.tensors["rng/cuda"], self.device)
        self.step, self.seconds, self.seen = found.step, found.values["seconds"], found.values["seen"]
        log.info("%s: resuming at step %d of %d", self.stage, self.step, self.config.steps)


@contextlib.contextmanager
def matmul_precision(requested: str, device: torch.device) -> Iterator[None]:
    """Inside, float32 products of a GPU run in TF32, unless `fp32` is asked for."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        precision = resolve_precision(requested, device)
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        products = {"bf16": "bf16 autocast, TF32 for what stays in float32", "tf32": "float32 with TF32 products"}
        log.info("precision: %s", products.get(precision, "float32"))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def resolve_precision(requested: str, device: torch.device) -> str:
    """`auto` becomes `bf16` on a GPU that has it and `fp32` elsewhere (most CPUs run bf16 far slower)."""
    if requested != "auto":
        return requested
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
