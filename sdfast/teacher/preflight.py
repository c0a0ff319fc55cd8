"""Checks before a teacher is trusted: what went wrong in other projects, found before the first step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdfast.config import Config
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


def check_augment(config: Config, banked: bool) -> None:
    """Compare the training transform with what distill's targets are kept as.

    Args:
        config: of the run.
        banked: whether a bank is wanted.

    Raises:
        UserError: a bank of pixels that are drawn anew in every epoch, or views of pixels that do not change.
    """
    augment, views = config.pretrain.augment, config.teacher.views
    if augment == "none" and views:
        raise UserError(
            f"teacher.views={views} needs a transform to have views of: set pretrain.augment, or views to 0."
        )
    if augment != "none" and not views and banked:
        raise UserError(
            f"pretrain.augment={augment} gives an image other pixels in every epoch, and a bank keeps the teacher's "
            "features of pixels that stay; use teacher.mode=live, or teacher.views=K for K views of each image that "
            "come again, or pretrain.augment=none."
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
