"""A run whose stages lie in folders named by content, so that all cells of a study share those that coincide."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdfast.config import Config
from sdfast.domains.base import Domain
from sdfast.durable import sha256_json
from sdfast.engine.precision import cpu_settings
from sdfast.engine.teacher_bank import build_or_open
from sdfast.locks import locked
from sdfast.pipeline import Pipeline, slug
from sdfast.rundir import Outcome, Result, StageDirectory
from sdfast.teacher.bank import Bank
from sdfast.teacher.recipe import BankRecipe

_DIGITS = 12  # of a fingerprint, in a folder's name


class Shared:
    """Models and packs that were opened, for the next run that wants the same."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._packs: dict[Path, Any] = {}

    def model(self, key: list[Any], load: Callable[[], Any]) -> Any:
        """The last one, when it is of the same key; only one is kept."""
        name = json.dumps(key)
        if name not in self._models:
            self._models = {name: load()}
        return self._models[name]

    def pack(self, directory: Path, prepare: Callable[[], Any]) -> Any:
        """The pack of a folder, which is compared with its source once."""
        if directory not in self._packs:
            self._packs[directory] = prepare()
        return self._packs[directory]


class StudyRun(Pipeline):
    """One cell of a study: `stages/<stage>-<fingerprint>/`, `banks/<identity>/` and `packs/<model>-<data>-<digest>/`.

    The study holds the run directory; here only what is being written is locked, and who wants the same waits.
    """

    def __init__(self, config: Config, out: Path, shared: Shared) -> None:
        """See `Pipeline`; `config.out` does not matter."""
        values = config.model_dump(mode="json", exclude={"out"})
        super().__init__(
            out=out, overrides=[f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        )
        self.shared = shared

    @property
    def pack_directory(self) -> Path:
        """See `Pipeline`: by what decides it, as it was asked for."""
        options = self.config.data.model_dump(mode="json", exclude={"limit", "limit_seed"})
        digest = sha256_json([self.model_spec, options])[:_DIGITS]
        names = dict.fromkeys((slug(self.model_spec), slug(self.data_spec)))
        return self.out / "packs" / f"{'-'.join(names)}-{digest}"

    def stage_directory(self, stage: str, name: str, inputs: dict[str, Any]) -> StageDirectory:
        """See `Pipeline`."""
        return StageDirectory(self.out / "stages" / f"{stage}-{sha256_json(inputs)[:_DIGITS]}", stage)

    def bank(self, recipe: BankRecipe, rebuild: bool, new_teacher: bool) -> Bank:
        """See `Pipeline`."""
        directory = self.out / "banks" / sha256_json(recipe.identity)[:_DIGITS]
        with locked(directory.with_suffix(".lock"), wait=True):
            return build_or_open(directory, recipe, rebuild, new_teacher)

    def head(self) -> Result | None:
        """A newly made head, trained; None where there is none."""
        with self.session():
            return self._head()

    @contextlib.contextmanager
    def session(self, training: bool = True) -> Iterator[None]:
        """See `Pipeline`; the study holds the directory."""
        with cpu_settings(self.config.engine):
            _ = self.pack
            yield

    def _load(self, domain: Domain) -> Any:
        data = self.config.data
        key = [self.model_spec, data.image_size, data.channels, self.config.seed]
        return self.shared.model(key, lambda: super(StudyRun, self)._load(domain))

    def _prepare(self, domain: Domain) -> Any:
        return self.shared.pack(self.pack_directory, lambda: super(StudyRun, self)._prepare(domain))

    def _brought_up_to_date(
        self, directory: StageDirectory, inputs: dict[str, Any], train: Callable[[], Outcome]
    ) -> Result:
        with locked(directory.path, wait=True):
            return super()._brought_up_to_date(directory, inputs, train)
