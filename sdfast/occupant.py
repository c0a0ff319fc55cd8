"""Whose run a directory holds, told by its configuration and by content, and what goes when another takes its place."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdfast.config import Config, resolve
from sdfast.context import Modality
from sdfast.data.modality import IMAGES, TEXTS
from sdfast.data.parallel import available_threads
from sdfast.data.sources import open_source
from sdfast.durable import read_json, write_json
from sdfast.errors import UserError
from sdfast.evaluation import predictions
from sdfast.log import log
from sdfast.rundir import REPORT_FOLDER, RESULT, StageDirectory, read_result
from sdfast.store import checkpoint
from sdfast.store.artifact import files_in

_REPLACED = ".replaced.json"  # the stages of a run that another takes the place of, until that has a result
_NEW = ("fresh_decoder", "fresh_head")  # what a model says of what was made for it
_ORDER = ("head", "pretrain", "distill", "finetune")
_PACK_FILE = re.compile(r"manifest\.json|(train|val|test)-[\w-]+\.(npy|json|bin)")
_REPORT_FILE = re.compile(  # of sdfast.report.evidence
    r"(masked|layers|map|mistakes)\.(json|png)|reconstructions\.png|(features-\w+|([\w.-]+-)?test-predictions)\.npz"
)
_BANK_FILE = re.compile(r"(manifest|built|plan)\.json|(rows|checksums)\.bin|(features|scales|journal)-\d+\.bin")


@dataclass(frozen=True)
class Occupant:
    """What a run directory in which something was trained holds; None where that cannot be told.

    Attributes:
        config: its configuration.
        model, data: as they were asked for.
        kind: `images` or `texts`.
        start: digest of the model as it was given.
        content: digest of the source of its data.
        stages: inputs of each stage that has ended or saved its state, by the name of its folder.
    """

    config: Config | None
    model: str | None
    data: str | None
    kind: str | None
    start: str | None
    content: str | None
    stages: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, out: Path) -> Occupant | None:
        """That of a directory; None where nothing was trained."""
        stages = _stages(out)
        if not stages:
            return None
        try:
            config = resolve(file=out / "config.yaml")
        except UserError:
            config = None
        model, data = (None, None) if config is None else (config.model_spec, config.data_spec)
        manifest = read_json(out / "pack" / "manifest.json")
        source = manifest.get("source") if isinstance(manifest, dict) else None
        content = source.get("content") if isinstance(source, dict) else None
        kinds = [kind for kind in ("images", "texts") if any(f"train {kind}" in each for each in stages.values())]
        kind = kinds[0] if len(kinds) == 1 else None
        return cls(config, model, data, kind, _start(out, stages), content, stages)

    def is_another_than(self, config: Config, modality: Modality, digest: str) -> bool:
        """Whether what a run asks for is not this. A changed folder is the same input as before, changed.

        What was moved is the same wherever it lies, by content.
        """
        if self.kind not in (None, modality.name):
            return True
        if not _same_place(self.model, config.model_spec) and self.start != digest:
            return True
        return not _same_place(self.data, config.data_spec) and self.content != _content(config, modality)

    def __str__(self) -> str:
        return _named(self.model, self.data, self.kind)


def make_room(out: Path, config: Config, modality: Modality, digest: str, replace_it: bool) -> None:
    """Check that a run's directory holds nothing or the same run; note what of another one is to be replaced.

    Args:
        out: the run directory.
        config: of the run.
        modality: of its model.
        digest: of that model as it was given.
        replace_it: whether another run there may go.

    Raises:
        UserError: it holds another, and nobody asked for it to be replaced.
    """
    there = Occupant.of(out)
    if there is None or not there.is_another_than(config, modality, digest):
        return
    asked = _named(config.model_spec, config.data_spec, modality.name)
    if not replace_it:
        raise UserError(
            f"{out} holds a run of {there}, and {asked} is asked for; choose another --out, or give `sdfast"
            " train` --replace (in Python replace=True) to have this one in its place."
        )
    log.warning("%s: the run of %s is replaced by one of %s", out, there, asked)
    write_json(out / _REPLACED, sorted(there.stages))


def sweep_replaced(out: Path, kept: Path) -> None:
    """Remove the stages of a run that another has replaced, its bank, its predictions, and what they were made of.

    Args:
        out: the run directory.
        kept: folder of the stage that is about to end.
    """
    names = read_json(out / _REPLACED)
    if names is None:
        return
    there = _stages(out)
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name in there and out / name != kept:
            _remove_stage(out / name)
    _remove_files(out / "teacher", _BANK_FILE.fullmatch)
    _remove_files(out / "eval-pack", _PACK_FILE.fullmatch)
    shutil.rmtree(out / ".partial-teacher", ignore_errors=True)
    predictions.remove(out)
    _remove_files(out / REPORT_FOLDER, _REPORT_FILE.fullmatch)  # the page itself is written anew
    forget_replaced(out)


def is_replaced(out: Path) -> bool:
    """Whether the run that is there is being replaced by another."""
    return (out / _REPLACED).exists()


def forget_replaced(out: Path) -> None:
    """Nothing is replaced (any more): a stage that was there turned out to be what is asked for."""
    (out / _REPLACED).unlink(missing_ok=True)


def kept_model(out: Path, config: Config) -> Path | None:
    """A model of the run that has the shape and companions of the one it was given, should that be gone."""
    there = Occupant.of(out)
    if there is None or there.start is None or not _same_place(there.model, config.model_spec):
        return None
    names = sorted(there.stages, key=lambda name: _ORDER.index(there.stages[name]["stage"]))
    folders = [out / name / "model" for name in names if read_result(out / name) is not None]
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def as_given(out: Path, config: Config, loaded: Any) -> Any:
    """What `kept_model` gave, with the identity of the model that is gone; its weights are others."""
    there = Occupant.of(out)
    assert there is not None
    more = {name: "head" in there.stages for name in _NEW if hasattr(loaded, name)}
    return replace(loaded, name=config.model_spec, digest=there.start, notes=[], **more)


def kept_data(out: Path, config: Config) -> bool:
    """Whether the run's pack is of the data that are asked for, should those be gone."""
    there = Occupant.of(out)
    if there is None or there.config is None or not _same_place(there.data, config.data_spec):
        return False
    free = {"source": None, "limit": None, "labelled_limit": None, "limit_seed": 0}  # they are not in the pack
    free |= {"chunk": None, "chunk_stride": 0, "pack_short": False}
    data = [each.data for each in (config, there.config)]
    mine, theirs = (each.model_copy(update={**free, "resize": each.resize or "squash"}) for each in data)
    return mine == theirs and (out / "pack" / "manifest.json").is_file()


def was_cut(out: Path, config: Config) -> bool:
    """Whether the run that is there cut long documents, and was of the data that are asked for."""
    there = Occupant.of(out)
    if there is None or there.config is None or not _same_place(there.data, config.data_spec):
        return False
    return there.config.data.chunk is False


def _stages(out: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for folder in sorted([*out.glob("*"), *out.glob("distill/round-*")]):
        stored = read_result(folder)
        inputs = checkpoint.inputs_of(folder / "checkpoints") if stored is None else stored.inputs
        if inputs is not None and inputs.get("stage") in _ORDER:
            found[folder.relative_to(out).as_posix()] = inputs
    return found


def _start(out: Path, stages: dict[str, dict[str, Any]]) -> str | None:
    """What the first stage started from: later ones may have started from a model that a stage made."""
    made = {stored.weights for name in stages if (stored := read_result(out / name)) is not None}
    for stage in _ORDER:
        starts = {inputs.get("start") for inputs in stages.values() if inputs["stage"] == stage} - made - {None}
        if starts:
            return starts.pop() if len(starts) == 1 else None
    return None


def _same_place(spec: str | None, other: str) -> bool:
    if spec is None or "\0" in f"{spec}{other}":  # no path has one, and whoever opens it says so
        return spec == other
    return spec == other or Path(spec).expanduser().resolve() == Path(other).expanduser().resolve()


def _content(config: Config, modality: Modality) -> str:
    words = {"images": IMAGES, "texts": TEXTS}[modality.name]
    return open_source(modality.source(config), config.data, words).content_digest(available_threads())


def _named(model: str | None, data: str | None, kind: str | None) -> str:
    return f"{model or 'an unknown model'} on {data or 'unknown data'}" + (f" ({kind})" if kind else "")


def _remove_stage(folder: Path) -> None:
    """What a stage has written; what else lies there stays."""
    stage = StageDirectory(folder, folder.name)
    foreign = set(stage.foreign())
    _remove_files(stage.model, lambda name: name not in foreign)
    checkpoint.clear(folder / "checkpoints")
    # in this order: by the result it is known, should this be cut
    _remove_files(folder, lambda name: name in ("metrics.jsonl", RESULT))


def _remove_files(folder: Path, ours: Callable[[str], object]) -> None:
    """Remove files by their names in a folder, in order, and then the folders in which nothing is left."""
    for name, path in files_in(folder).items():
        if ours(name):
            path.unlink()
    for place, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(place)
