"""How much the stages changed what each layer gives: cosine, distance and linear CKA of the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from sdfast.report.evidence import keep
from sdfast.report.evidence.features import Features
from sdfast.report.evidence.stages import Subject

ITEM = "layers"
_PAIRS = (("initial", "pretrain"), ("initial", "distill"), ("pretrain", "distill"), ("teacher", "distill"))


def make(features: Features, out: Path, models: Mapping[str, Subject]) -> bool:
    """Keep the comparison of each pair of models; whether there was something to do."""
    pairs = [(a, b) for a, b in _PAIRS if a in models and b in models]
    if "teacher" in models:  # of several rounds the last student's is not what pretrain left
        pairs = [pair for pair in pairs if pair != ("pretrain", "distill")]
    if not pairs or len(features.chosen) < 2:
        return False
    of = {**features.of, "models": {key: models[key].said() for pair in pairs for key in pair}}
    if keep.read_made_of(out, ITEM, of) is not None:
        return False
    value = {
        "split": features.chosen.name,
        "count": len(features.chosen),
        "what": features.what(models[pairs[0][0]]),
        "pairs": [{"models": pair, **compared(*(features(models[key]) for key in pair))} for pair in pairs],
    }
    keep.write(out, ITEM, of, value)
    return True


def compared(one: Tensor, other: Tensor) -> dict[str, list[float | None]]:
    """Two models layer by layer.

    Args:
        one, other: [depth, n, D], of the same rows.

    Returns:
        of each layer: `cosine`, the mean over the rows of the cosine of both features; `distance`, the mean length of
        their difference as a share of the mean length of the first; and `cka`, see `linear_cka`. None where that is no
        number.
    """
    found: dict[str, list[float | None]] = {"cosine": [], "distance": [], "cka": []}
    for a, b in zip(one.double(), other.double(), strict=True):
        found["cosine"].append(_number(float(F.cosine_similarity(a, b, dim=1).mean())))
        found["distance"].append(_number(float((a - b).norm(dim=1).mean() / a.norm(dim=1).mean())))
        found["cka"].append(_number(linear_cka(a, b)))
    return found


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al., 2019): 1 where both are equal up to a turn and a scale.

    Args:
        one, other: features of the same rows, [n, D] and [n, E].

    Returns:
        In [0, 1]; not a number where either does not vary.
    """
    a, b = (each.double() - each.double().mean(dim=0) for each in (one, other))
    if len(a) < max(a.shape[1], b.shape[1]):  # the same by inner products of rows, which are fewer
        a, b = (each @ each.t() for each in (a, b))
        return float((a * b).sum() / (a.norm() * b.norm()))
    return float((a.t() @ b).square().sum() / ((a.t() @ a).norm() * (b.t() @ b).norm()))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
