"""What computes a step and holds the state: the seam below the loop, and the engine of one process.

The latter is autograd and fused AdamW, on a GPU the step as a CUDA graph. It does without DeepSpeed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sdfast.config import EngineConfig, OptimisationConfig
from sdfast.data.order import Batch
from sdfast.engine.graph import Compute, GraphedStep
from sdfast.engine.machine import autocast, resolve_precision
from sdfast.engine.optim import build_optimizer, set_learning_rate
from sdfast.errors import UserError
from sdfast.objectives.base import Objective, micro_slices

ReadTensor = Callable[[str], Tensor]
State = Iterator[tuple[str, Callable[[], Tensor]]]  # names, and what reads each


class Engine(ABC):
    """Gradients and the optimiser's step of an objective; the state is that of one process, however it is spread.

    Attributes:
        parameters: those of the objective's that are trained, by name.
        optimizer: of them.
    """

    optimizer: Any

    def __init__(self, objective: Objective, engine: EngineConfig, device: torch.device) -> None:
        self.objective, self.engine, self.device = objective, engine, device
        self.parameters = {name: value for name, value in objective.trained_parameters() if value.requires_grad}

    @abstractmethod
    def step(self, inputs: Any, batch: Batch, drawn: Any, rate: float) -> dict[str, Tensor]:
        """One optimiser step at a learning rate.

        Args:
            inputs: [B, H, W, C] uint8 or a `TokenBatch`, this process's rows.
            batch: their address.
            drawn: what the objective drew for them.
            rate: of this step.

        Returns:
            `loss` and its parts (0-D, detached): this process's contributions to the batch's.
        """

    def state(self) -> State:
        """The names of the state's tensors, whole and in full precision, and what reads each.

        Every process goes through all of them and calls each, for a tensor may be put together from all processes'
        parts. `module/...` are the module's, `optimizer/<parameter>/...` the optimiser's.
        """
        for name, value in self.objective.module.state_dict().items():
            yield f"module/{name}", value.detach
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                yield f"optimizer/{name}/{key}", value.detach

    def load(self, read: ReadTensor, names: set[str]) -> None:
        """Take over the optimiser's state; the module's was loaded before the engine was made."""
        for name, parameter in self.parameters.items():
            prefix = f"optimizer/{name}/"
            self.optimizer.state[parameter] = {
                key.removeprefix(prefix): read(key).to(parameter.device) for key in names if key.startswith(prefix)
            }

    def release(self) -> None:  # noqa: B027 (one process has the module whole all along)
        """Training is over: the module's parameters are whole again in every process, in float32."""


class SingleEngine(Engine):
    """Autograd and an optimiser in this process, which holds all of the state."""

    def __init__(
        self, objective: Objective, config: OptimisationConfig, engine: EngineConfig, device: torch.device
    ) -> None:
        """Set up autograd and AdamW.

        Raises:
            UserError: a precision that needs ZeRO.
        """
        super().__init__(objective, engine, device)
        self.config = config
        if engine.precision == "bf16-weights":
            raise UserError("engine.precision=bf16-weights needs --zero 1, 2 or 3; use bf16 in one process.")
        scaled = resolve_precision(engine.precision, device) == "fp16"
        graphed = device.type == "cuda" and engine.cuda_graph and objective.static and engine.accumulate == 1
        graphed = graphed and not scaled
        rate_on = device if graphed else None
        self.optimizer = build_optimizer(
            self.parameters.items(), config, objective.decay_rule, rate_on, objective.regularizer
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self._computed: Compute = self._compute
        if graphed:
            self._computed = GraphedStep(self._compute, device, config.batch_size, forget=self.optimizer.zero_grad)

    @property
    def graphed(self) -> bool | None:
        """Whether full batches are replayed from a CUDA graph: None where that is not asked for, False until it is."""
        return self._computed.captured if isinstance(self._computed, GraphedStep) else None

    def step(self, inputs: Any, batch: Batch, drawn: Any, rate: float) -> dict[str, Tensor]:
        """One optimiser step; on a GPU full batches are replayed as a CUDA graph."""
        set_learning_rate(self.optimizer, rate)
        return self._computed(inputs, batch, drawn)

    def _compute(self, inputs: Any, batch: Batch, drawn: Any) -> dict[str, Tensor]:
        """Gradients of a batch, and the optimiser's step; the learning rate is set."""
        total: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)  # first: a capture that failed half-way leaves gradients
        for part in batch.micro_batches or micro_slices(len(batch.rows), self.engine.accumulate):
            with autocast(self.engine.precision, self.device):
                parts = self.objective.loss(inputs[part], batch, drawn, part)
            self.scaler.scale(parts["loss"]).backward()
            add_parts(total, parts)
        if self.config.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total

    def state(self) -> State:
        """The state's names, and what reads each; in fp16 the scale of the loss is one."""
        yield from super().state()
        if self.scaler.is_enabled():
            yield "scaler/scale", lambda: torch.tensor(self.scaler.get_scale())

    def load(self, read: ReadTensor, names: set[str]) -> None:
        """Take over the optimiser's state and the scale of fp16's loss."""
        super().load(read, names)
        if self.scaler.is_enabled() and "scaler/scale" in names:
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": float(read("scaler/scale"))})


def add_parts(total: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
    """Sum what micro-batches contribute."""
    for name, value in parts.items():
        total[name] = total[name] + value.detach() if name in total else value.detach()
