"""Classes of different size through whole runs: the tables of each class by hand, settings, what is printed."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pipeline_fixtures
import pytest
import text_fixtures
import torch

import sdfast
from sdfast.cli.main import run
from sdfast.cli.show import show_classes
from sdfast.config import resolve
from sdfast.durable import read_json
from sdfast.errors import UserError
from sdfast.evaluation import classification
from sdfast.evaluation.classification import class_tables

ALL = ("finetune.class_weights=balanced", "finetune.label_smoothing=0.1", "finetune.sampling=balanced")


def by_hand(labels: list[int], predicted: list[int], names: list[str]) -> tuple[dict[str, Any], list[list[int]]]:
    """Scores of each class and the matrix, counted one row at a time."""
    matrix = np.zeros((len(names), len(names)), dtype=int)
    for label, guess in zip(labels, predicted, strict=True):
        matrix[label, guess] += 1
    scores = {}
    for number, name in enumerate(names):
        hits, called, there = matrix[number, number], matrix[:, number].sum(), matrix[number].sum()
        scores[name] = {
            "precision": pytest.approx(hits / called if called else 0),
            "recall": pytest.approx(hits / there if there else 0),
            "f1": pytest.approx(2 * hits / (called + there) if called + there else 0),
            "support": there,
        }
    return scores, matrix.tolist()


def test_the_tables_are_those_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    names, rng = list("abcde"), np.random.default_rng(0)
    labels = [*rng.integers(0, 3, 60).tolist(), 3]  # e has no row
    predicted = [label if rng.random() < 0.6 else int(rng.integers(0, 3)) for label in labels]  # nor is it predicted
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 5).float()
    scores, matrix = by_hand(labels, predicted, names)
    assert class_tables(logits, torch.tensor(labels), names) == {"per_class": scores, "confusion_matrix": matrix}
    monkeypatch.setattr(classification, "_MATRIX_CLASSES", 4)
    assert class_tables(logits, torch.tensor(labels), names) == {"per_class": scores}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    root = tmp_path_factory.mktemp("inputs")
    photos = pipeline_fixtures.write_images(root / "images", classes=3, val=3)
    for number in range(2, 12):
        (photos / "train" / "class2" / f"train{number}.png").unlink()
    texts = text_fixtures.write_texts(root / "texts", classes=3)
    return {
        "images": {"model": pipeline_fixtures.write_model(root / "vit"), "data": photos},
        "texts": {"model": text_fixtures.write_text_model(root / "roberta"), "data": texts},
    }


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str) -> sdfast.Pipeline:
    few = (*pipeline_fixtures.FEW_STEPS, "finetune.start=init", "finetune.lr=0.01")
    return sdfast.Pipeline(**inputs, out=out, overrides=(*few, *overrides))


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_run_keeps_the_tables_of_its_predictions(kind: str, inputs: dict[str, Any], tmp_path: Path) -> None:
    run = pipeline(inputs[kind], tmp_path / "run", *ALL)
    result = run.finetune()
    found = run.evaluation()
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").open()))
    names = run.pack.class_names
    assert names is not None
    labels, predicted = ([names.index(row[column]) for row in rows] for column in ("label", "predicted"))
    scores, matrix = by_hand(labels, predicted, names)
    assert result.per_class == {"test": scores} and result.confusion_matrix == {"test": matrix}
    assert list(result.per_class["test"]) == names
    assert found.per_class == scores and found.confusion_matrix == matrix
    stored = read_json(tmp_path / "run" / "finetune" / "result.json")
    assert stored["per_class"] == result.per_class and stored["confusion_matrix"] == result.confusion_matrix
    again = pipeline(inputs[kind], tmp_path / "run", *ALL).finetune()
    assert again == result  # found done, with its tables
    assert {key: stored["inputs"][key] for key in stored["inputs"] if key[9:] in ("class_weights", "sampling")} == {
        "finetune.class_weights": "balanced",
        "finetune.sampling": "balanced",
    }


def test_each_setting_trains_another_model_and_the_defaults_count_for_nothing(
    inputs: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sdfast")
    given, found = inputs["images"], {}
    plain = pipeline(given, tmp_path / "run").finetune(name="plain")
    stored = read_json(tmp_path / "run" / "plain" / "result.json")["inputs"]
    assert not [key for key in stored if key.endswith(("class_weights", "label_smoothing", "sampling"))]
    said = ("finetune.class_weights=none", "finetune.label_smoothing=0", "finetune.sampling=uniform")
    assert pipeline(given, tmp_path / "run", *said).finetune(name="plain") == plain
    for number, override in enumerate((*ALL, "finetune.class_weights=[1,1,9]", "finetune.objective=supcon")):
        more = ALL[:2] if "supcon" in override else ()
        found[override] = pipeline(given, tmp_path / "run", override, *more).finetune(name=f"arm{number}")
    assert len({plain.weights, *(each.weights for each in found.values())}) == 6
    assert "class weights: class0 0.7222, class1 0.7222, class2 4.333" in caplog.text  # 26 / (3 * (12, 12, 2))
    # a list of equal weights is no weights: the sums' rounding apart, the loss is the plain one
    even = pipeline(given, tmp_path / "run", "finetune.class_weights=[3,3,3]").finetune(name="even")
    assert even.metrics["test_loss"] == pytest.approx(plain.metrics["test_loss"], abs=1e-3)


def test_weights_by_name_are_the_setting_that_their_list_is(
    inputs: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sdfast")
    named = ["finetune.class_weights={class2: 4, class0: 2}", "finetune.class_weights={class0: 2.0, class2: 4.0}"]
    first = pipeline(inputs["images"], tmp_path / "run", named[0]).finetune()
    assert "class weights: class0 2, class1 1, class2 4" in caplog.text
    stored = read_json(tmp_path / "run" / "finetune" / "result.json")["inputs"]
    assert stored["finetune.class_weights"] == [2, 1, 4]
    for same in (named[1], "finetune.class_weights=[2,1,4]"):
        assert pipeline(inputs["images"], tmp_path / "run", same).finetune() == first  # found done
    written = resolve(file=tmp_path / "run" / "config.yaml")
    assert written.finetune.class_weights == (2, 1, 4)
    with pytest.raises(UserError, match="names 'owl', which is no class; they are class0, class1, class2"):
        pipeline(inputs["images"], tmp_path / "run", "finetune.class_weights={owl: 4}").finetune()


def test_with_best_dev_the_val_split_has_tables_too(inputs: dict[str, Any], tmp_path: Path) -> None:
    result = pipeline(inputs["images"], tmp_path / "run", "finetune.best_dev=true").finetune()
    assert result.per_class is not None and result.confusion_matrix is not None
    assert [each["support"] for each in result.per_class["val"].values()] == [3, 3, 3]
    matrix = np.array(result.confusion_matrix["val"])
    assert matrix.trace() / matrix.sum() == pytest.approx(result.metrics["dev_accuracy"])


def test_a_list_of_another_length_is_refused_before_anything_is_trained(inputs: dict[str, Any], tmp_path: Path) -> None:
    few = pipeline(inputs["images"], tmp_path / "run", "finetune.class_weights=[1,2]", "finetune.start=pretrain")
    with pytest.raises(UserError, match="has 2 weights, and the data have 3 classes"):
        few.finetune()
    assert not (tmp_path / "run" / "pretrain").exists()


def test_what_is_printed(inputs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = inputs["images"], tmp_path / "run"
    pipeline(given, out).finetune()
    command = ["train", "--stage", "finetune", "--out", str(out), "--config", str(out / "config.yaml")]
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert "most often taken for" in printed and all(f"class{number}" in printed for number in range(3))
    assert run(["eval", "--out", str(out)]) == 0
    table = printed[printed.rindex("┏") : printed.rindex("┘") + 1]
    assert capsys.readouterr().out.rstrip().endswith(table)

    scores = {"[red]": {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 2}}
    scores["b"] = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}
    show_classes(scores, [[2, 0], [2, 0]])
    cells = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines()]
    assert [cell.strip() for cell in cells[3]] == ["[red]", "0.5000", "1.0000", "0.6667", "2"]
    assert [cell.strip() for cell in cells[4]] == ["b", "0.0000", "0.0000", "0.0000", "2", "[red] (2)"]
    many = {f"c{number}": {"precision": 1.0, "recall": 1.0, "f1": number / 30, "support": 5} for number in range(30)}
    show_classes(many)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the 20 of 30 classes with the lowest F1") and len(lines) == 21
    assert lines[1] == "c0: precision 1.0000, recall 1.0000, F1 0.0000, rows 5" and lines[20].startswith("c19:")
