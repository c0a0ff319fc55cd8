"""Transformer blocks that keep only their input for the backward pass, and make the rest again there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.utils.checkpoint import checkpoint

Given = TypeVar("Given")


class CheckpointedBlock(nn.Module):
    """A block with an attention and a dropout."""

    attn: Any
    dropout: nn.Dropout
    checkpointed = False  # see use_checkpointing

    def run(self, way: Callable[..., Given], *given: Any) -> Given:
        """One of the block's methods, or the block itself, through the block.

        While training with `checkpointed`, only what is given is kept for the backward pass; it makes the rest again.
        """
        if not (self.checkpointed and self.training):
            return way(*given)
        # The state of the random numbers is read back for dropout only: a CUDA graph cannot be captured with that.
        draws = self.dropout.p > 0 or self.attn.attention_dropout > 0
        return checkpoint(way, *given, use_reentrant=False, preserve_rng_state=draws)


def use_checkpointing(module: nn.Module, on: bool = True) -> None:
    """Have all blocks of a module keep only their input for the backward pass, and make the rest again there."""
    for block in module.modules():
        if isinstance(block, CheckpointedBlock):
            block.checkpointed = on
