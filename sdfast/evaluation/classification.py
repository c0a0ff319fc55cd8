"""Logits and metrics of a classifier on the rows of a pack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.data.order import all_batches
from sdfast.data.pack_files import OpenPack, SplitFiles
from sdfast.errors import UserError
from sdfast.models.vit import ViTClassifier
from sdfast.objectives.base import Normalise


def labelled_rows(split: SplitFiles, rows: Tensor | None = None) -> Tensor:
    """[n] int64: the rows (of `rows`, or of the split) that have a label."""
    assert split.labels is not None
    rows = torch.arange(len(split)) if rows is None else rows
    return rows[torch.from_numpy(split.labels)[rows] >= 0]


def evaluation_split(pack: OpenPack[Any]) -> tuple[str, Any]:
    """The split to evaluate on, and its name: the first of test and val that has labels, or else that there is.

    Raises:
        UserError: the pack has neither.
    """
    found = [(name, pack.splits[name]) for name in ("test", "val") if name in pack.splits]
    if not found:
        source = pack.manifest["source"]["name"]
        raise UserError(f"{source} has no test split; add one, or set data.test_fraction above 0.")
    return next((each for each in found if each[1].labels is not None), found[0])


@torch.no_grad()
def predict(
    module: ViTClassifier,
    normalise: Normalise,
    images: Callable[[Tensor], Tensor],
    rows: Tensor,
    batch_size: int = 64,
) -> Tensor:
    """Logits in evaluation mode, without augmentation.

    Args:
        module: the classifier; put into evaluation mode.
        normalise: from uint8 images to its input.
        images: rows [B] int64 -> [B, H, W, C] uint8 on the module's device.
        rows: [n] int64, the rows to classify.
        batch_size: images at a time.

    Returns:
        [n, classes] float32 on the CPU.
    """
    module.eval()
    parts = [module(normalise(images(batch.rows))).float().cpu() for batch in all_batches(rows, batch_size)]
    return torch.cat(parts) if parts else torch.zeros(0, module.classifier.out_features)


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, macro-F1, micro-F1 and mean cross-entropy.

    Args:
        logits: [n, classes] float32.
        labels: [n] int64.

    Returns:
        `accuracy`, `macro_f1` and `micro_f1` in [0, 1], and `loss`, the mean over the samples in nats.
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    classes = logits.shape[1]
    return {
        "accuracy": float(multiclass_accuracy(logits, labels, classes, average="micro")),
        "macro_f1": float(multiclass_f1_score(logits, labels, classes, average="macro")),
        "micro_f1": float(multiclass_f1_score(logits, labels, classes, average="micro")),
        "loss": float(F.cross_entropy(logits, labels)),
    }
