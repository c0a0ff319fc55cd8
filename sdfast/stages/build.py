"""One stage's training, put together: the same for runs, for `sdfast bench` and for benchmarks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdfast.context import Context, Kind, Reader
from sdfast.data.problem import REGRESSION
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.engine.prepare import prepare, running_teacher
from sdfast.engine.selection import Selection
from sdfast.engine.zero import Sharing
from sdfast.evaluation.classification import labels_of
from sdfast.log import log
from sdfast.objectives.base import Objective
from sdfast.objectives.choose import classifier_objective, masked_objective
from sdfast.objectives.cross_entropy import weights_note, with_listed_weights
from sdfast.objectives.several import Scaling, label_loss, weights_of
from sdfast.rng import derive_seed
from sdfast.stages.graph import Stage
from sdfast.stages.probe import standardise_features


def build_stage(
    context: Context,
    stage: Stage,
    start: Any,
    directory: Path,
    *,
    teacher: Any = None,
    inputs: dict[str, Any] | None = None,
    resume: bool = False,
    selection: Selection | None = None,
    read: Reader | None = None,
) -> Trainer:
    """A stage's trainer, ready for its first step; what it trains is `trainer.objective.module`.

    Args:
        context: of the run; of finetune the train split has labels.
        stage: which.
        start: module whose weights it starts from, which is left as it is.
        directory: of the stage: checkpoints and records go there.
        teacher: of distill, where features come from, or the teacher itself where something else is matched; None where
            it has no weight.
        inputs: everything that decides the result, by name; only checkpoints of the same are resumed.
        resume: whether to look for a checkpoint.
        selection: of the weights that the module has in the end; the last ones when None.
        read: brings rows of the train split to the device, where that is not `context.read`.

    Raises:
        UserError: masks that leave nothing to do, or an engine that cannot do the stage.
    """
    kind, config, engine = stage.kind, context.section(stage.kind), context.config.engine
    modality, train, seed = context.modality, context.train_of(kind), seed_of(context, stage)
    if kind == "finetune":
        names = context.pack.class_names
        module = modality.classifier(context.config, start, len(names), seed).to(context.device)
        if context.config.finetune.standardises:
            standardise_features(context, module)
        labels = torch.from_numpy(labels_of(train)).to(context.device)
        labelled = modality.labelled_views(context, seed)
        trained_on = labels[context.train_rows(kind).to(context.device)]
        settings = with_listed_weights(context.config.finetune, names)
        loss = label_loss(settings, context.pack.problem, trained_on, len(names))
        if (weights := weights_of(loss)) is not None:
            log.info("finetune: %s", weights_note(weights, names))
        if (scaling := scaling_of(context)) is not None:
            log.info("finetune: %s", scaling.note(names))
            labels = scaling.standardised(labels)
        objective: Objective = classifier_objective(module, labelled, labels, context.config, seed, loss)
    else:
        masked = modality.masked_views(context, kind, seed)
        module = copy.deepcopy(start).to(context.device)
        objective = masked_objective(module, masked, context.config, kind, seed, teacher)
    prepare(objective.module, engine, context.device, config.steps, context.config.zero, running_teacher(objective))
    data = TrainingData(
        modality.order(context, kind, seed),
        read or context.read(train),
        modality.unit,
        lambda: modality.flops(context, kind),
        lambda rows: names_of(context, kind, rows),
    )
    folder = StageFolder(directory, inputs or {}, resume)
    sharing = Sharing(context.ranks, context.config.zero, context.config.deepspeed)
    return Trainer(kind, objective, config, engine, data, folder, sharing, selection, context.followers)


def names_of(context: Context, kind: Kind, rows: Tensor) -> list[str]:
    """What rows [B] of the train split that a kind of stage sees are called in the source; of a chunk its document."""
    train = context.train_of(kind)
    items = rows.tolist() if hasattr(train, "names") else train.item_of[rows.numpy()].tolist()
    names = getattr(train, "names", None) or context.train.names
    return [names[item] for item in items]


def scaling_of(context: Context) -> Scaling | None:
    """The units of the labels of a run, of the rows that are trained on; None where they are no numbers."""
    if context.pack.problem != REGRESSION:
        return None
    return Scaling.of(torch.from_numpy(labels_of(context.train_of("finetune")))[context.train_rows("finetune")])


def seed_of(context: Context, stage: Stage) -> int:
    """The seed of all that is random in a stage: order, masks, flips, dropout and new heads."""
    if stage.kind == "finetune":
        return derive_seed(context.config.seed if stage.seed is None else stage.seed, "finetune")
    return derive_seed(context.config.seed, stage.kind, stage.round or 0)
