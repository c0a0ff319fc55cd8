"""Whether a run's bank is what its teacher gives for its data."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from sdfast.config import Config
from sdfast.errors import UserError
from sdfast.modalities.choose import modality_of
from sdfast.rundir import RESULT, check_model
from sdfast.teacher.bank import Bank, open_bank
from sdfast.teacher.fingerprint import check_identity
from sdfast.teacher.verify import SampleErrors, sample_errors


def verify_bank(out: Path, config: Config, device: torch.device, sample: int) -> tuple[Bank, SampleErrors | None]:
    """Check a run's bank: every block, its identity, and the features of a few rows. Nothing is written.

    Args:
        out: the run directory; neither the run's first model nor its source is needed.
        config: of the run.
        device: where the teacher runs.
        sample: rows that go through the teacher again; none for 0.

    Raises:
        UserError: no bank, no teacher, or a bank that is damaged or of something else.
        RunError: features that the teacher does not give.
    """
    bank, rounds = open_bank(out / "teacher"), config.distill.rounds
    folder = out / ("pretrain" if rounds <= 1 else f"distill/round-{rounds - 1}") / "model"
    if not folder.is_dir() and not (folder.parent / RESULT).exists():
        raise UserError(f"{folder} holds no teacher to compare with; run `sdfast train --stage pretrain` first.")
    check_model(folder.parent)
    modality = modality_of(folder)
    teacher = modality.reload(folder)
    modality.check_bank(config, teacher.shape)
    recipe = modality.recipe(config, device, teacher, modality.open_pack(out / "pack"))
    check_identity(bank.identity, recipe.identity, bank.directory)
    bank.check()
    return bank, sample_errors(bank, recipe, sample, time.time_ns() >> 1) if sample else None
