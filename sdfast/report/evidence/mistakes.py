"""What the fine-tuned model says of the test rows, kept whole, and where it is most wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sdfast.context import Context
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, has_label
from sdfast.durable import read_json, write_bytes
from sdfast.evaluation.scoring import HALF, SCORING
from sdfast.evaluation.votes import answers_of
from sdfast.report.evidence import keep
from sdfast.report.evidence.rows import Chosen, chosen_rows, labelled
from sdfast.report.evidence.stages import Standing, Subject
from sdfast.rundir import Result

ITEM = "mistakes"
COUNT = 12  # that are shown
_MOST = {"cuda": 50_000, "cpu": 10_000}  # rows that are classified
_FILE = "test-predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """What a fine-tuned model says of test rows.

    Attributes:
        logits: [n, C] float32; of numbers the predictions, in the units of the data.
        labels: of the rows, see `sdfast.data.problem`.
        names: [n], of the rows in their source.
        all_rows: whether these are all rows with a label.
    """

    logits: NDArray[np.float32]
    labels: NDArray[Any]
    names: NDArray[np.str_]
    all_rows: bool


def read_predictions(out: Path) -> Predictions | None:
    """Those of the fine-tuned model that a run directory has now; None where they are not there, or not whole."""
    found = _read(out / keep.FOLDER / _FILE)
    return found[0] if found is not None and Standing(out).has(found[1]["model"]) else None


def make(context: Context, out: Path, models: Mapping[str, Subject]) -> bool:
    """Keep the predictions and the worst of them; whether there was something to do."""
    one = models.get("finetune")
    if one is None or context.pack.class_names is None:
        return False
    chosen = labelled(context, _MOST.get(context.device.type, _MOST["cpu"]))
    if not len(chosen):
        return False
    of = {"rows": chosen.digest, "model": one.said(), "voting": context.config.data.chunk_votes}
    path = out / keep.FOLDER / _FILE
    known = _read(path)
    if known is not None and known[1] == of and keep.read_made_of(out, ITEM, of) is not None:
        return False
    if known is None or known[1] != of:
        _write(path, of, _predicted(context, chosen, one))
        known = _read(path)
    assert known is not None
    threshold = _threshold(out, one) if context.pack.problem == SEVERAL else HALF
    value = _worst(context, chosen, known[0], threshold)
    keep.write(out, ITEM, of, {"split": chosen.name, **value})
    return True


def make_others(context: Context, out: Path, results: Sequence[Result]) -> bool:
    """Keep the predictions of fine-tunings in other folders than `finetune`, which are compared with it row by row."""
    places = {result.model.parent.name: result for result in results if result.stage == "finetune"}
    places.pop("finetune", None)
    chosen = labelled(context, _MOST.get(context.device.type, _MOST["cpu"])) if places else None
    for place, result in places.items():
        one = Subject("finetune", result.weights, result.model, place)
        if chosen is None or not len(chosen):
            continue
        of = {"rows": chosen.digest, "model": one.said(), "voting": context.config.data.chunk_votes}
        path = out / keep.FOLDER / f"{place}-{_FILE}"
        if (known := _read(path)) is None or known[1] != of:
            _write(path, of, _predicted(context, chosen, one))
    return False


def mistakes(logits: Tensor, labels: Tensor) -> Tensor:
    """[m] int64: rows whose likeliest class is not theirs, the most confident first.

    Args:
        logits: [n, C].
        labels: [n] int64.
    """
    confidence, guess = logits.double().softmax(dim=1).max(dim=1)
    wrong = (guess != labels).nonzero()[:, 0]
    return wrong[confidence[wrong].argsort(descending=True, stable=True)]


def largest_errors(outputs: Tensor, labels: Tensor, problem: str) -> tuple[Tensor, Tensor]:
    """Rows that have several classes or numbers, the worst first, and how wrong each row [n] is.

    That is the mean cross-entropy over the classes, or the mean distance over the numbers, each as a share of its
    standard deviation among the rows.
    """
    if problem == SEVERAL:
        each = F.binary_cross_entropy_with_logits(outputs.double(), labels.double(), reduction="none")
    else:
        spread = labels.double().std(dim=0, correction=0)
        each = (outputs.double() - labels.double()).abs() / torch.where(spread > 0, spread, 1.0)
    wrong = each.mean(dim=1)
    return wrong.argsort(descending=True, stable=True), wrong


def _predicted(context: Context, chosen: Chosen, one: Subject) -> Predictions:
    modality, (module, companions, names) = context.modality, one.classifier(context)
    assert names == context.pack.class_names or context.pack.problem == REGRESSION

    def answers(seen: Any, rows: Tensor) -> Tensor:
        return modality.predict(module, companions, seen, rows, context.read(seen))

    voting = modality.voting(context.pack, chosen.split, context.config)
    logits = answers_of(chosen.split, chosen.items, voting, answers, SCORING[context.pack.problem].voted)
    labels = chosen.labels
    assert labels is not None
    complete = len(chosen) == int(has_label(chosen.split.labels).sum())
    return Predictions(logits.float().numpy(), labels, np.array(chosen.names), complete)


def _worst(context: Context, chosen: Chosen, known: Predictions, threshold: float) -> dict[str, Any]:
    """The rows that are shown, and how many are wrong in all."""
    logits, labels = torch.from_numpy(known.logits), torch.from_numpy(known.labels)
    names, problem = context.pack.class_names, context.pack.problem
    if problem == SINGLE:
        rows = mistakes(logits, labels)
        wrong, rows = len(rows), rows[:COUNT]
        shares = logits[rows].double().softmax(dim=1)
        told = [
            {
                "true": names[label],
                "predicted": names[int(share.argmax())],
                "confidence": float(share.max()),
                "of_true": float(share[label]),
            }
            for share, label in zip(shares, labels[rows].tolist(), strict=True)
        ]
    else:
        order, errors = largest_errors(logits, labels, problem)
        rows, wrong = order[:COUNT], len(order)
        told = [
            {**_told(logits[row], labels[row], names, problem, threshold), "error": float(errors[row])}
            for row in rows.tolist()
        ]
    some = chosen_rows(context, chosen.name, chosen.split, chosen.items[rows])
    shown = context.modality.shown(context, some.seen, some.rows)
    listed = [{"name": name, **one, **look} for name, one, look in zip(some.names, told, shown, strict=True)]
    return {"problem": problem, "count": len(logits), "all": known.all_rows, "wrong": wrong, "rows": listed}


def _told(outputs: Tensor, labels: Tensor, names: list[str], problem: str, threshold: float) -> dict[str, Any]:
    """What one row is and what is said of it: lists of classes, or of numbers by name."""
    if problem == REGRESSION:
        both = zip(names, labels.tolist(), outputs.tolist(), strict=True)
        return {"numbers": [[name, label, output] for name, label, output in both]}
    shares = outputs.double().sigmoid()
    return {
        "true": [[name, float(p)] for name, p, there in zip(names, shares, labels.tolist(), strict=True) if there],
        "predicted": [[name, float(p)] for name, p in zip(names, shares, strict=True) if p >= threshold],
    }


def _threshold(out: Path, one: Subject) -> float:
    assert one.folder is not None
    stored = read_json(one.folder.parent / "result.json")
    return float(stored.get("metrics", {}).get("threshold", HALF)) if isinstance(stored, dict) else HALF


def _write(path: Path, of: Mapping[str, Any], found: Predictions) -> None:
    file = io.BytesIO()
    told: dict[str, Any] = {"of": np.array(json.dumps(of)), "all_rows": np.array(found.all_rows)}
    np.savez_compressed(file, logits=found.logits, labels=found.labels, names=found.names, **told)
    write_bytes(path, file.getvalue())


def _read(path: Path) -> tuple[Predictions, dict[str, Any]] | None:
    try:
        with np.load(path) as kept:
            of = json.loads(str(kept["of"]))
            return Predictions(kept["logits"], kept["labels"], kept["names"], bool(kept["all_rows"])), of
    except Exception:  # numpy and zipfile have many kinds for a file that is cut, changed or not there
        return None
