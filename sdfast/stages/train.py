"""How one stage is trained, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdfast.context import Context, rows_of
from sdfast.data.problem import SEVERAL
from sdfast.durable import copy_folder
from sdfast.engine.selection import Selection
from sdfast.engine.teacher_bank import bank_targets
from sdfast.evaluation.classification import (
    dev_split,
    encoder_distance,
    labelled_rows,
    labels_of,
    threshold_split,
)
from sdfast.evaluation.scoring import HALF, SCORING, Scoring
from sdfast.evaluation.votes import answers_of
from sdfast.log import log
from sdfast.models.blocks import use_attention
from sdfast.models.compiled import use_compiled
from sdfast.models.folder import add_threshold
from sdfast.models.neighbours import FeatureClassifier, Features, Neighbours, left_out, save_neighbours
from sdfast.models.peft_folder import Adapter
from sdfast.models.weights import weights_digest
from sdfast.objectives.choose import finish, why_no_bank
from sdfast.regularizers.choose import advice
from sdfast.rundir import Outcome, Result
from sdfast.stages.build import build_stage, scaling_of
from sdfast.stages.card import finish_card
from sdfast.stages.graph import Stage
from sdfast.teacher.bank import Bank
from sdfast.teacher.preflight import check_teacher_differs
from sdfast.teacher.recipe import BankRecipe
from sdfast.teacher.targets import Teacher

OpenBank = Callable[[BankRecipe], Bank]


def train_stage(
    context: Context,
    stage: Stage,
    directory: Path,
    inputs: dict[str, Any],
    needs: dict[Stage, Result],
    bank: OpenBank,
    resume: bool = True,
) -> Outcome:
    """Train a stage to its end.

    Args:
        context: of the run.
        stage: which.
        directory: of the stage.
        inputs: everything that decides the result, by name.
        needs: results of the stages that it needs.
        bank: opens or builds the bank of a recipe.
        resume: whether to continue from a checkpoint.

    Raises:
        UserError: masks that leave nothing to do, or a teacher that is unfit.
    """
    modality, config = context.modality, context.config
    if stage.round == 0:
        return _handed_on(context, next(iter(needs.values())), directory / "model")
    start, teacher = sources_of(context, stage, needs, bank)
    if stage.kind == "finetune" and config.finetune.method == "knn":
        return _voted(context, stage, start)
    best = _selection(context) if stage.kind == "finetune" and config.finetune.best_dev else None
    _announce(context, stage)
    trainer = build_stage(
        context, stage, start, directory, teacher=teacher, inputs=inputs, resume=resume, selection=best
    )
    trained = trainer.run()
    module: Any = trainer.objective.module
    numbers: dict[str, Any] = {
        "steps": trained.steps,
        "seconds": trained.seconds,
        f"{modality.unit}_per_s": trained.rows_per_second,
    }
    adapter = _adapter(context, stage, module)
    if stage.kind != "finetune":
        finish(module)
        distance = encoder_distance(context.model.module.encoder, module.encoder)

        def write(folder: Path) -> None:
            modality.write(context, module, folder, stage.kind, trained.steps)
            adapter(module, folder)
            finish_card(folder, context, stage, trained.steps)

        return Outcome(weights_digest(module), write, numbers, {"distance": distance})
    metrics, tables = _evaluated(context, module)
    if (paper := context.paper_metric) is not None:
        numbers["paper_metric"] = paper
    if trained.best is not None:
        metrics |= trained.best.scores
        numbers |= {"best_step": trained.best.step, "best_by": _dev_metric(context)}
    names = context.pack.class_names

    def write_classifier(folder: Path) -> None:
        modality.write_classifier(context, module, folder, names, trained.steps)
        adapter(module, folder)
        if "threshold" in metrics:
            add_threshold(folder, metrics["threshold"])
        finish_card(folder, context, stage, trained.steps, metrics)

    return Outcome(
        weights_digest(module),
        write_classifier,
        numbers,
        metrics,
        tables,
    )


def _adapter(context: Context, stage: Stage, module: Any) -> Callable[[Any, Path], None]:
    """What writes the adapter of a module that LoRA has trained, given it finished and the folder of its model."""
    if stage.kind == "head" or getattr(context.config, stage.kind).method != "lora":
        return lambda finished, folder: None
    adapter = Adapter(module, context.modality.naming(module), encoder_only=stage.kind != "finetune")
    return lambda finished, folder: adapter.write(finished, folder / "adapter")


def _voted(context: Context, stage: Stage, start: Any) -> Outcome:
    """finetune.method=knn: the labelled training rows vote; the model is what it starts from, with them beside it."""
    began, given, names = time.monotonic(), context.config.finetune.knn, context.pack.class_names
    train, rows = context.train_of("finetune"), context.train_rows("finetune")
    log.info(
        "finetune: the %d nearest of %d training %s vote", min(given.k, len(rows)), len(rows), context.modality.name
    )
    module = FeatureClassifier(start, Features(start.shape.encoder.width)).to(context.device)
    features, labels = _given(context, module, train, rows), torch.from_numpy(labels_of(train))[rows]
    module.classifier = Neighbours(features, labels, len(names), given.k, given.temperature).to(context.device)
    metrics, tables = _evaluated(context, module)

    def write(folder: Path) -> None:
        context.modality.write(context, start, folder, "knn", 0)
        save_neighbours(module.classifier, names, folder)
        finish_card(folder, context, stage, 0, metrics)

    rate = {f"{context.modality.unit}_per_s": 0.0}
    numbers: dict[str, Any] = {"steps": 0, "seconds": time.monotonic() - began, **rate}
    if (paper := context.paper_metric) is not None:
        numbers["paper_metric"] = paper
    return Outcome(weights_digest(module), write, numbers, metrics, tables)


def _handed_on(context: Context, teacher: Result, model: Path) -> Outcome:
    """distill.rounds=0: no self-distillation; the further pre-trained model is the result."""
    return Outcome(
        teacher.weights,
        lambda folder: copy_folder(teacher.model, folder, model),
        {"steps": 0, "seconds": 0.0, f"{context.modality.unit}_per_s": 0.0},
        teacher.metrics,
    )


def sources_of(context: Context, stage: Stage, needs: dict[Stage, Result], bank: OpenBank) -> tuple[Any, Any]:
    """The module that a stage starts from, and its teacher: see `build_stage`."""
    start = context.model.module if stage.start is None else context.modality.reload(needs[stage.start].model).module
    return start, None if stage.teacher is None else _teacher(context, needs[stage.teacher], bank)


def _teacher(context: Context, source: Result, bank: OpenBank) -> Teacher | nn.Module | None:
    """Where distill's targets come from, or what is matched; None when that has no weight."""
    config, modality = context.config, context.modality
    if config.distill.weight == 0:
        return None
    loaded = modality.reload(source.model)
    check_teacher_differs(loaded.module.encoder, context.model.module.encoder)
    if (reason := why_no_bank(config)) is not None:
        log.info("%s", reason)
        return loaded.module.to(context.device)
    if config.teacher.mode == "live":
        return modality.live_teacher(config, context.device, loaded)
    recipe = modality.recipe(config, context.device, loaded, context.pack)
    modality.check_deterministic(context, recipe)
    return bank_targets(bank(recipe), recipe, config.teacher.residency)


def _announce(context: Context, stage: Stage) -> None:
    kind, config, ranks = stage.kind, context.section(stage.kind), context.ranks
    where = f"{context.device}" if ranks.world == 1 else f"{ranks.world} processes, {context.device.type}"
    log.info("%s: %d steps of %d %s on %s", kind, config.steps, config.batch_size, context.modality.name, where)
    if config.batch_size < ranks.world:
        idle = ranks.world - config.batch_size
        log.warning("%s.batch_size=%d leaves %d processes idle in every step", kind, config.batch_size, idle)
    for sentence in advice(context.config.finetune) if kind == "finetune" else ():
        log.warning("finetune: %s", sentence)
    if context.config.zero.stage and (worth := context.modality.worth_of_zero(context, kind)) is not None:
        log.info(worth)


def _evaluated(context: Context, module: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of a classifier, which is made fit to be kept, on the training and test rows, and those of each class.

    With `finetune.best_dev` the latter on the val split too. Where rows have several classes, the val split chooses the
    threshold.
    """
    scoring, threshold = _scoring(context), HALF
    names, train, test = context.pack.class_names, context.train, context.test
    finish(module)
    if (scaling := scaling_of(context)) is not None:
        scaling.fold(module.classifier)
    use_attention(module, "auto")  # evaluated in float32, which a backend named for bf16 may not compute
    use_compiled(module, on=False)  # nor is it worth compiling for that
    trained_on = rows_of(train, context.config, "finetune")
    with left_out(module.classifier):
        on_train = scoring.metrics(*_answers(context, module, train, trained_on))
    answers = {"test": _answers(context, module, test, labelled_rows(test))}
    if context.pack.problem == SEVERAL:
        threshold, how = _threshold(context, module, scoring)
        log.info("finetune: a class applies from a probability of %g on, %s", threshold, how)
    on_test = scoring.metrics(*answers["test"], threshold)
    metrics = scoring.reported(on_test, len(names)) | {"train_loss": on_train["loss"]}
    log.info("%s", scoring.note(answers["test"][1], names))
    metrics["generalisation_gap"] = metrics["test_loss"] - metrics["train_loss"]
    metrics["distance"] = encoder_distance(context.model.module.encoder, module.encoder)
    if context.config.finetune.best_dev:
        dev = dev_split(context.pack, context.config.data_spec)
        answers["val"] = _answers(context, module, dev, labelled_rows(dev))
    tables: dict[str, Any] = {}
    for split, given in answers.items():
        for table, value in scoring.tables(*given, names, threshold).items():
            tables.setdefault(table, {})[split] = value
    return metrics, tables


def _threshold(context: Context, module: Any, scoring: Scoring) -> tuple[float, str]:
    """The probability from which on a class applies, and the end of a sentence on what chose it."""
    if (dev := threshold_split(context.pack)) is None:
        return HALF, "as there is no val split beside the test split to choose it by"
    found = scoring.threshold(*_answers(context, module, dev, labelled_rows(dev)))
    return HALF if found is None else found, "with the highest macro-F1 on the val split"


def _scoring(context: Context) -> Scoring:
    return SCORING[context.pack.problem]


def _selection(context: Context) -> Selection:
    """How to select the weights that do best on the val split; their scores there are called `dev_...`."""
    config, classes = context.config, len(context.pack.class_names)
    dev, scoring, scaling = dev_split(context.pack, config.data_spec), _scoring(context), scaling_of(context)

    def score(state: dict[str, Tensor]) -> dict[str, float]:
        module: Any = context.modality.filled(state, config, context.model.shape, classes).to(context.device)
        if scaling is not None:
            scaling.fold(module.classifier)
        scores = scoring.metrics(*_answers(context, module, dev, labelled_rows(dev)))
        return {f"dev_{name}": scores[name] for name in scoring.dev_scores}

    return Selection(score, f"dev_{_dev_metric(context)}", config.finetune.evaluations)


def _dev_metric(context: Context) -> str:
    return _scoring(context).dev_metric(context.paper_metric, context.modality.name)


def _answers(context: Context, module: nn.Module, split: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, classes] and labels of some rows, which the processes share out; each of them gets all."""
    voting = context.modality.voting(context.pack, split, context.config)
    given = answers_of(split, rows, voting, partial(_given, context, module), _scoring(context).voted)
    return given, torch.from_numpy(labels_of(split))[rows]


def _given(context: Context, module: nn.Module, split: Any, rows: Tensor) -> Tensor:
    """[n, classes]: what a classifier says of rows of a split or a view, which the processes share out."""
    ranks, modality = context.ranks, context.modality
    companions, share = modality.companions(context.model), rows[ranks.part(len(rows))]
    return torch.cat(ranks.exchange(modality.predict(module, companions, split, share, context.read(split))))
