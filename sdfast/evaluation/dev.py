"""The rows by which fine-tuning chooses the weights that it keeps (`finetune.best_dev`)."""

from __future__ import annotations

from typing import Any

from sdfast.context import Context
from sdfast.errors import UserError
from sdfast.evaluation.classification import labelled_rows


def dev_split(context: Context) -> Any:
    """The val split, which is not what fine-tuning is evaluated on.

    Raises:
        UserError: there is none.
    """
    split, key, data = context.pack.splits.get("val"), "finetune.best_dev=true", context.config.data_spec
    if split is None:
        raise UserError(
            f"{key} chooses weights by a val split, and {data} has none; add one (val, validation or dev), or"
            " leave it away."
        )
    if split.labels is None or not len(labelled_rows(split)):
        raise UserError(f"{key} chooses weights by a val split, and that of {data} has no labels; add them.")
    if split is context.test:
        raise UserError(
            f"{key} chooses weights by the val split, and {data} has no test split with labels beside it to"
            " evaluate them on; add one, or leave it away."
        )
    return split


def dev_metric(context: Context) -> str:
    """The metric that decides: the paper's for the data set, or else accuracy of images, macro-F1 of texts."""
    return context.paper_metric or context.modality.dev_metric
