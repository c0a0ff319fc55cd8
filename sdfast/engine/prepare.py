"""What the engine's settings ask of a module before it is trained: attention, checkpointing, compilation."""

from __future__ import annotations

import torch
from torch import nn

from sdfast.config import EngineConfig, ZeroConfig
from sdfast.engine.machine import matmul_dtype
from sdfast.errors import UserError
from sdfast.models.blocks import Attention, use_attention
from sdfast.models.checkpointing import use_checkpointing
from sdfast.models.compiled import forget_compiled, use_compiled
from sdfast.ops.registry import why_not

_WORTH_COMPILING = 500  # steps


def prepare(
    module: nn.Module,
    engine: EngineConfig,
    device: torch.device,
    steps: int,
    zero: ZeroConfig | None = None,
    teacher: nn.Module | None = None,
) -> None:
    """Have a module compute as `engine.attention`, `engine.activation_checkpointing` and `engine.compile` say.

    Args:
        module: to be trained for `steps` steps on `device`.
        engine: the settings.
        device: where.
        steps: of the stage.
        zero: what DeepSpeed spreads; where that is the parameters, its hooks in every layer leave nothing to compile.
        teacher: what computes beside it in every step, with the same attention and compiled as it is.

    Raises:
        UserError: the named attention cannot be computed here.
    """
    name, dtype = engine.attention, matmul_dtype(engine.precision, device)
    for layer in module.modules():
        if not isinstance(layer, Attention):
            continue
        reason = why_not("attention", name, device.type, dtype, layer.dim, layer.attention_dropout > 0)
        if reason is not None:
            raise UserError(f"engine.attention={name} cannot be used here: {reason}; use auto.")
    parts = [module] if teacher is None else [module, teacher]
    for part in parts:
        use_attention(part, name)
    use_checkpointing(module, engine.activation_checkpointing)
    worth = device.type == "cuda" and steps >= _WORTH_COMPILING and not (zero and zero.stage == 3)
    if engine.compile is True or (engine.compile == "auto" and worth):
        forget_compiled()
        for part in parts:
            use_compiled(part)


def running_teacher(objective: object) -> nn.Module | None:
    """The teacher that an objective runs in every step; None where a bank has what it would say, or there is none."""
    candidates = (getattr(objective, name, None) for name in ("teacher", "matched"))
    return next((each for each in candidates if isinstance(each, nn.Module)), None)
