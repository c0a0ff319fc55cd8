"""Cross-entropy at the masked tokens, and the same representation distance as the image loss has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sdfast.ops.linear_cross_entropy import linear_cross_entropy
from sdfast.ops.mae_distill import mae_distill_loss
from sdfast.ops.mae_distill.arguments import FLOAT_DTYPES


class MlmDistillOutput(NamedTuple):
    """The loss and its two parts, 0-D tensors; only ``loss`` carries gradient, the parts are unweighted."""

    loss: Tensor
    mlm: Tensor
    distill: Tensor


def mlm_distill_loss(
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    student: Tensor | None = None,
    teacher: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    teacher_scale: Tensor | None = None,
    mlm_weight: float | Tensor = 1.0,
    distill_weight: float = 1.0,
    distill_reduction: str = "sum",
    ignore_index: int = -100,
    hidden: Tensor | None = None,
    head_weight: Tensor | None = None,
    head_bias: Tensor | None = None,
    token_weights: Tensor | float | None = None,
    backend: str = "auto",
) -> MlmDistillOutput:
    """Masked-token cross-entropy plus squared distance to a teacher's representation.

    ``loss = mlm_weight * mlm + distill_weight * distill``. ``mlm`` is the mean of the cross-entropy over the tokens
    whose label is not ``ignore_index`` (as in ``transformers``; 0 when there is none); ``distill`` is that of
    `sdfast.losses.mae_distill_loss`. Give ``logits`` with ``labels``, ``student`` with ``teacher``, or both.
    Logits at the masked positions alone ([M, V]) save the language-model head its work at all others. Or give
    ``hidden`` and ``head_weight`` in place of logits: these are then made for some rows at a time and never kept
    (`sdfast.losses.linear_cross_entropy`).

    Args:
        logits: float [B, T, V], or [M, V].
        labels: int64 [B, T], or [M]; with ``hidden`` all [M] count.
        student: float [B, D] or [B, N, D].
        teacher: as student, or a bank with ``rows``; see `mae_distill_loss`.
        rows: int [B], rows of the bank.
        teacher_scale: float, for an int8 teacher.
        mlm_weight: factor of the token part; a 0-D tensor without gradient where it is counted on a device.
        distill_weight: factor of the representation part.
        distill_reduction: ``"sum"`` or ``"mean"``, as in `mae_distill_loss`.
        ignore_index: label of the tokens that do not count; not with ``hidden``.
        hidden: float [M, D], what the head's last layer is given at the masked positions.
        head_weight: float [V, D], of that layer; with tied embeddings those of the words.
        head_bias: float [V].
        token_weights: with ``hidden``, float [M] or one number: ``mlm`` is the sum of the cross-entropies so weighted,
            in place of their mean.
        backend: evaluates the representation part, as in `mae_distill_loss`.

    Returns:
        MlmDistillOutput ``(loss, mlm, distill)`` in float32 (float64 for float64 logits or features).

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: a shape or value that does not fit.
        RuntimeError: an explicit backend that is not available.
    """
    if logits is None and hidden is None and student is None:
        raise ValueError("give logits (token part), student (representation part) or both: neither was given")
    mlm = distill = None
    if hidden is not None:
        if logits is not None or head_weight is None or labels is None:
            raise ValueError("hidden should be given with head_weight and labels, in place of logits")
        mlm = linear_cross_entropy(hidden, head_weight, labels, head_bias, row_weights=token_weights)
    elif logits is not None:
        mlm = _token_loss(logits, labels, ignore_index)
    elif labels is not None:
        raise ValueError("labels was given without logits: give logits as well, or leave labels out")
    if student is not None:
        distill = mae_distill_loss(
            student=student,
            teacher=teacher,
            rows=rows,
            teacher_scale=teacher_scale,
            distill_weight=distill_weight,
            distill_reduction=distill_reduction,
            backend=backend,
        )
    else:
        for name, value in {"teacher": teacher, "rows": rows, "teacher_scale": teacher_scale}.items():
            if value is not None:
                raise ValueError(f"{name} was given without student: give student as well, or leave {name} out")
    if mlm is None:
        assert distill is not None
        return MlmDistillOutput(distill.loss, torch.zeros_like(distill.mae), distill.distill)
    if distill is None:
        return MlmDistillOutput(mlm_weight * mlm, mlm.detach(), torch.zeros_like(mlm.detach()))
    return MlmDistillOutput(mlm_weight * mlm + distill.loss, mlm.detach(), distill.distill)


def _token_loss(logits: Tensor, labels: Tensor | None, ignore_index: int) -> Tensor:
    """Mean cross-entropy over the labelled tokens, in float32 or float64; 0 when there is none."""
    for name, tensor, dtypes in (("logits", logits, FLOAT_DTYPES), ("labels", labels, (torch.int64,))):
        if tensor is None:
            raise ValueError("labels should be given with logits")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} should be a tensor, not {type(tensor).__name__}")
        if tensor.dtype not in dtypes:
            raise TypeError(f"{name} should be {' or '.join(map(str, dtypes))}, not {tensor.dtype}")
    assert labels is not None
    if logits.dim() not in (2, 3):
        raise ValueError(f"logits should have shape [B, T, V] or [M, V], not {list(logits.shape)}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels should have shape {list(logits.shape[:-1])}, not {list(labels.shape)}")
    if labels.device != logits.device:
        raise ValueError(f"labels should be on logits' device {logits.device}, not on {labels.device}")
    flat = logits.flatten(0, -2)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    labels = labels.flatten()
    total = cross_entropy(flat, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)
