"""The models that evidence is of: as given, and what each stage made of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdfast.context import Context
from sdfast.errors import UserError
from sdfast.log import log
from sdfast.models.neighbours import FeatureClassifier, has_neighbours, load_neighbours
from sdfast.models.weights import weights_digest
from sdfast.rundir import Result, StoredResult, read_result

TITLES = {
    "initial": "initial model",
    "head": "after head",
    "pretrain": "after pretrain",
    "teacher": "last teacher",
    "distill": "after distill",
    "finetune": "after finetune",
}
"""The models by their keys, in the order in which they are shown."""
_LARGE = 20_000_000  # parameters of a model that takes a while on a CPU


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        key: of `TITLES`.
        weights: digest of its weights.
        folder: of its model; None for the model as given.
        place: its stage's folder, as a run directory has it; None for the model as given.
    """

    key: str
    weights: str
    folder: Path | None = None
    place: str | None = None

    def masked_model(self, context: Context) -> Any:
        """The model with the head that fills in what is masked: a copy in float32, in evaluation mode on the device.

        Raises:
            UserError: it is the model as given, and that is not there any more.
        """
        module = _given(context) if self.folder is None else context.modality.reload(self.folder).module
        return self._ready(module, context)

    def encoder(self, context: Context) -> Any:
        """The encoder, likewise."""
        if self.key == "finetune" and self.folder is not None and not has_neighbours(self.folder):
            return self.classifier(context)[0].encoder
        module = _given(context) if self.folder is None else context.modality.reload(self.folder).module
        return self._ready(module.encoder, context)

    def classifier(self, context: Context) -> tuple[Any, Any, list[str]]:
        """What classifies, likewise; what else its folder holds (`Classifier.companions`); and its classes."""
        assert self.folder is not None
        if not has_neighbours(self.folder):
            found = context.modality.read_classifier(self.folder)
            return self._ready(found.module, context), found.companions, found.names
        loaded, (neighbours, names) = context.modality.reload(self.folder), load_neighbours(self.folder)
        module = FeatureClassifier(loaded.module, neighbours)
        return self._ready(module, context), context.modality.companions(loaded), names

    def _ready(self, module: Any, context: Context) -> Any:
        if sum(parameter.numel() for parameter in module.parameters()) > _LARGE:
            log.info("report: looking at rows with the %s on %s", _named(self.key), context.device)
        return module.float().to(context.device).eval()

    def said(self) -> dict[str, Any]:
        """What a file says of it, by which `Standing` knows it again."""
        return {"weights": self.weights, "stage": self.place}


def _named(key: str) -> str:
    return TITLES[key] if key in ("initial", "teacher") else f"model {TITLES[key]}"


def _given(context: Context) -> Any:
    """A copy of the model as given."""
    module = context.model.module
    if weights_digest(module) != context.model.digest:  # of a run whose model is gone another has its name
        raise UserError("the model that the run was given is not there any more")
    return copy.deepcopy(module)


def subjects(context: Context, out: Path, results: Sequence[Result]) -> dict[str, Subject]:
    """The models, by key; of several results of one kind the run's own, or the last.

    A model whose weights are those of one before it is left out: `distill.rounds=0` hands the teacher on.
    """
    found = {"initial": Subject("initial", context.model.digest)}
    by_key: dict[str, Result] = {}
    rounds = context.config.distill.rounds
    for result in results:
        key, place = result.stage, _place(out, result)
        if place == f"distill/round-{rounds - 1}":
            key = "teacher"
        elif place.startswith("distill/"):
            continue
        if key in TITLES and (key not in by_key or _place(out, by_key[key]) != key):
            by_key[key] = result
    for key in TITLES:
        if (one := by_key.get(key)) is not None and one.weights not in {each.weights for each in found.values()}:
            found[key] = Subject(key, one.weights, one.model, _place(out, one))
    return found


def finished_stages(out: Path) -> list[Result]:
    """The results that a run directory holds, in the order of the stages; nothing is verified but their JSON."""
    found = [(folder, stored) for folder, stored in _stored(out).items() if stored.stage in TITLES]
    order = sorted(found, key=lambda each: (list(TITLES).index(each[1].stage), each[0] == "distill", each[0]))
    return [stored.result(out / folder / "model") for folder, stored in order]


class Standing:
    """Which models a run directory has now, told by its results: what was made of others is void."""

    def __init__(self, out: Path) -> None:
        stored = _stored(out)
        self._weights = {folder: each.weights for folder, each in stored.items()}
        self._given = {each.inputs.get("start") for each in stored.values()} - {*self._weights.values(), None}

    def has(self, said: Mapping[str, Any]) -> bool:
        """Whether that is the model which `Subject.said` told of."""
        if said.get("stage") is None:
            return said.get("weights") in self._given
        return self._weights.get(str(said["stage"])) == said.get("weights")


def _stored(out: Path) -> dict[str, StoredResult]:
    """By the names of their folders."""
    found = {}
    for folder in sorted([*out.glob("*"), *out.glob("distill/round-*")]):
        if (folder / "result.json").exists():
            with contextlib.suppress(UserError):
                if (stored := read_result(folder)) is not None:
                    found[folder.relative_to(out).as_posix()] = stored
    return found


def _place(out: Path, result: Result) -> str:
    """The folder of a result's stage in the run directory; elsewhere its name."""
    folder = result.model.parent
    with contextlib.suppress(ValueError):
        return folder.resolve().relative_to(out.resolve()).as_posix()
    return folder.name
