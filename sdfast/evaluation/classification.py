"""Which rows of a pack a classifier is evaluated on, what it says of them, its metrics, and how far it has moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdfast.config import ModalityName
from sdfast.data.order import Batch
from sdfast.data.pack_checks import first_names
from sdfast.data.pack_files import OpenPack, SplitFiles
from sdfast.data.problem import Labels, has_label
from sdfast.durable import sha256_array
from sdfast.errors import UserError
from sdfast.models.base import Classifier

_MATRIX_CLASSES = 1000  # of a confusion matrix that is kept: its size is their square


def labels_of(split: Any) -> Labels:
    """[n] int64, or as `sdfast.data.problem` says, of a split that has labels."""
    assert split.labels is not None
    return split.labels


def labelled_rows(split: SplitFiles, rows: Tensor | None = None) -> Tensor:
    """[n] int64: the rows (of `rows`, or of the split) that have a label."""
    assert split.labels is not None
    rows = torch.arange(len(split)) if rows is None else rows
    return rows[torch.from_numpy(has_label(split.labels))[rows]]


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


def dev_split(pack: OpenPack[Any], source: str) -> Any:
    """The val split, by which fine-tuning chooses the weights that it keeps (`finetune.best_dev`).

    Args:
        pack: of the run.
        source: what the user called the data.

    Raises:
        UserError: there is none, or it is what fine-tuning is evaluated on.
    """
    split, key = pack.splits.get("val"), "finetune.best_dev=true"
    if split is None:
        raise UserError(
            f"{key} chooses weights by a val split, and {source} has none; add one (val, validation or dev), or leave"
            " it away."
        )
    if split.labels is None or not len(labelled_rows(split)):
        raise UserError(f"{key} chooses weights by a val split, and that of {source} has no labels; add them.")
    if split is evaluation_split(pack)[1]:
        raise UserError(
            f"{key} chooses weights by the val split, and {source} has no test split with labels beside it to evaluate"
            " them on; add one, or leave it away."
        )
    return split


def threshold_split(pack: OpenPack[Any]) -> Any | None:
    """The val split, where it has labels and is not what fine-tuning is evaluated on; else None."""
    split = pack.splits.get("val")
    bare = split is None or split.labels is None or not len(labelled_rows(split))
    return None if bare or split is evaluation_split(pack)[1] else split


def dev_metric(paper_metric: str | None, modality: ModalityName) -> str:
    """The metric that decides: the paper's for the data set, or else accuracy of images, macro-F1 of texts."""
    return paper_metric or ("accuracy" if modality == "images" else "macro_f1")


def dev_inputs(split: Any, modality: ModalityName, metric: str) -> dict[str, Any]:
    """What choosing weights by a split and a metric adds to the inputs of fine-tuning, by name."""
    rows = labelled_rows(split).numpy()
    return {
        f"val {modality}": sha256_array(split.digests[rows]),
        "val labels": sha256_array(split.labels[rows]),
        "best by": metric,
    }


@torch.no_grad()
def predict(module: Classifier, read: Callable[[Tensor], Any], rows: Tensor, batches: Iterable[Batch]) -> Tensor:
    """Logits in evaluation mode, without augmentation.

    Args:
        module: the classifier; put into evaluation mode.
        read: rows [B] int64 -> its input on its device.
        rows: [n] int64, the rows to classify.
        batches: of their places, 0 to n - 1, in any order; each row goes through the model with its batch.

    Returns:
        [n, classes] float32 on the CPU, in the order of `rows`.
    """
    module.eval()
    logits = torch.zeros(len(rows), module.classifier.out_features)
    for batch in batches:
        logits[batch.rows] = module(read(rows[batch.rows])).float().cpu()
    return logits


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


def class_tables(logits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What a classifier does with each class.

    Args:
        logits: [n, classes] float32.
        labels: [n] int64, n > 0.
        names: of the classes.

    Returns:
        `per_class`, by name: `precision` (0 for a class that was never predicted), `recall` and `f1` (0 for one without
        a row) in [0, 1], and `support`, its rows; and `confusion_matrix`, [classes][classes]: how many rows of the one
        (first index) were taken for the other, both in the order of `per_class`. The matrix is left out where there are
        more than 1,000 classes.
    """
    from torchmetrics.functional import classification as each

    count = len(names)
    scores = zip(
        each.multiclass_precision(logits, labels, count, average="none").tolist(),
        each.multiclass_recall(logits, labels, count, average="none").tolist(),
        each.multiclass_f1_score(logits, labels, count, average="none").tolist(),
        labels.bincount(minlength=count).tolist(),
        strict=True,
    )
    keys = ("precision", "recall", "f1", "support")
    found: dict[str, Any] = {
        "per_class": {name: dict(zip(keys, values, strict=True)) for name, values in zip(names, scores, strict=True)}
    }
    if count <= _MATRIX_CLASSES:
        found["confusion_matrix"] = each.multiclass_confusion_matrix(logits, labels, count).tolist()
    return found


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


@torch.no_grad()
def encoder_distance(start: nn.Module, end: nn.Module) -> float:
    """||theta_start - theta_end||_2 over the parameters that two encoders have in common.

    Those are patch embedding, CLS token, positions, blocks and the last LayerNorm; decoders and heads are not part of
    an encoder.

    Args:
        start: the one encoder, on any device.
        end: the other; computed on its device.

    Returns:
        The distance, of differences in float32 whose squares are summed in float64.
    """
    first, second = dict(start.named_parameters()), dict(end.named_parameters())
    common = [name for name in second if name in first]
    ends = [second[name].detach() for name in common]
    starts = [first[name].to(each.device) for name, each in zip(common, ends, strict=True)]
    norms = torch._foreach_norm(torch._foreach_sub(ends, starts), 2, dtype=torch.float64)
    return float(torch.stack(norms).norm())
