"""Where the stages of a study lie: in folders named by content, so that all cells share those that coincide."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sdfast.config import Config
from sdfast.context import Context
from sdfast.durable import sha256_json
from sdfast.engine.machine import cpu_settings
from sdfast.engine.teacher_bank import build_or_open
from sdfast.locks import locked
from sdfast.modalities.choose import modality_of
from sdfast.models.hub import find_model_folder
from sdfast.opening import device_of, model_path, opened_data, opened_model, ranks_of
from sdfast.rundir import StageDirectory, slug
from sdfast.stages.graph import Stage
from sdfast.teacher.bank import Bank
from sdfast.teacher.recipe import BankRecipe
from sdfast.trackers.choose import check_trackers, trackers_of

_DIGITS = 12  # of a fingerprint, in a folder's name
_NAMING = {  # keys of `data` that every pack's folder is named by; a later one where it is not at its default
    *("source", "image_size", "channels", "test_fraction", "split_seed", "max_broken", "duplicates", "image_key"),
    *("text_key", "label_key", "split_key", "encoding", "unseen", "exif_rotation", "background", "range"),
    *("max_pixels", "max_length", "token_budget"),
}
# they choose rows of a pack, and one pack serves all
_VIEWS = {"limit", "labelled_limit", "limit_seed", "chunk", "chunk_stride", "pack_short"}


class Shared:
    """Models and packs that were opened, for the next cell that wants the same."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._packs: dict[tuple[Path, bool], Any] = {}

    def model(self, key: list[Any], load: Callable[[], Any]) -> Any:
        """The last one, when it is of the same key; only one is kept."""
        name = json.dumps(key)
        if name not in self._models:
            self._models = {name: load()}
        return self._models[name]

    def pack(self, directory: Path, chunked: bool, prepare: Callable[[], Any]) -> Any:
        """The pack of a folder, which is compared with its source once, and once more where chunks are asked for."""
        key = directory, chunked
        if key not in self._packs:
            self._packs[key] = prepare()
        return self._packs[key]


class Store:
    """`stages/<stage>-<fingerprint>/`, `banks/<identity>/` and `packs/<model>-<data>-<digest>/` of a study.

    The study holds its directory; here only what is being written is locked, and who wants the same waits.
    """

    def __init__(self, out: Path, shared: Shared, as_kept: bool = False) -> None:
        """Set up.

        Args:
            out: the study's directory.
            shared: what is open already.
            as_kept: packs are taken as they lie there, whatever became of their source.
        """
        self.out, self.shared, self.as_kept = out, shared, as_kept

    @contextlib.contextmanager
    def opened(self, config: Config) -> Iterator[Context]:
        """What the stages of a cell work with; torch is set as the cell asks for."""
        check_trackers(config.engine.trackers)
        with cpu_settings(config.engine, device_of(config)):
            context = self._open(config)
            try:
                yield context
            finally:
                for each in context.followers:
                    each.finish()

    def _open(self, config: Config) -> Context:
        device, path = device_of(config), model_path(config)
        ranks = ranks_of(config, device, config.flat)
        modality, data = modality_of(find_model_folder(path)), config.data
        key = [
            config.model_spec,
            data.image_size,
            data.channels,
            data.add_tokens,
            data.vocabulary_multiple,
            config.seed,
        ]
        model, config = opened_model(
            config, modality, ranks, lambda given: self.shared.model(key, lambda: modality.load(path, given))
        )
        directory, spec = self._pack_directory(config), modality.source(config)

        def prepare(given: Config) -> Any:
            def make() -> Any:
                if self.as_kept:
                    return modality.open_pack(directory)
                return modality.prepare_pack(spec, directory, given, model, path)

            return self.shared.pack(directory, bool(data.chunk), make)

        pack, config = opened_data(config, modality, prepare)
        followers = trackers_of(config, None)  # a stage that arms share is a run of its own
        return Context(config, modality, device, ranks, modality.fitted(model, pack, config), pack, followers)

    def _pack_directory(self, config: Config) -> Path:
        """Named by what decides the pack, as it was asked for."""
        data = config.data
        later = {name for name, field in type(data).model_fields.items() if getattr(data, name) == field.default}
        options = data.model_dump(mode="json", exclude=_VIEWS | (later - _NAMING))
        digest = sha256_json([config.model_spec, options])[:_DIGITS]
        names = dict.fromkeys((slug(config.model_spec), slug(config.data_spec)))
        return self.out / "packs" / f"{'-'.join(names)}-{digest}"

    def directory(self, stage: Stage, inputs: dict[str, Any]) -> StageDirectory:
        """Named by the stage's fingerprint."""
        return StageDirectory(self.out / "stages" / f"{stage.kind}-{sha256_json(inputs)[:_DIGITS]}", stage.kind)

    def holding(self, directory: StageDirectory) -> contextlib.AbstractContextManager[object]:
        """Who wants the same stage waits."""
        return locked(directory.path, wait=True)

    def bank(self, recipe: BankRecipe, rebuild: bool, new_teacher: bool) -> Bank:
        """Named by the bank's identity."""
        directory = self.out / "banks" / sha256_json(recipe.identity)[:_DIGITS]
        with locked(directory.with_suffix(".lock"), wait=True):
            return build_or_open(directory, recipe, rebuild, new_teacher)

    def check_trainable(self, directory: StageDirectory, later: Sequence[Stage]) -> None:
        """Nothing that no stage wrote lies where the model will; later stages have folders of their own."""
        directory.check_replaceable()

    def found_done(self) -> None:
        """Nothing in a store takes the place of something else."""

    def replaced(self, directory: StageDirectory) -> None:
        """Nothing else was made of the model before."""
