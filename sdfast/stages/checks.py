"""What would stop a stage, found before those that it needs are trained."""

from __future__ import annotations

from torch import Tensor

from sdfast.config import DistillConfig, FinetuneConfig, PretrainConfig
from sdfast.context import Context, Kind
from sdfast.data.columns import NO_LABELS
from sdfast.data.problem import REGRESSION, SINGLE
from sdfast.errors import UserError
from sdfast.evaluation.classification import dev_split, labelled_rows, labels_of
from sdfast.objectives.choose import check_whole_batch
from sdfast.objectives.several import check_problem
from sdfast.regularizers.choose import check_unspread
from sdfast.stages.graph import Stage


def check_stage(context: Context, stage: Stage) -> None:
    """Compare a stage with the data and settings.

    Raises:
        UserError: it lacks something that it needs, or a setting does not fit it.
    """
    check_method(context, stage.kind)
    if stage.kind == "distill" and stage.round:
        context.modality.check_distill(context.config, context.model.shape)
    if stage.kind == "finetune":
        check_labels(context)
        check_problem(context.config.finetune, context.pack.problem, context.pack.class_names)
        check_unspread(context.config.finetune, context.config.zero.stage)
        check_whole_batch(context.config, context.ranks.world)
        if context.config.finetune.best_dev:
            dev_split(context.pack, context.config.data_spec)


def check_method(context: Context, kind: Kind) -> None:
    """Compare what a stage trains with the model, the labels and the engine.

    Raises:
        UserError: a setting does not fit it.
    """
    section, zero, problem = context.section(kind), context.config.zero.stage, context.pack.problem
    if not isinstance(section, PretrainConfig | DistillConfig | FinetuneConfig) or section.method == "full":
        return
    method = section.method
    if method == "knn" and problem != SINGLE:
        raise UserError(
            f"finetune.method=knn has neighbours vote for one class a row, and the labels of {context.config.data_spec}"
            f" are {problem.replace('_', ' ')}; take linear_probe, lora or full."
        )
    precision = context.config.engine.precision
    if zero and precision in ("bf16-weights", "fp16"):
        raise UserError(
            f"{kind}.method={method} keeps frozen weights as they are, and DeepSpeed rounds them to half precision with"
            f" engine.precision={precision}; use bf16."
        )
    blocks = context.model.shape.encoder.depth
    if method == "lora" and (full := section.lora.full_blocks) > blocks:
        raise UserError(f"{kind}.lora.full_blocks={full} is more than the {blocks} blocks of the model.")


def check_labels(context: Context) -> None:
    """Whether finetune has what it needs.

    Raises:
        UserError: there are no labels, or too few.
    """
    pack, data, modality = context.pack, context.config.data_spec, context.modality
    names, unlabelled = pack.class_names, [n for n, s in pack.splits.items() if s.labels is None]
    if names is None or "train" in unlabelled:
        columns = next((said for said in pack.warnings if NO_LABELS in said), None)
        how = f" ({columns.removesuffix('.')})" if columns else ""
        raise UserError(
            f"{data} has no labels{how}, and finetune needs them; {modality.how_to_label}, or run --stage distill."
        )
    if len(names) < 2 and pack.problem == SINGLE:
        raise UserError(f"{data} has one class only ('{names[0]}'); finetune needs two.")
    if context.test.labels is None:
        raise UserError(f"the test {modality.name} of {data} have no labels, and finetune evaluates on them.")
    if pack.problem == REGRESSION:
        _check_numbers(context)


def _check_numbers(context: Context) -> None:
    labels = labels_of(context.train_of("finetune"))[context.train_rows("finetune").numpy()]
    data = context.config.data_spec
    if not len(labels):
        raise UserError(f"none of the training rows of {data} has a number; finetune needs them.")
    for name, numbers in zip(context.pack.class_names, labels.T, strict=True):
        if (numbers == numbers[0]).all():
            raise UserError(
                f"the numbers of {name!r} are all {numbers[0]:g} in the {len(numbers):,} training rows of {data}, from "
                "which nothing can be learnt."
            )
    few = [f"{len(rows)} {split}" for split, rows in _held_out(context).items() if len(rows) < 2]
    if few:
        raise UserError(f"R2 and Spearman's correlation need two rows with numbers, and {data} has {', '.join(few)}.")


def _held_out(context: Context) -> dict[str, Tensor]:
    """The labelled rows of what is evaluated on."""
    splits = {"test": context.test}
    if context.config.finetune.best_dev:
        splits["val"] = dev_split(context.pack, context.config.data_spec)
    return {name: labelled_rows(split) for name, split in splits.items()}
