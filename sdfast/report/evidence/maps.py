"""Two-dimensional maps of the features of each stage: PCA, and UMAP where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.context import Context
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, has_label
from sdfast.durable import sha256_json
from sdfast.report.evidence import keep
from sdfast.report.evidence.features import Features
from sdfast.report.evidence.rows import Chosen
from sdfast.report.evidence.stages import Subject

ITEM = "map"
NAMED = 10  # classes that have a colour; the others are grey
_SHOWN = ("initial", "pretrain", "distill", "finetune")
_DIGITS = 4  # of coordinates, which lie in [-1, 1]


def make(context: Context, features: Features, out: Path, models: Mapping[str, Subject], umap: bool) -> bool:
    """Keep the map of each model; whether there was something to do. A UMAP that is there stays.

    Raises:
        ImportError: umap-learn is asked for and not installed.
    """
    wanted, chosen = {key: models[key] for key in _SHOWN if key in models}, features.chosen
    if len(chosen) < 3:
        return False
    colours = colouring(context, chosen)
    of = {**features.of, "colours": sha256_json(colours)}
    known = keep.read_made_of(out, ITEM, of)
    kept = {} if known is None else known["models"]
    current: dict[str, Any] = {}
    for key, one in wanted.items():
        before = kept.get(key)
        if before is not None and {name: before[name] for name in ("weights", "stage")} == one.said():
            current[key] = before
    if list(kept) == list(wanted) == list(current) and (not umap or all("umap" in each for each in current.values())):
        return False
    first: Tensor | None = None
    for key, one in wanted.items():
        last = features(one)[-1]
        first = last if first is None else first
        if key not in current:
            places, shares = pca(last, pca(first)[0] if first is not last else None)
            current[key] = {**one.said(), "pca": _listed(places), "shares": shares}
        if umap and "umap" not in current[key]:
            current[key]["umap"] = _listed(umap_of(last))
    value = {
        "split": chosen.name,
        "what": features.what(wanted["initial"]),
        "colours": colours,
        "models": {key: current[key] for key in wanted},
    }
    keep.write(out, ITEM, of, value)
    return True


def pca(features: Tensor, like: Tensor | None = None) -> tuple[Tensor, list[float]]:
    """The first two principal components.

    Args:
        features: [n, D], which are centred first.
        like: [n, 2], a map of the same rows: either axis points to where it correlates with that one's; else to where
            the largest weight is positive.

    Returns:
        [n, 2] float64; and the share of the variance that each of the two explains.
    """
    centred = features.double() - features.double().mean(dim=0)
    u, s, vh = torch.linalg.svd(centred, full_matrices=False)
    places = torch.zeros(len(centred), 2, dtype=torch.float64)
    kept = min(2, len(s))
    places[:, :kept] = u[:, :kept] * s[:kept]
    for axis in range(kept):
        agreed = 0.0 if like is None else float((places[:, axis] * like[:, axis].double()).sum())
        sign = agreed or float(vh[axis, vh[axis].abs().argmax()])
        if sign < 0:
            places[:, axis] = -places[:, axis]
    total = float(s.square().sum())
    shares = [float(each.square()) / total if total else 0.0 for each in s[:2]]
    return places, [*shares, 0.0][:2]


def umap_of(features: Tensor) -> Tensor:
    """[n, 2]: UMAP (McInnes et al., 2018) with a fixed seed.

    Raises:
        ImportError: umap-learn is not installed.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        near = min(15, len(features) - 1)
        found = UMAP(n_neighbors=near, random_state=0, n_jobs=1).fit_transform(features.float().numpy())
    return torch.from_numpy(np.asarray(found, np.float64))


def colouring(context: Context, chosen: Chosen) -> dict[str, Any]:
    """What the rows are coloured by.

    Returns:
        `by`: `class`, `number`, or `nothing` without labels. For classes `names`, the ten that most of the rows have,
        the largest first, and `row`, the place of each row's class among them (-1: another class; None: no label); of
        several classes a row the one that most rows have. For numbers `name` and `row`, the first number of each row.
    """
    labels, names, problem = chosen.labels, context.pack.class_names, context.pack.problem
    if labels is None or names is None:
        return {"by": "nothing"}
    known = np.asarray(has_label(labels))
    if problem == REGRESSION:
        values = [float(value) if there else None for value, there in zip(labels[:, 0], known, strict=True)]
        return {"by": "number", "name": names[0], "row": values}
    several = problem == SEVERAL
    counts = labels[known].sum(axis=0, dtype=np.int64) if several else np.bincount(labels[known], minlength=len(names))
    order = [int(each) for each in np.argsort(-counts, kind="stable")[:NAMED] if counts[each]]
    rows = [_place(label, order, problem) if there else None for label, there in zip(labels, known, strict=True)]
    more = int((counts > 0).sum()) - len(order)
    return {"by": "class", "names": [names[each] for each in order], "more": more, "several": several, "row": rows}


def _place(label: Any, order: list[int], problem: str) -> int:
    if problem == SINGLE:
        return order.index(int(label)) if int(label) in order else -1
    return next((place for place, each in enumerate(order) if label[each]), -1)


def _listed(places: Tensor) -> list[list[float]]:
    """Coordinates between -1 and 1 in both directions, in one scale, as a file keeps them."""
    middle = (places.amax(dim=0) + places.amin(dim=0)) / 2
    largest = float((places - middle).abs().max())
    shown: NDArray[Any] = ((places - middle) / (largest or 1.0)).numpy()
    return [[round(float(x), _DIGITS), round(float(y), _DIGITS)] for x, y in shown]
