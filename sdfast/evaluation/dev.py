"""The rows by which fine-tuning chooses the weights that it keeps (`finetune.best_dev`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdfast import durable
from sdfast.domains.base import labels_of
from sdfast.errors import UserError
from sdfast.evaluation.classification import labelled_rows

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline


def dev_split(run: Pipeline) -> Any:
    """The val split, which is not what fine-tuning is evaluated on.

    Raises:
        UserError: there is none.
    """
    split, key = run.pack.splits.get("val"), "finetune.best_dev=true"
    if split is None:
        raise UserError(
            f"{key} chooses weights by a val split, and {run.data_spec} has none; add one (val, validation or dev), or"
            " leave it away."
        )
    if split.labels is None or not len(labelled_rows(split)):
        raise UserError(f"{key} chooses weights by a val split, and that of {run.data_spec} has no labels; add them.")
    if split is run.test_split:
        raise UserError(
            f"{key} chooses weights by the val split, and {run.data_spec} has no test split with labels beside it to"
            " evaluate them on; add one, or leave it away."
        )
    return split


def dev_metric(run: Pipeline) -> str:
    """The metric that decides: the paper's for the data set, or else accuracy of images, macro-F1 of texts."""
    return run.paper_metric or ("accuracy" if run.domain.modality == "images" else "macro_f1")


def dev_inputs(run: Pipeline, split: Any) -> dict[str, Any]:
    """What it adds to the inputs of fine-tuning, by name."""
    rows = labelled_rows(split).numpy()
    return {
        f"val {run.domain.modality}": durable.sha256_array(split.digests[rows]),
        "val labels": durable.sha256_array(labels_of(split)[rows]),
        "best by": dev_metric(run),
    }
