"""From a recipe to the targets of a training run: the bank built or opened, checked, and brought to the device."""

from __future__ import annotations

import time
from pathlib import Path

from sdfast.engine.machine import freed_pages_kept
from sdfast.engine.stopping import stop_on_signal
from sdfast.errors import Interrupted
from sdfast.log import log, progress_lines
from sdfast.ranks import Ranks
from sdfast.teacher.bank import Bank
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.recipe import BankRecipe
from sdfast.teacher.residency import Residency, choose_residency, describe_place, place_bank
from sdfast.teacher.targets import Teacher


def build_or_open(directory: Path, recipe: BankRecipe, rebuild: bool = False, new_teacher: bool = False) -> Bank:
    """`prepare_bank` with words for the log; a signal ends it with the part saved.

    Raises:
        UserError, RunError: see `prepare_bank`.
        Interrupted: a signal came.
    """
    started, say = time.monotonic(), progress_lines("teacher bank", recipe.plural)
    work = 0

    with stop_on_signal(patient=Ranks.current().world > 1) as stop:

        def progress(done: int, total: int) -> None:
            nonlocal work
            work = total
            say(done, total)
            if stop.signal_number is not None and done < total:
                raise Interrupted(
                    f"stopped at {done} of {total} {recipe.plural} of the teacher bank; what is done is saved, and the"
                    " same command continues from here.",
                    stop.signal_number,
                )

        with freed_pages_kept(recipe.device.type):
            bank = prepare_bank(directory, recipe, rebuild, new_teacher, progress)
    rows = f"{len(bank) // recipe.views} {recipe.plural}" + (f", {recipe.views} views of each" * (recipe.views > 1))
    what = f"{rows}, tokens {recipe.tokens}, {bank.layout.dtype}, {bank.bytes / 1e6:.1f} MB"
    took = f", built in {time.monotonic() - started:.1f} s" if work else ""
    log.info("teacher bank: %s%s (%s)", what, took, directory)
    return bank


def bank_targets(bank: Bank, recipe: BankRecipe, residency: Residency = "device") -> Teacher:
    """A bank as the targets of the recipe's split, where it has its place.

    Raises:
        UserError: a block is damaged.
    """
    place = choose_residency(residency, bank.bytes, recipe.device)
    log.info("teacher bank: %s", describe_place(place, recipe.device))
    return place_bank(bank, recipe.bank_rows(bank), place, recipe.device)
