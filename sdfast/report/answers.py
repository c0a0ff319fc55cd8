"""What a classifier said of each test row, where a run directory holds it."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.problem import SEVERAL, SINGLE
from sdfast.rundir import REPORT_FOLDER, StoredResult

_MOST_BYTES = 1 << 30  # of a file that is read
_NEAR = 0.005  # by which accuracy may differ on another device


@dataclass(frozen=True)
class Answers:
    """Rows of the test split and what was predicted; each is None where the file does not say.

    Attributes:
        labels: [n] int64, or [n, C] bool, or [n, K] float32.
        predicted: [n] int64, or [n, C] bool, or [n, K] float32.
        confidence: [n] float64, of one class a row: the probability of the predicted one.
        probabilities: [n, C] float64, of one or several classes a row.
    """

    labels: NDArray[Any]
    predicted: NDArray[Any]
    confidence: NDArray[np.float64] | None = None
    probabilities: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def answers_file(out: Path, folder: str) -> Path:
    """Where the answers of a fine-tuning are kept: logits [n, C] float32, labels, names, and of what (`of`)."""
    stem = "test-predictions" if folder == "finetune" else f"{folder.replace('/', '-')}-test-predictions"
    return out / REPORT_FOLDER / f"{stem}.npz"


def answers_of(out: Path, folder: str, stored: StoredResult) -> Answers | None:
    """The answers of a fine-tuning: as the report keeps them, or of `predictions.csv`; None where there are none.

    Those that are of other weights, or do not give the accuracy of the result, are not taken. Of very many test rows
    the report keeps some.
    """
    kept = (_once(answers_file(out, name), _arrays, stored) for name in dict.fromkeys((folder, "finetune")))
    found = next((each for each in kept if each is not None), None)
    if found is None and folder == "finetune":
        found = _once(out / "predictions.csv", _table, stored)
    return found


def _once(path: Path, read: Any, stored: StoredResult) -> Answers | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if status.st_size > _MOST_BYTES:
        return None
    key = (str(path), status.st_mtime_ns, status.st_size, stored.fingerprint)
    if key not in _known:
        try:
            found = read(path, stored)
        except (OSError, ValueError, KeyError, IndexError, EOFError, csv.Error):  # a person's, or damaged
            found = None
        if len(_known) > 8:
            _known.clear()
        _known[key] = found if found is not None and len(found) and _fits(found, stored) else None
    return _known[key]


_known: dict[Any, Answers | None] = {}


def _arrays(path: Path, stored: StoredResult) -> Answers | None:
    with np.load(path, allow_pickle=False) as held:
        if json.loads(str(held["of"]))["model"]["weights"] != stored.weights:
            return None
        logits, labels = held["logits"].astype(np.float64), held["labels"]
    if logits.ndim != 2 or len(logits) != len(labels):
        return None
    problem = stored.inputs.get("problem_type", SINGLE)
    if problem == SINGLE:
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        predicted = logits.argmax(axis=1)
        return Answers(labels.astype(np.int64), predicted, probabilities.max(axis=1), probabilities)
    if problem == SEVERAL:
        probabilities = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
        chosen = probabilities >= stored.metrics.get("threshold", 0.5)
        return Answers(labels.astype(bool), chosen, None, probabilities)
    return Answers(labels.astype(np.float64).reshape(len(logits), -1), logits)


def _table(path: Path, stored: StoredResult) -> Answers | None:
    """`predictions.csv`, as `sdfast.evaluation.scoring` writes it."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        header = next(reader, [])[1:]
        rows = [row[1:] for row in reader]
    names, problem = list(stored.inputs.get("classes") or []), stored.inputs.get("problem_type", SINGLE)
    if problem == SINGLE:
        return _one_class(header, rows, {name: at for at, name in enumerate(names)})
    if problem == SEVERAL:
        return _several(header, rows, names)
    values = np.asarray(rows, np.float64)
    half = values.shape[1] // 2
    return Answers(values[:, :half], values[:, half:]) if half and values.shape[1] == 2 * half else None


def _one_class(header: list[str], rows: list[list[str]], numbers: Mapping[str, int]) -> Answers | None:
    if header != ["label", "predicted", "probability"]:
        return None
    labels, predicted = (np.asarray([numbers[row[column]] for row in rows], np.int64) for column in (0, 1))
    return Answers(labels, predicted, np.asarray([float(row[2]) for row in rows]))


def _several(header: list[str], rows: list[list[str]], names: list[str]) -> Answers | None:
    if header != ["labels", "predicted", *names]:
        return None
    numbers = {name: at for at, name in enumerate(names)}
    sides = np.zeros((2, len(rows), len(names)), bool)
    for at, row in enumerate(rows):
        for side, listed in zip(sides, row, strict=False):
            side[at, [numbers[name] for name in json.loads(listed)]] = True
    return Answers(sides[0], sides[1], None, np.asarray([row[2:] for row in rows], np.float64))


def _fits(found: Answers, stored: StoredResult) -> bool:
    metrics = stored.metrics
    if "accuracy" in metrics:
        if len(found) < sum(each.support for each in (stored.per_class or {}).get("test", {}).values()):
            return True  # some of the rows
        right = float((found.labels == found.predicted).mean())
        return math.isclose(right, metrics["accuracy"], abs_tol=_NEAR)
    if "mse" in metrics:
        mse = float(np.square(found.labels - found.predicted).mean())
        return math.isclose(mse, metrics["mse"], rel_tol=0.01, abs_tol=1e-9)
    return True
