"""Which engine a run's settings ask for."""

from __future__ import annotations

import torch

from sdfast.config import EngineConfig, OptimisationConfig
from sdfast.engine.base import Engine, Sharing
from sdfast.errors import UserError
from sdfast.objectives.base import Objective


def make_engine(
    objective: Objective,
    stage: str,
    config: OptimisationConfig,
    engine: EngineConfig,
    device: torch.device,
    sharing: Sharing,
) -> Engine:
    """The engine that a run's settings ask for; the objective's module is on the device.

    Raises:
        UserError: DeepSpeed is needed and not installed, its settings contradict ours, or something acts on the
            optimiser that needs every weight whole.
    """
    if sharing.ranks.world == 1 and not sharing.zero.stage:
        from sdfast.engine.single import SingleEngine

        return SingleEngine(objective, config, engine, device)
    if objective.regularizer is not None and sharing.zero.stage:
        raise UserError(f"{stage}: RecAdam and MARS need every weight whole; use --zero 0.")
    from sdfast.engine.zero import ZeroEngine

    return ZeroEngine(objective, stage, config, engine, device, sharing)
