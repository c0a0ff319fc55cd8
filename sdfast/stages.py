"""How one stage is trained: its objective, its batches, and what is kept of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from sdfast.data.masking import visible_count
from sdfast.data.order import BatchOrder
from sdfast.data.pack import PackSplit
from sdfast.engine.accounting import step_spec
from sdfast.engine.base import Sharing
from sdfast.engine.loop import Trained, Trainer
from sdfast.engine.plan import worth_of_zero
from sdfast.engine.prepare import prepare
from sdfast.engine.teacher_bank import augmentation, bank_targets, build_or_open, recipe_of
from sdfast.errors import UserError
from sdfast.evaluation.classification import classification_metrics, labelled_rows, predict
from sdfast.evaluation.distance import encoder_distance
from sdfast.log import log
from sdfast.models import checkpoint as models
from sdfast.models.flops import step_flops
from sdfast.models.vit import MaskedAutoencoder, use_attention
from sdfast.objectives.base import Objective
from sdfast.objectives.choose import classifier_objective, masked_objective, why_no_bank
from sdfast.objectives.contrastive import drop_projection
from sdfast.regularizers.choose import advice, on_optimizer
from sdfast.regularizers.r4f import add_spectral_norm, fold_spectral_norm
from sdfast.rng import derive_seed
from sdfast.rundir import Outcome, Result
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.preflight import check_deterministic, check_teacher_differs
from sdfast.teacher.targets import Teacher

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline


def train_mae(
    run: Pipeline,
    directory: Path,
    stage: Literal["pretrain", "distill"],
    inputs: dict[str, Any],
    teacher: Result | None,
) -> Outcome:
    """Further pre-training, or with a teacher self-distillation, from the initial weights.

    Args:
        run: the run that the stage belongs to.
        directory: of the stage.
        stage: its name.
        inputs: everything that decides the result, by name.
        teacher: the stage whose model is matched.

    Raises:
        UserError: masks that leave nothing visible, or a teacher that is unfit.
    """
    config, initial = run.config, run.initial
    if config.pretrain.mask == "fixed" and not visible_count(initial.shape.patches, config.pretrain.mask_ratio):
        raise UserError(
            f"pretrain.mask_ratio={config.pretrain.mask_ratio} leaves none of the {initial.shape.patches}"
            " patches of an image visible; lower it."
        )
    module = copy.deepcopy(initial.module).to(run.device)
    seed = derive_seed(config.seed, stage, inputs.get("round", 0))
    digests = run.pack.split("train").digests
    fresh = teacher is None or not config.teacher.views
    augment = augmentation(config, digests, seed if fresh else None)
    matched = None if teacher is None else _teacher(run, teacher)
    objective = masked_objective(module, run.normalise, config, stage, seed, matched, augment=augment)
    trained = _fit(run, directory, stage, objective, inputs, seed)
    return Outcome(
        models.weights_digest(module),
        lambda folder: models.save_mae(
            module,
            folder,
            initial.processor,
            mask_ratio=config.pretrain.mask_ratio,
            norm_pix_loss=config.pretrain.norm_pix,
        ),
        _numbers(trained),
        {"distance": encoder_distance(initial.module.encoder, module.encoder)},
    )


def _teacher(run: Pipeline, source: Result) -> Teacher | MaskedAutoencoder | None:
    """Where distill's targets come from; None when they have no weight."""
    config = run.config
    if config.distill.weight == 0:
        return None
    loaded = models.load_mae(str(source.model))
    check_teacher_differs(loaded.module.encoder, run.initial.module.encoder)
    if (reason := why_no_bank(config)) is not None:
        log.info("%s", reason)
        return loaded.module.to(run.device)
    if config.teacher.mode == "live":
        return LiveTeacher(loaded.module.encoder, config.distill.tokens, config.distill.layer).to(run.device)
    recipe = recipe_of(loaded, run.pack, config, run.device)
    images = run.images(run.pack.split("train"))

    def read(rows: Tensor) -> Tensor:
        pixels = run.normalise(images(rows))
        return pixels if recipe.augment is None else recipe.augment(pixels, rows, 0)

    check_deterministic(read, torch.from_numpy(recipe.rows))
    bank = build_or_open(run.out / "teacher", recipe, rebuild=not run.resume, new_teacher=True)
    return bank_targets(bank, recipe, config.teacher.residency)


def train_classifier(
    run: Pipeline, directory: Path, inputs: dict[str, Any], start: Result | None, seed: int
) -> Outcome:
    """Fine-tuning, and its metrics on the training and test rows.

    Args:
        run: the run that the stage belongs to; its train and test splits have labels.
        directory: of the stage.
        inputs: everything that decides the result, by name.
        start: the stage whose weights it starts from; the initial ones when None.
        seed: of order, flips, dropout and head.
    """
    names = run.pack.class_names
    assert names is not None
    seed = derive_seed(seed, "finetune")
    config = run.config.finetune
    encoder_source = run.initial.module if start is None else models.load_mae(str(start.model)).module
    module = models.classifier_from_mae(encoder_source, len(names), config.dropout, seed).to(run.device)
    train, test = run.pack.split("train"), run.test_split
    labels = torch.from_numpy(labels_of(train)).to(run.device)
    regularizer = on_optimizer(config, module)
    if config.regularizer == "r4f":
        add_spectral_norm(module.classifier, seed)
    for sentence in advice(config):
        log.warning("finetune: %s", sentence)
    objective = classifier_objective(module, run.normalise, labels, run.config, seed, regularizer)
    trained = _fit(run, directory, "finetune", objective, inputs, seed)
    if config.regularizer == "r4f":
        fold_spectral_norm(module.classifier)
    drop_projection(module)
    use_attention(module, "auto")  # evaluated in float32, which a backend named for bf16 may not compute
    scores = {}
    for split, rows in ((train, run.train_rows("finetune")), (test, labelled_rows(test))):
        share = rows[run.ranks.part(len(rows))]
        logits = torch.cat(run.ranks.exchange(predict(module, run.normalise, run.images(split), share)))
        scores[split is train] = classification_metrics(logits, torch.from_numpy(labels_of(split))[rows])
    metrics = {name: scores[False][name] for name in ("accuracy", "macro_f1", "micro_f1")}
    metrics |= {"test_loss": scores[False]["loss"], "train_loss": scores[True]["loss"]}
    metrics["generalisation_gap"] = metrics["test_loss"] - metrics["train_loss"]
    metrics["distance"] = encoder_distance(run.initial.module.encoder, module.encoder)
    return Outcome(
        models.weights_digest(module),
        lambda folder: models.save_classifier(module, folder, run.initial.processor, names, config.dropout),
        _numbers(trained),
        metrics,
    )


def _fit(
    run: Pipeline,
    directory: Path,
    stage: Literal["pretrain", "distill", "finetune"],
    objective: Objective,
    inputs: dict[str, Any],
    seed: int,
) -> Trained:
    config, engine = getattr(run.config, stage), run.config.engine
    prepare(objective.module, engine, run.device, config.steps, run.config.zero)
    order = BatchOrder(run.train_rows(stage), config.batch_size, seed)
    where = f"{run.device}" if run.ranks.world == 1 else f"{run.ranks.world} processes, {run.device.type}"
    log.info("%s: %d steps of %d images on %s", stage, config.steps, config.batch_size, where)
    if config.batch_size < run.ranks.world:
        idle = run.ranks.world - config.batch_size
        log.warning("%s.batch_size=%d leaves %d processes idle in every step", stage, config.batch_size, idle)
    if run.config.zero.stage:
        log.info(worth_of_zero(run.initial.shape, stage, run.config, run.device, run.ranks.world))
    images = run.images(run.pack.split("train"))
    classes = len(run.pack.class_names or ())
    flops = step_flops(step_spec(stage, run.config, run.initial.shape, classes)).total
    sharing = Sharing(run.ranks, run.config.zero, run.config.deepspeed)
    return Trainer(stage, objective, config, engine, order, images, directory, inputs, run.resume, flops, sharing).run()


def labels_of(split: PackSplit) -> np.ndarray:
    """[n] int64, of a split that has labels (`Pipeline.finetune` makes sure of it)."""
    assert split.labels is not None
    return split.labels


def _numbers(trained: Trained) -> dict[str, Any]:
    return {"steps": trained.steps, "seconds": trained.seconds, "img_per_s": trained.images_per_second}
