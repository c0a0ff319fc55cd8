"""From a recipe to the targets of a training run: the bank built or opened, checked, and brought to the device."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from sdfast.engine.signals import stop_on_signal
from sdfast.errors import Interrupted
from sdfast.log import log
from sdfast.teacher.bank import Bank
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.recipe import Recipe
from sdfast.teacher.targets import ResidentBank

_LOG_SECONDS = 30.0


def build_or_open(directory: Path, recipe: Recipe, rebuild: bool = False, new_teacher: bool = False) -> Bank:
    """`prepare_bank` with words for the log; a signal ends it with the part saved.

    Raises:
        UserError, RunError: see `prepare_bank`.
        Interrupted: a signal came.
    """
    started = said = time.monotonic()
    work = 0

    with stop_on_signal() as stop:

        def progress(done: int, total: int) -> None:
            nonlocal said, work
            work = total
            if time.monotonic() - said >= _LOG_SECONDS:
                said = time.monotonic()
                log.info("teacher bank: %d of %d images", done, total)
            if stop.signal_number is not None and done < total:
                raise Interrupted(
                    f"stopped at image {done} of {total} of the teacher bank; what is done is saved, and the same"
                    " command continues from here.",
                    stop.signal_number,
                )

        bank = prepare_bank(directory, recipe, rebuild, new_teacher, progress)
    what = f"{len(bank)} images, tokens {recipe.tokens}, {bank.layout.dtype}, {bank.bytes / 1e6:.1f} MB"
    took = f", built in {time.monotonic() - started:.1f} s" if work else ""
    log.info("teacher bank: %s%s (%s)", what, took, directory)
    return bank


def bank_targets(bank: Bank, recipe: Recipe) -> ResidentBank:
    """A bank in the device's memory, every block checked, for the rows of the recipe's split.

    Raises:
        UserError: a block is damaged.
    """
    features = bank.load().to(recipe.device)
    return ResidentBank(features, torch.from_numpy(bank.rows_of(recipe.digests)))
