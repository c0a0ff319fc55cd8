"""Scores of several classes a row and of numbers, beside scikit-learn and scipy; thresholds tried one by one."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE
from sdfast.evaluation.scoring import SCORING

metrics = pytest.importorskip("sklearn.metrics")


def sample(seed: int, absent: bool = False) -> tuple[Tensor, Tensor]:
    """Logits [40, 5] with ties that tell something of labels [40, 5] uint8; one class may have no row."""
    random = np.random.default_rng(seed)
    labels = (random.random((40, 5)) < (0.6, 0.4, 0.3, 0.2, 0.1)).astype(np.uint8)
    labels[0] = 0
    labels[1] = 1
    if absent:
        labels[:, 4] = 0
    logits = np.round(2 * labels - 1.5 + random.normal(0, 1.5, labels.shape), 1).astype(np.float32)
    if absent:
        logits[:, 4] = -9
    return torch.from_numpy(logits), torch.from_numpy(labels)


def chosen(logits: Tensor, threshold: float) -> np.ndarray:
    return (1 / (1 + np.exp(-logits.double().numpy())) >= threshold).astype(int)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.5, 0.23])
def test_scores_of_several_classes_are_those_of_scikit_learn(seed: int, threshold: float) -> None:
    logits, labels = sample(seed)
    guess, truth = chosen(logits, threshold), labels.numpy()
    found = SCORING[SEVERAL].metrics(logits, labels, threshold)
    assert found == {
        "mean_average_precision": pytest.approx(
            metrics.average_precision_score(truth, logits.numpy(), average="macro")
        ),
        "macro_f1": pytest.approx(metrics.f1_score(truth, guess, average="macro", zero_division=0)),
        "micro_f1": pytest.approx(metrics.f1_score(truth, guess, average="micro")),
        "subset_accuracy": pytest.approx(metrics.accuracy_score(truth, guess)),
        "threshold": threshold,
        "loss": pytest.approx(float(F.binary_cross_entropy_with_logits(logits.double(), labels.double()))),
        "macro_f1_classes": 5,
    }
    names = list("abcde")
    table = SCORING[SEVERAL].tables(logits, labels, names, threshold)["per_class"]
    each = metrics.precision_recall_fscore_support(truth, guess, zero_division=0)
    precision = metrics.average_precision_score(truth, logits.numpy(), average=None)
    for place, name in enumerate(names):
        wanted = dict(zip(("precision", "recall", "f1", "support"), (part[place] for part in each), strict=True))
        assert table[name] == pytest.approx({**wanted, "average_precision": precision[place]})


def test_a_class_without_a_row_takes_no_part() -> None:
    logits, labels = sample(4, absent=True)
    found, truth = SCORING[SEVERAL].metrics(logits, labels), labels.numpy()[:, :4]
    wanted = metrics.average_precision_score(truth, logits.numpy()[:, :4], average="macro")
    assert found["mean_average_precision"] == pytest.approx(wanted)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, chosen(logits, 0.5)[:, :4], average="macro"))
    reported = SCORING[SEVERAL].reported(found, 5)
    assert found["macro_f1_classes"] == 4 == reported["macro_f1_classes"] and reported["test_loss"] == found["loss"]
    per_class = SCORING[SEVERAL].tables(logits, labels, list("abcde"))["per_class"]
    assert set(per_class["e"].values()) == {0}
    note = SCORING[SEVERAL].note(labels, list("abcde"))
    assert note.startswith(f"by chance: mean average precision {truth.mean(axis=0).mean():.4f}; it is over fewer")
    assert note.endswith("as 1 of 5 have no row: e")


@pytest.mark.parametrize("seed", [5, 6])
def test_the_threshold_has_the_best_macro_f1(seed: int) -> None:
    logits, labels = sample(seed)
    found = SCORING[SEVERAL].threshold(logits, labels)
    assert found is not None
    scores = {
        percent: metrics.f1_score(labels.numpy(), chosen(logits, percent / 100), average="macro", zero_division=0)
        for percent in range(1, 100)
    }
    best = [percent for percent, score in scores.items() if score > max(scores.values()) - 1e-6]
    assert round(100 * found) == min(best, key=lambda percent: abs(percent - 50))
    assert SCORING[SINGLE].threshold(logits, labels) is None


@pytest.mark.parametrize("width", [1, 4])
def test_scores_of_numbers_are_those_of_scikit_learn_and_scipy(width: int) -> None:
    random = np.random.default_rng(7)
    units, means = ([30, 1, 1e-3, 1e9][:width], [1e4, 50, 0.5, 0][:width])
    truth = (np.round(random.normal(0, 1, (50, width)), 1) * units + means).astype(np.float32)  # with ties
    guess = (truth + random.normal(0, 0.5, truth.shape) * units).astype(np.float32)
    names = [f"n{place}" for place in range(width)]
    found = SCORING[REGRESSION].metrics(torch.from_numpy(guess), torch.from_numpy(truth))
    table = SCORING[REGRESSION].tables(torch.from_numpy(guess), torch.from_numpy(truth), names)["per_output"]
    exact, right = guess.astype(float), truth.astype(float)
    each = {
        "mse": metrics.mean_squared_error(right, exact, multioutput="raw_values"),
        "mae": metrics.mean_absolute_error(right, exact, multioutput="raw_values"),
        "r2": metrics.r2_score(right, exact, multioutput="raw_values"),
        "spearman": [spearmanr(right[:, place], exact[:, place]).statistic for place in range(width)],
    }
    each["rmse"] = np.sqrt(each["mse"])
    for name, values in each.items():
        assert [table[output][name] for output in names] == pytest.approx(list(values), rel=1e-5, abs=0)
        assert found[name] == pytest.approx(np.mean(values), rel=1e-5)
    reported = SCORING[REGRESSION].reported(found, width)
    assert reported["test_loss"] == reported["mse"] == found["loss"] and "loss" not in reported
    variance = right.var(axis=0).mean()
    assert f"mse {variance:.6g}, r2 0" in SCORING[REGRESSION].note(torch.from_numpy(truth), names)


def test_constant_outputs_and_single_rows() -> None:
    same, rising = torch.ones(4, 1), torch.arange(4.0)[:, None]
    found = SCORING[REGRESSION].metrics(same, rising)
    assert found["spearman"] == 0 and found["r2"] == pytest.approx(metrics.r2_score(rising.numpy(), same.numpy()))
    assert SCORING[REGRESSION].metrics(same[:1], rising[:1]).keys() == {"mse", "rmse", "mae", "loss"}


def test_predictions_can_be_read_back() -> None:
    logits, labels = torch.tensor([[3.0, -3.0], [-1.0, 2.0]]), torch.tensor([[1, 0], [0, 0]], dtype=torch.uint8)
    text = SCORING[SEVERAL].predictions(["1.png", "2.png"], logits, labels, ["a;b", "c"], 0.5)
    one, other = csv.DictReader(io.StringIO(text))
    assert [json.loads(row["labels"]) for row in (one, other)] == [["a;b"], []]
    assert [json.loads(row["predicted"]) for row in (one, other)] == [["a;b"], ["c"]]
    assert float(one["a;b"]) == pytest.approx(float(logits[0, 0].sigmoid()), abs=1e-6)
    numbers = SCORING[REGRESSION].predictions(["1.png"], logits[:1], torch.tensor([[0.1, 2.0]]), ["x", "y"], 0.5)
    (row,) = csv.DictReader(io.StringIO(numbers))
    assert np.float32(row["label_x"]) == np.float32(0.1) and float(row["predicted_y"]) == -3
    single = SCORING[REGRESSION].predictions(["1.png"], logits[:1, :1], torch.tensor([[0.1]]), ["x"], 0.5)
    assert single.splitlines()[0] == "file_name,label,predicted"
