"""How one stage is trained: its objective, its batches, and what is kept of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sdfast.domains.base import MaskedStage, labels_of
from sdfast.engine.base import Sharing
from sdfast.engine.loop import Trained, Trainer
from sdfast.engine.prepare import prepare, running_teacher
from sdfast.engine.selection import Selection
from sdfast.engine.teacher_bank import bank_targets
from sdfast.evaluation.classification import (
    baseline_note,
    classification_metrics,
    dev_metric,
    dev_split,
    labelled_rows,
    reported_metrics,
)
from sdfast.evaluation.distance import encoder_distance
from sdfast.log import log
from sdfast.models.compiled import use_compiled
from sdfast.models.text import MaskedLanguageModel
from sdfast.models.vit import MaskedAutoencoder, use_attention
from sdfast.models.weights import weights_digest
from sdfast.objectives.base import Objective
from sdfast.objectives.choose import finish, why_no_bank
from sdfast.rng import derive_seed
from sdfast.rundir import Outcome, Result
from sdfast.teacher.preflight import check_teacher_differs
from sdfast.teacher.targets import Teacher

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline


def train_masked(
    run: Pipeline, directory: Path, stage: MaskedStage, inputs: dict[str, Any], start: Any, teacher: Result | None
) -> Outcome:
    """Further pre-training, or with a teacher self-distillation.

    Args:
        run: the run that the stage belongs to.
        directory: of the stage.
        stage: its name.
        inputs: everything that decides the result, by name.
        start: the pre-trained model whose weights it starts from.
        teacher: the stage whose model is matched.

    Raises:
        UserError: masks that leave nothing to do, or a teacher that is unfit.
    """
    module = copy.deepcopy(start.module).to(run.device)
    seed = derive_seed(run.config.seed, stage, inputs.get("round", 0))
    targets = None if teacher is None else _teacher(run, teacher)
    objective = run.domain.masked(module, stage, seed, targets)
    trained = _fit(run, directory, stage, objective, inputs, seed)
    metrics = {"distance": encoder_distance(run.initial.module.encoder, module.encoder)}
    numbers = _numbers(run, trained)
    return Outcome(
        weights_digest(module),
        lambda folder: run.domain.write(module, folder, stage, trained.steps),
        numbers,
        metrics,
    )


def _teacher(run: Pipeline, source: Result) -> Teacher | MaskedAutoencoder | MaskedLanguageModel | None:
    """Where distill's targets come from; None when they have no weight."""
    config = run.config
    if config.distill.weight == 0:
        return None
    loaded = run.domain.reload(source.model)
    check_teacher_differs(loaded.module.encoder, run.initial.module.encoder)
    if (reason := why_no_bank(config)) is not None:
        log.info("%s", reason)
        return loaded.module.to(run.device)
    if config.teacher.mode == "live":
        return run.domain.live_teacher(loaded)
    recipe = run.domain.recipe(loaded, run.pack)
    run.domain.check_deterministic(recipe)
    bank = run.bank(recipe, rebuild=not run.resume, new_teacher=True)
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
    names, domain = run.pack.class_names, run.domain
    assert names is not None
    seed = derive_seed(seed, "finetune")
    encoder_source = run.initial.module if start is None else domain.reload(start.model).module
    module = domain.classifier(encoder_source, len(names), seed).to(run.device)
    train, test = run.pack.split("train"), run.test_split
    objective = domain.classification(module, torch.from_numpy(labels_of(train)).to(run.device), seed)
    selection = _selection(run, len(names)) if run.config.finetune.best_dev else None
    trained = _fit(run, directory, "finetune", objective, inputs, seed, selection)
    finish(module)
    use_attention(module, "auto")  # evaluated in float32, which a backend named for bf16 may not compute
    use_compiled(module, on=False)  # nor is it worth compiling for that
    on_train = _scores(run, module, train, run.train_rows("finetune"))
    on_test = _scores(run, module, test, labelled_rows(test))
    metrics = reported_metrics(on_test, len(names)) | {"train_loss": on_train["loss"]}
    log.info("%s", baseline_note(torch.from_numpy(labels_of(test))[labelled_rows(test)], names))
    metrics["generalisation_gap"] = metrics["test_loss"] - metrics["train_loss"]
    metrics["distance"] = encoder_distance(run.initial.module.encoder, module.encoder)
    numbers = _numbers(run, trained)
    if (paper := run.paper_metric) is not None:
        numbers["paper_metric"] = paper
    if trained.best is not None:
        metrics |= trained.best.scores
        numbers |= {"best_step": trained.best.step, "best_by": dev_metric(run.paper_metric, domain.modality)}
    return Outcome(
        weights_digest(module),
        lambda folder: domain.write_classifier(module, folder, names, trained.steps),
        numbers,
        metrics,
    )


def _selection(run: Pipeline, classes: int) -> Selection:
    """Of the weights that do best on the val split; their scores there are called `dev_...`."""
    dev = dev_split(run.pack, run.data_spec)

    def score(state: dict[str, Tensor]) -> dict[str, float]:
        module = run.domain.filled(state, classes).to(run.device)
        scores = _scores(run, module, dev, labelled_rows(dev))
        return {f"dev_{name}": scores[name] for name in ("accuracy", "macro_f1", "micro_f1", "loss")}

    return Selection(score, f"dev_{dev_metric(run.paper_metric, run.domain.modality)}", run.config.finetune.evaluations)


def _scores(run: Pipeline, module: nn.Module, split: Any, rows: Tensor) -> dict[str, float]:
    """See `classification_metrics`; of rows that the processes share, the same in each."""
    share, domain = rows[run.ranks.part(len(rows))], run.domain
    logits = torch.cat(run.ranks.exchange(domain.predict(module, domain.companions, split, share)))
    return classification_metrics(logits, torch.from_numpy(labels_of(split))[rows])


def _fit(
    run: Pipeline,
    directory: Path,
    stage: MaskedStage | Literal["finetune"],
    objective: Objective,
    inputs: dict[str, Any],
    seed: int,
    selection: Selection | None = None,
) -> Trained:
    config, engine, domain = run.section(stage), run.config.engine, run.domain
    prepare(objective.module, engine, run.device, config.steps, run.config.zero, running_teacher(objective))
    train, rows = run.pack.split("train"), run.train_rows(stage)
    where = f"{run.device}" if run.ranks.world == 1 else f"{run.ranks.world} processes, {run.device.type}"
    log.info("%s: %d steps of %d %s on %s", stage, config.steps, config.batch_size, domain.modality, where)
    if config.batch_size < run.ranks.world:
        idle = run.ranks.world - config.batch_size
        log.warning("%s.batch_size=%d leaves %d processes idle in every step", stage, config.batch_size, idle)
    if run.config.zero.stage and (worth := domain.worth_of_zero(stage)) is not None:
        log.info(worth)
    return Trainer(
        stage,
        objective,
        config,
        engine,
        domain.order(train, rows, config, seed),
        run.read(train),
        directory,
        inputs,
        run.resume,
        domain.flops(stage, rows),
        Sharing(run.ranks, run.config.zero, run.config.deepspeed),
        domain.unit,
        selection,
    ).run()


def _numbers(run: Pipeline, trained: Trained) -> dict[str, Any]:
    rate = {f"{run.domain.unit}_per_s": trained.rows_per_second}
    return {"steps": trained.steps, "seconds": trained.seconds, **rate}
