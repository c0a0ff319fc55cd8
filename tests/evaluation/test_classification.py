"""Metrics of a classifier beside the values written out by hand, and what they are to be compared with."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pipeline_fixtures
import pytest
import torch
from torch import Tensor

import sdfast
from sdfast.cli.main import run
from sdfast.cli.show import show_metrics
from sdfast.durable import read_json
from sdfast.errors import UserError
from sdfast.evaluation.classification import baseline_note, classification_metrics, reported_metrics


def answers(numbers: list[int], classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(numbers), classes).float()


def f1(labels: list[int], predicted: list[int], number: int) -> float:
    pairs = list(zip(labels, predicted, strict=True))
    hits = sum(label == guess == number for label, guess in pairs)
    wrong = sum((label == number) != (guess == number) for label, guess in pairs)
    return 2 * hits / (2 * hits + wrong)


@pytest.mark.parametrize(
    ("labels", "predicted", "classes", "averaged"),
    [
        ([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2], 3, {0, 1, 2}),
        ([0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0], 4, {0, 1}),  # 2 and 3 occur nowhere
        ([0, 0, 1], [0, 3, 1], 4, {0, 1, 3}),  # 3 is predicted and has no row: it counts 0
    ],
)
def test_macro_f1_is_over_the_classes_that_occur(
    labels: list[int], predicted: list[int], classes: int, averaged: set[int]
) -> None:
    scores = classification_metrics(answers(predicted, classes), torch.tensor(labels))
    wanted = sum(f1(labels, predicted, number) for number in averaged) / len(averaged)
    assert scores["macro_f1"] == pytest.approx(wanted, abs=1e-6)
    assert scores["macro_f1_classes"] == len(averaged)
    assert scores["majority_class_accuracy"] == max(map(labels.count, labels)) / len(labels)
    assert scores["accuracy"] == pytest.approx(sum(map(int.__eq__, labels, predicted)) / len(labels))
    reported = reported_metrics(scores, classes)
    assert ("macro_f1_classes" in reported) == (len(averaged) < classes)
    assert reported["test_loss"] == scores["loss"]


def test_the_note_names_the_largest_class_and_those_that_lack() -> None:
    assert baseline_note(torch.tensor([1, 1, 0]), ["a", "b"]) == "always the largest class, 'b': accuracy 0.6667"
    assert baseline_note(torch.tensor([3, 3, 0]), list("abcde")) == (
        "always the largest class, 'd': accuracy 0.6667; macro-F1 is over fewer classes, as 3 of 5 have no row: b, c, e"
    )


def test_the_printed_lines(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {
        "accuracy": 0.75,
        "majority_class_accuracy": 0.688,
        "macro_f1": 0.5,
        "micro_f1": 0.75,
        "macro_f1_classes": 9.0,
        "test_loss": 1.0,
    }
    show_metrics(metrics, "macro_f1")
    assert capsys.readouterr().out.splitlines() == [
        "accuracy 0.7500 (always the largest class: 0.6880)",
        "macro_f1 0.5000 (the paper's metric for this data set; over the 9 classes that occur in the test rows or "
        "predictions)",
        "micro_f1 0.7500",
        "test_loss 1.0000",
    ]
    show_metrics({"accuracy": 0.75})
    assert capsys.readouterr().out == "accuracy 0.7500\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run on two classes."""
    root = tmp_path_factory.mktemp("run")
    model = pipeline_fixtures.write_model(root / "vit")
    data = pipeline_fixtures.write_images(root / "images")
    (data / "test" / "class1" / "test0.png").unlink()
    overrides = (*pipeline_fixtures.FEW_STEPS, "finetune.start=init")
    sdfast.Pipeline(model=model, data=data, out=root / "run", overrides=overrides).finetune()
    return root


def test_result_and_log_have_the_largest_class(finished: Path) -> None:
    stored = read_json(finished / "run" / "finetune" / "result.json")["metrics"]
    labels = [path.parent.name for path in (finished / "images" / "test").rglob("*.png")]
    share = max(map(labels.count, labels)) / len(labels)
    assert stored["majority_class_accuracy"] == share
    assert f"accuracy {share:.4f}" in (finished / "run" / "log.txt").read_text()


def test_classes_that_the_model_does_not_know(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """They stop the evaluation, or their rows are left out; the others are matched by name."""
    caplog.set_level(logging.INFO, "sdfast")
    data, out = pipeline_fixtures.write_images(tmp_path / "new", train=0, test=3) / "test", finished / "run"
    shutil.copytree(finished / "images" / "train" / "class1", data / "owl")
    command = ["eval", "--out", str(out), "--data", str(data)]
    with pytest.raises(UserError, match=r"not trained on: 1 \(owl\), of 12 rows; it knows .*data.unseen=drop"):
        sdfast.Pipeline(out=out, config=out / "config.yaml").evaluate(data)
    assert run(command) == 2
    assert run([*command, "seed=3"]) == 2
    capsys.readouterr()
    assert run([*command, "data.unseen=drop"]) == 0
    assert "always the largest class: 0.5000" in capsys.readouterr().out
    assert (
        f"Classes of {data} that the model was not trained on: 1 (owl), of 12 rows, which are left out." in caplog.text
    )
    assert "evaluated 6 images" in caplog.text
