"""Checks before a teacher is trusted: what went wrong in other projects, found before the first step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdfast.errors import UserError
from sdfast.models.weights import weights_digest


def check_teacher_differs(teacher: nn.Module, student: nn.Module) -> None:
    """Compare two encoders' weights.

    Raises:
        UserError: they are the same, so that there is nothing to match.
    """
    if weights_digest(teacher.state_dict()) == weights_digest(student.state_dict()):
        raise UserError(
            "the teacher has the same weights as the student it should teach: further pre-training changed nothing; "
            "give it steps and a learning rate (pretrain.steps, pretrain.lr), or set distill.rounds=0 to skip distill."
        )


def check_deterministic(read: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    """Read some rows twice, as training will.

    Args:
        read: rows [b] int64 -> pixels [b, C, H, W] as the model sees them.
        rows: [n] int64; at most 16 of them are read.

    Raises:
        UserError: the pixels differ, so that features of them cannot be kept.
    """
    rows = rows[:: max(1, len(rows) // 16)][:16]
    if not torch.equal(read(rows), read(rows)):
        raise UserError(
            "the training transform is random: the same image gives different pixels when it is read twice, so features"
            " kept of it would be of other pixels; use a fixed transform, or teacher.mode=live."
        )
