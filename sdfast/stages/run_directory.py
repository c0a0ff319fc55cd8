"""A run directory as the place of stages: who may work in it, and what in it goes when."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdfast import occupant
from sdfast.engine.teacher_bank import build_or_open
from sdfast.errors import UserError
from sdfast.evaluation import predictions
from sdfast.locks import NotWritable, check_held, locked
from sdfast.log import attach_file, log
from sdfast.ranks import Ranks
from sdfast.rundir import StageDirectory
from sdfast.stages.graph import Stage
from sdfast.teacher.bank import Bank
from sdfast.teacher.recipe import BankRecipe


class RunDirectory:
    """`<stage>/` for each stage, `teacher/` for the bank, `pack/` for the data, `log.txt`; see `Place`.

    Attributes:
        out: its path.
        held: whether this process works in it.
        read_only: whether it cannot be written, and is only looked at.
        gone: why a model or data that finished stages had are not there any more.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.held = self.read_only = False
        self.gone: UserError | None = None

    @contextlib.contextmanager
    def hold(self, training: bool) -> Iterator[None]:
        """Lock it and open its log. One that may not be written can be looked at as it is.

        Args:
            training: whether something is to be trained.

        Raises:
            UserError: another process holds it, or it may not be written and something is to be trained.
        """
        with contextlib.ExitStack() as stack:
            self.read_only = False
            try:
                stack.enter_context(locked(self.out))
            except NotWritable:
                if training:
                    raise
                self.read_only = True
            else:
                handler = attach_file(self.out / "log.txt")
                stack.callback(handler.close)
                stack.callback(log.removeHandler, handler)
            yield

    def directory(self, stage: Stage, inputs: dict[str, Any]) -> StageDirectory:
        """Named after the stage."""
        return StageDirectory(self.out / stage.folder, stage.kind)

    def holding(self, directory: StageDirectory) -> contextlib.AbstractContextManager[object]:
        """The run directory is held already."""
        return contextlib.nullcontext()

    def bank(self, recipe: BankRecipe, rebuild: bool, new_teacher: bool) -> Bank:
        """The one bank of the run, in `teacher/`."""
        Ranks.current().first(lambda: check_held(self.out))
        return build_or_open(self.out / "teacher", recipe, rebuild, new_teacher)

    def check_trainable(self, directory: StageDirectory, later: Sequence[Stage]) -> None:
        """Check that nothing which no stage wrote lies where this stage's model or a later one's will.

        Raises:
            UserError: something does, or what the run was made of is gone.
        """
        if self.gone is not None:
            raise self.gone
        directory.check_replaceable()
        for each in sorted(later, key=lambda stage: stage.folder):
            self.directory(each, {}).check_replaceable()

    def found_done(self) -> None:
        """Nothing here is replaced by another run."""
        if self.held:
            occupant.forget_replaced(self.out)

    def replaced(self, directory: StageDirectory) -> None:
        """The stages of a run that this one replaces go, and predictions of a classifier that was there."""
        if self.held:
            occupant.sweep_replaced(self.out, directory.path)
        if directory.path == self.out / "finetune":
            predictions.remove(self.out)
