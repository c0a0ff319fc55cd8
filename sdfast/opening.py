"""From a configuration to what a run works with: device, processes, model and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from sdfast import bundled
from sdfast.config import Config, refuse_other_modality, with_own_settings
from sdfast.context import Kind, Modality, rows_of
from sdfast.data.pack_checks import first_names
from sdfast.data.problem import REGRESSION, SEVERAL, class_counts, has_label
from sdfast.engine.zero import import_deepspeed
from sdfast.errors import UserError
from sdfast.launch import join, launch_info
from sdfast.log import log
from sdfast.ranks import Ranks


def device_of(config: Config) -> torch.device:
    """Where to run.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device cpu or auto.")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", launch_info().local_rank) if launch_info().world > 1 else torch.device("cuda")


def ranks_of(config: Config, device: torch.device, told: Callable[[], Mapping[str, Any]]) -> Ranks:
    """The processes that work on a run.

    Args:
        config: of the run.
        device: of this process.
        told: what this process was told to do, by name; the same in all.

    Raises:
        UserError: there are several, or ZeRO is asked for, and DeepSpeed is not installed; or they were told different
            things.
    """
    if launch_info().world > 1 or config.zero.stage:
        import_deepspeed(device)
    ranks = join(device, alone=bool(config.zero.stage))
    ranks.check_same(told)
    return ranks


def model_path(config: Config) -> str:
    """Where the model is: a folder, a file of weights, or a hub id."""
    name = config.model_spec
    return str(bundled.model_folder(name)) if name in bundled.MODELS else name


def opened_model(config: Config, modality: Modality, ranks: Ranks, load: Callable[[Config], Any]) -> tuple[Any, Config]:
    """The model as given, and the configuration with its own settings.

    Args:
        config: of the run.
        modality: of the model.
        ranks: the processes of the run.
        load: reads the model with the settings.

    Raises:
        UserError: a setting is of the other modality, or the model cannot be taken.
    """
    refuse_other_modality(config, modality.name)
    model = load(config)
    ranks.check_same(lambda: {f"the digest of --model {config.model_spec}": model.digest})
    log.info("model: %s, %s", config.model_spec, modality.describe(model))
    for note in model.notes:
        log.warning("model: %s", note.removeprefix("warning: "))
    config, notes = with_own_settings(config, modality.own_settings(model))
    for note in notes:
        log.warning("model: %s", note)
    return model, config


def opened_data(config: Config, modality: Modality, prepare: Callable[[Config], Any]) -> tuple[Any, Config]:
    """The pack, and the configuration with a value for each key that depends on it.

    Args:
        config: with the model's own settings.
        modality: of the model.
        prepare: opens or builds the pack.
    """
    pack = prepare(config)
    train = pack.split("train")
    counts = ", ".join(_counted(name, split) for name, split in pack.splits.items())
    names = pack.class_names or []
    classes = f", {len(names)} classes" if names else ", unlabelled"
    classes += " (several a row)" * (pack.problem == SEVERAL)
    if pack.problem == REGRESSION:
        classes = f", labelled with {'a number' if len(names) == 1 else f'{len(names)} numbers'} ({first_names(names)})"
    log.info("data: %s: %s%s", " + ".join([config.data_spec, *config.data.unlabelled]), counts, classes)
    config = modality.settled(config, pack)
    kinds: list[Kind] = ["pretrain", "distill", *(("finetune",) if train.labels is not None else ())]
    splits = {kind: modality.training_split(pack, config, kind) for kind in kinds}
    rows = {kind: rows_of(splits[kind], config, kind) for kind in kinds}
    if "finetune" in rows:
        _say_limits(config, train, pack.class_names)
    return pack, config.resolved(modality.name, {kind: len(rows[kind]) for kind in kinds})


def _counted(name: str, split: Any) -> str:
    labelled = None if split.labels is None else int(has_label(split.labels).sum())
    return f"{len(split)} {name}" + ("" if labelled in (None, len(split)) else f" ({labelled} with a label)")


def _say_limits(config: Config, train: Any, names: list[str]) -> None:
    """What fine-tuning sees of the labelled rows, where that is not all of them: whole documents and pictures."""
    known, kept = train.labels[has_label(train.labels)], train.labels[rows_of(train, config, "finetune").numpy()]
    if config.data.labelled_limit is None or len(kept) == len(known):
        return
    log.info("data: finetune trains on %d of %d labelled rows (data.labelled_limit)", len(kept), len(known))
    counts, left = (class_counts(labels, len(names)) for labels in (known, kept))
    if gone := [names[label] for label in np.flatnonzero((counts > 0) & (left == 0))]:
        what = first_names(gone)
        log.warning("data: data.labelled_limit leaves no row of %d of %d classes: %s", len(gone), len(names), what)
