"""What would stop a stage, found before those that it needs are trained."""

from __future__ import annotations

from sdfast.context import Context
from sdfast.data.columns import NO_LABELS
from sdfast.errors import UserError
from sdfast.evaluation.classification import dev_split
from sdfast.objectives.choose import check_whole_batch
from sdfast.objectives.cross_entropy import check_class_weights
from sdfast.regularizers.choose import check_unspread
from sdfast.stages.graph import Stage


def check_stage(context: Context, stage: Stage) -> None:
    """Compare a stage with the data and settings.

    Raises:
        UserError: it lacks something that it needs, or a setting does not fit it.
    """
    if stage.kind == "distill" and stage.round:
        context.modality.check_distill(context.config, context.model.shape)
    if stage.kind == "finetune":
        check_labels(context)
        check_class_weights(context.config.finetune, context.pack.class_names)
        check_unspread(context.config.finetune, context.config.zero.stage)
        check_whole_batch(context.config, context.ranks.world)
        if context.config.finetune.best_dev:
            dev_split(context.pack, context.config.data_spec)


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
    if len(names) < 2:
        raise UserError(f"{data} has one class only ('{names[0]}'); finetune needs two.")
    if context.test.labels is None:
        raise UserError(f"the test {modality.name} of {data} have no labels, and finetune evaluates on them.")
