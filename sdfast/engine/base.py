"""The seam below the loop: what computes a step and holds the state, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from sdfast.config import ZeroConfig
from sdfast.data.order import Batch
from sdfast.objectives.base import Objective
from sdfast.ranks import Ranks

ReadTensor = Callable[[str], Tensor]


class Engine(Protocol):
    """Gradients and the optimiser's step of an objective; the state is that of one process, however it is spread."""

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
        ...

    def state(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """The names of the state's tensors, whole and in full precision, and what reads each.

        Every process goes through all of them and calls each, for a tensor may be put together from all processes'
        parts. `module/...` are the module's, `optimizer/<parameter>/...` the optimiser's.
        """
        ...

    def load(self, read: ReadTensor, names: set[str]) -> None:
        """Take over the optimiser's state; the module's was loaded before the engine was made."""
        ...

    def release(self) -> None:
        """Training is over: the module's parameters are whole again in every process, in float32."""
        ...


@dataclass(frozen=True)
class Sharing:
    """How a job is spread over processes.

    Attributes:
        ranks: the processes.
        zero: the ZeRO stage, and where its states lie.
        deepspeed: further options of DeepSpeed.
    """

    ranks: Ranks = field(default_factory=Ranks)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)


def trained_parameters(objective: Objective) -> dict[str, nn.Parameter]:
    """Those of the objective's parameters that require gradients, by name."""
    return {name: parameter for name, parameter in objective.trained_parameters() if parameter.requires_grad}
