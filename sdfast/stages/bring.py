"""Stages are targets, as in make: brought up to date in some place, each after those that it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from sdfast.context import Context
from sdfast.durable import sha256_json
from sdfast.log import log
from sdfast.rundir import Result, StageDirectory
from sdfast.stages.checks import check_stage
from sdfast.stages.graph import Stage
from sdfast.stages.inputs import inputs_of
from sdfast.stages.train import train_stage
from sdfast.teacher.bank import Bank
from sdfast.teacher.recipe import BankRecipe


class Place(Protocol):
    """Where stages and banks lie: a run directory, or the store of a study."""

    def directory(self, stage: Stage, inputs: dict[str, Any]) -> StageDirectory:
        """The directory of a stage with everything that decides its result."""
        ...

    def holding(self, directory: StageDirectory) -> AbstractContextManager[object]:
        """Keep others out of a stage's directory."""
        ...

    def bank(self, recipe: BankRecipe, rebuild: bool, new_teacher: bool) -> Bank:
        """The bank that a recipe makes; see `build_or_open`."""
        ...

    def check_trainable(self, directory: StageDirectory, later: Sequence[Stage]) -> None:
        """Before hours are spent: what a stage needs is there, and nothing of a person's is in its way.

        Nor in that of the `later` ones, which will run again because this one does.

        Raises:
            UserError: something is missing, or in the way.
        """
        ...

    def found_done(self) -> None:
        """A stage was found done."""
        ...

    def replaced(self, directory: StageDirectory) -> None:
        """A stage's new model is durable, and what was made of the one before is to go."""
        ...


class Maker:
    """Brings stages up to date; one is not trained again when it is done and nothing that decides its result changed.

    Attributes:
        results: what it has trained or found done, by folder, in that order.
    """

    def __init__(
        self,
        context: Context,
        place: Place,
        resume: bool = True,
        made: Callable[[Path, Result], object] = lambda folder, result: None,
    ) -> None:
        """Set up.

        Args:
            context: of the run.
            place: where stages lie.
            resume: keep what is done and continue what was interrupted; else all is trained anew.
            made: told in process 0 of each stage that was trained: its folder, and its result.
        """
        self.context, self.place, self.resume, self.made = context, place, resume, made
        self.results: dict[Path, Result] = {}

    def make(self, target: Stage) -> Result:
        """Bring a stage up to date, with those that it needs first.

        Raises:
            UserError: something that it needs is missing or does not fit.
        """
        chain = target.chain()
        for stage in reversed(chain):
            check_stage(self.context, stage)
        done: dict[Stage, Result] = {}
        for number, stage in enumerate(chain, 1):
            inputs = inputs_of(self.context, stage, {need: result.weights for need, result in done.items()})
            directory = self.place.directory(stage, inputs)
            with self.place.holding(directory):
                done[stage] = self._make(stage, directory, inputs, done, chain[number:])
        return done[target]

    def _make(
        self,
        stage: Stage,
        directory: StageDirectory,
        inputs: dict[str, Any],
        done: dict[Stage, Result],
        later: Sequence[Stage],
    ) -> Result:
        ranks = self.context.ranks
        ranks.check_same(lambda: {"the stage": directory.path.name, **inputs})
        if (result := self._already(directory, inputs)) is not None:
            return result
        ranks.first(lambda: self.place.check_trainable(directory, later))
        outcome = train_stage(
            self.context,
            stage,
            directory.path,
            inputs,
            {need: done[need] for need in stage.needs},
            lambda recipe: self.place.bank(recipe, rebuild=not self.resume, new_teacher=True),
            self.resume,
        )
        result = ranks.first(lambda: directory.finish(inputs, outcome, lambda: self.place.replaced(directory)))
        self.results[directory.path] = result
        ranks.first(lambda: self.made(directory.path, result) and None)
        return result

    def _already(self, directory: StageDirectory, inputs: dict[str, Any]) -> Result | None:
        """The stage's result, when there is nothing to do; says which input changed when there is."""
        known, ranks = self.results.get(directory.path), self.context.ranks
        again = known is not None and known.fingerprint == sha256_json(inputs)
        if not self.resume and not again:
            return None
        done = ranks.first(lambda: directory.finished(inputs))
        if done is not None:
            self.results[directory.path] = done
            if not again:
                log.info("%s: already done (%s)", directory.path.name, directory.model)
                log.debug("%s: nothing that decides it has changed: %s", directory.path.name, done.fingerprint)
                ranks.first(self.place.found_done)
        elif (changed := directory.changed_input(inputs)) is not None:
            log.info("%s: runs again, because %s changed", directory.path.name, changed)
        return done
