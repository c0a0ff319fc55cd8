"""Everything that decides a stage's result, by name: its digest is the stage's fingerprint."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.config import deciding_keys
from sdfast.context import Context
from sdfast.data.problem import SEVERAL, SINGLE
from sdfast.durable import sha256_array
from sdfast.engine.machine import resolve_precision
from sdfast.evaluation.classification import dev_inputs, dev_split, labelled_rows, labels_of, threshold_split
from sdfast.evaluation.scoring import SCORING
from sdfast.objectives.cross_entropy import listed_weights
from sdfast.stages.graph import Stage

_WEIGHTS = "finetune.class_weights"


def inputs_of(context: Context, stage: Stage, weights: dict[Stage, str]) -> dict[str, Any]:
    """Content digests and configuration values.

    Args:
        context: of the run.
        stage: which.
        weights: digests of those of the stages that it needs.
    """
    teacher = None if stage.teacher is None else weights[stage.teacher]
    if stage.round == 0:
        return {"stage": "distill", "round": 0, "teacher": teacher}
    config, name = context.config, context.modality.name
    inputs: dict[str, Any] = {"stage": stage.kind, "seed": config.seed if stage.seed is None else stage.seed}
    inputs["start"] = context.model.digest if stage.start is None else weights[stage.start]
    if teacher is not None:
        inputs |= {"teacher": teacher, "round": stage.round}
    if stage.kind == "finetune":
        inputs["classes"] = context.pack.class_names
        if context.pack.problem != SINGLE:
            inputs["problem_type"] = context.pack.problem
    rows = context.train_rows(stage.kind).numpy()
    inputs[f"train {name}"] = sha256_array(context.train_of(stage.kind).digests[rows])
    inputs["train rows"] = sha256_array(rows)  # they key masks, order and flips
    inputs |= context.modality.inputs(context, stage.kind)
    inputs["precision"] = resolve_precision(config.engine.precision, context.device)
    if stage.kind == "distill":
        inputs |= _of_the_teacher(context, inputs["precision"])
    inputs |= deciding_keys(config, stage.kind, name, context.section(stage.kind))
    if stage.kind == "finetune":
        if isinstance(weighed := inputs.get(_WEIGHTS), dict):  # whoever names classes asks for what a list asks for
            inputs[_WEIGHTS] = listed_weights(weighed, context.pack.class_names)
        inputs |= _of_the_evaluation(context, rows)
    return inputs


def _of_the_teacher(context: Context, precision: str) -> dict[str, Any]:
    """What it computes in, and its views, where they decide the result: in float32, live and bank give the same."""
    config = context.config
    found: dict[str, Any] = {}
    if config.teacher.views:  # they decide the pixels
        found["teacher.views"] = config.teacher.views
    autocast = dict.fromkeys(("bf16", "bf16-weights"), "bf16 autocast") | {"fp16": "fp16 autocast", "tf32": "tf32"}
    live = config.teacher.mode == "live"
    dtype = autocast.get(precision, "float32") if live else config.teacher.dtype  # a bank's is in full float32
    if dtype != "float32" and config.distill.match == "features":
        found["teacher.dtype"] = dtype
    return found


def _of_the_evaluation(context: Context, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Labels, and what is evaluated on."""
    name, train, test = context.modality.name, context.train_of("finetune"), context.test
    tested = labelled_rows(test).numpy()
    found = {
        "train labels": sha256_array(labels_of(train)[rows]),
        f"test {name}": sha256_array(test.digests[tested]),
        "test labels": sha256_array(labels_of(test)[tested]),
    }
    seen = {"test": test}
    if context.config.finetune.best_dev:
        seen["val"] = dev = dev_split(context.pack, context.config.data_spec)
        by = SCORING[context.pack.problem].dev_metric(context.paper_metric, name)
        found |= dev_inputs(dev, name, by)
    elif context.pack.problem == SEVERAL and (chooser := threshold_split(context.pack)) is not None:
        seen["val"] = chooser
        found |= dev_inputs(chooser, name, "threshold")
    for split, rows_of_it in seen.items():
        voting = context.modality.voting(context.pack, rows_of_it, context.config)
        if voting is not None and voting.adds_content:
            found[f"{split} votes"] = sha256_array(voting.digests)
    return found
