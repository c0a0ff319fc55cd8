"""Logits and metrics of a classifier on the rows of a pack."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.order import all_batches
from sdfast.data.pack_checks import first_names
from sdfast.data.pack_files import OpenPack, SplitFiles
from sdfast.errors import UserError
from sdfast.models.vit import ViTClassifier
from sdfast.objectives.base import Normalise


def labels_of(split: Any) -> NDArray[np.int64]:
    """[n] int64, of a split that has labels."""
    assert split.labels is not None
    return split.labels


def labelled_rows(split: SplitFiles, rows: Tensor | None = None) -> Tensor:
    """[n] int64: the rows (of `rows`, or of the split) that have a label."""
    assert split.labels is not None
    rows = torch.arange(len(split)) if rows is None else rows
    return rows[torch.from_numpy(split.labels)[rows] >= 0]


def evaluation_split(pack: OpenPack[Any]) -> tuple[str, Any]:
    """The split to evaluate on, and its name: the first of test and val that has labels, or else that there is.

    Raises:
        UserError: the pack has neither; the sentence says why nothing was held out.
    """
    found = [(name, pack.splits[name]) for name in ("test", "val") if name in pack.splits]
    if not found:
        source, rule = pack.manifest["source"]["name"], pack.manifest["split_rule"]["rule"]
        if rule.startswith("data.test_fraction=0"):
            raise UserError(f"{source} has no test split; add one, or set data.test_fraction above 0.")
        more = "one, or more of each class" if rule.startswith("too few") else "one with labels"
        raise UserError(f"{source} has no test split, and {rule}; add {more}.")
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
    """Accuracy, macro-F1, micro-F1 and mean cross-entropy, and what the first two are to be compared with.

    Args:
        logits: [n, classes] float32.
        labels: [n] int64.

    Returns:
        `accuracy`, `macro_f1` and `micro_f1` in [0, 1]; `loss`, the mean over the samples in nats;
        `majority_class_accuracy`, that of always answering the class with the most samples; and `macro_f1_classes`, how
        many classes macro-F1 is the mean of: those that have a sample, and those predicted that have none and count 0.
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    classes = logits.shape[1]
    return {
        "accuracy": float(multiclass_accuracy(logits, labels, classes, average="micro")),
        "macro_f1": float(multiclass_f1_score(logits, labels, classes, average="macro")),
        "micro_f1": float(multiclass_f1_score(logits, labels, classes, average="micro")),
        "loss": float(F.cross_entropy(logits, labels)),
        "majority_class_accuracy": int(labels.bincount().max()) / len(labels) if len(labels) else math.nan,
        "macro_f1_classes": float(len(torch.cat((labels, logits.argmax(dim=1))).unique())),
    }


def reported_metrics(scores: Mapping[str, float], classes: int) -> dict[str, float]:
    """Those of `classification_metrics` that a stage and an evaluation report; of macro-F1's classes only fewer.

    Args:
        scores: of the test rows.
        classes: of the model.
    """
    names = ["accuracy", "majority_class_accuracy", "macro_f1", "micro_f1"]
    if scores["macro_f1_classes"] < classes:
        names.append("macro_f1_classes")
    return {**{name: scores[name] for name in names}, "test_loss": scores["loss"]}


def baseline_note(labels: Tensor, names: Sequence[str]) -> str:
    """A sentence: what always answering the largest class gives, and which classes the rows lack.

    Args:
        labels: [n] int64 of the test rows, n > 0.
        names: of the classes.
    """
    counts = labels.bincount(minlength=len(names))
    largest = int(counts.argmax())
    note = f"always the largest class, {names[largest]!r}: accuracy {int(counts[largest]) / len(labels):.4f}"
    absent = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if not absent:
        return note
    return (
        f"{note}; macro-F1 is over fewer classes, as {len(absent)} of {len(names)} have no row: {first_names(absent)}"
    )
