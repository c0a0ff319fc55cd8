"""What the engine's settings ask of a module before it is trained: its attention, and compiled blocks."""

from __future__ import annotations

import torch
from torch import nn

from sdfast.config import EngineConfig
from sdfast.engine.loop import resolve_precision
from sdfast.errors import UserError
from sdfast.models.attention import why_not
from sdfast.models.vit import Attention, Block, use_attention

_WORTH_COMPILING = 500  # steps


def prepare(module: nn.Module, engine: EngineConfig, device: torch.device, steps: int) -> None:
    """Have a module compute as `engine.attention` and `engine.compile` say.

    Args:
        module: to be trained for `steps` steps on `device`.
        engine: the settings.
        device: where.
        steps: of the stage.

    Raises:
        UserError: the named attention cannot be computed here.
    """
    name, precision = engine.attention, resolve_precision(engine.precision, device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for layer in module.modules():
        if not isinstance(layer, Attention):
            continue
        reason = why_not(name, device, dtype, layer.dim, layer.attention_dropout > 0)
        if reason is not None:
            raise UserError(f"engine.attention={name} cannot be used here: {reason}; use auto.")
    use_attention(module, name)
    if engine.compile is True or (engine.compile == "auto" and device.type == "cuda" and steps >= _WORTH_COMPILING):
        torch.compiler.reset()  # the variants of earlier stages would count towards the few that it makes of a function
        for block in module.modules():
            if isinstance(block, Block):
                block.compile()
