"""The report of a run, from the files of its directory: what it says, and that it never fails or grows."""

from __future__ import annotations

import csv
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.fake_runs import (
    HOSTILE,
    WEIGHTS,
    class_result,
    write_config,
    write_manifest,
    write_records,
    write_result,
    write_run,
)

from sdfast.report.page import MOST_BYTES
from sdfast.report.records import Live, read_run, records
from sdfast.report.run import page_of, write_report
from sdfast.report.verdict import verdict_of


def text_of(out: Path, live: Live | None = None) -> str:
    path = write_report(out, live)
    assert path == out / "report.html"
    text = path.read_text("utf-8")
    Balanced().check(text)
    return text


def said(out: Path, live: Live | None = None) -> str:
    run = read_run(out, live)
    assert run is not None
    found = verdict_of(run)
    return " ".join([found.sentence, *found.notes])


class Balanced(HTMLParser):
    """Every element that is opened is closed, in turn."""

    VOID = ("meta", "link", "img", "br", "line", "rect", "circle", "polyline", "path")

    def check(self, text: str) -> None:
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_finished_run_has_a_verdict_with_an_interval_and_every_part(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path / "run"))
    assert "is right on 80.0 % of 60 test images (95 % interval 68.2 to 88.2 %)" in text
    assert "always answering the largest class gives 33.3 %" in text
    for part in ("confusion", "classes", "training", "data", "cost", "command", "folders"):
        assert f'<section id="{part}"' in text
    for quantity in ("Loss", "Learning rate", "Rate", "Arithmetic", "Use of the device", "Time of a step"):
        assert f"<h4>{quantity}" in text
    assert WEIGHTS["d finetune"] in text and "finetune.steps" in text and "the same row in train and test" in text


def test_names_of_classes_and_paths_are_no_markup(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path / HOSTILE.replace("/", "")))
    assert "<img src=x" not in text and text.count("<script>") == 2


def test_a_model_that_is_no_better_than_the_largest_class_is_said_to_be_so(tmp_path: Path) -> None:
    out = write_run(tmp_path, ("a", "b"), [[9, 1], [7, 3]])
    assert "not shown to be better than always answering the largest class" in said(out)
    write_run(tmp_path / "worse", ("a", "b"), [[10, 90], [60, 40]])
    assert "worse than always answering" in said(tmp_path / "worse")


def test_nothing_is_concluded_of_further_pre_training_without_a_plain_fine_tuning(tmp_path: Path) -> None:
    assert "cannot be concluded from this run" in said(write_run(tmp_path))


def plain(out: Path, matrix: list[list[int]], tested: str = "t") -> None:
    metrics, tables = class_result(matrix, ("a", "b"))
    inputs = {"start": WEIGHTS["a given"], "classes": ["a", "b"], "test images": tested * 64, "test labels": "l" * 64}
    write_result(out, "finetune-plain", "finetune", inputs, WEIGHTS["e plain"], metrics, tables)


def test_the_difference_to_plain_fine_tuning_has_an_interval(tmp_path: Path) -> None:
    out = write_run(tmp_path, ("a", "b"), [[90, 10], [10, 90]])
    plain(out, [[70, 30], [30, 70]])
    text = said(out)
    assert "+20.0 points over plain fine-tuning (70.0 %)" in text and "Newcombe" in text
    plain(out, [[88, 12], [12, 88]])
    assert "cannot be told apart from plain fine-tuning" in said(out)
    plain(out, [[70, 30], [30, 70]], tested="u")
    assert "tested on other rows" in said(out)


def answers(out: Path, folder: str, weights: str, right: np.ndarray, name: str) -> None:
    labels = np.arange(len(right)) % 2
    chosen = np.where(right, labels, 1 - labels)
    logits = np.where(np.arange(2) == chosen[:, None], 2.0, 0.0).astype(np.float32)
    of = np.array(json.dumps({"model": {"weights": weights, "stage": folder}}))
    (out / "report").mkdir(exist_ok=True)
    np.savez(out / "report" / name, logits=logits, labels=labels, names=labels.astype(str), of=of)


def test_predictions_of_both_make_the_difference_a_paired_one(tmp_path: Path) -> None:
    out = write_run(tmp_path, ("a", "b"), [[90, 10], [10, 90]])
    plain(out, [[85, 15], [15, 85]])
    unpaired = said(out)
    assert "cannot be told apart" in unpaired  # by the counts alone
    right = np.arange(200) >= 20
    answers(out, "finetune", WEIGHTS["d finetune"], right, "test-predictions.npz")
    answers(out, "finetune-plain", WEIGHTS["e plain"], np.arange(200) >= 30, "finetune-plain-test-predictions.npz")
    text = said(out)
    assert "+5.0 points over plain fine-tuning (85.0 %)" in text and "for both models together" in text


def test_predictions_of_other_weights_are_not_taken(tmp_path: Path) -> None:
    out = write_run(tmp_path, ("a", "b"), [[90, 10], [10, 90]])
    answers(out, "finetune", "0" * 64, np.arange(200) >= 20, "test-predictions.npz")
    assert 'id="calibration"' not in text_of(out)


def test_calibration_comes_from_the_predictions_of_eval(tmp_path: Path) -> None:
    out = write_run(tmp_path, ("a", "b"), [[90, 10], [10, 90]])
    assert 'id="calibration"' not in text_of(out)
    with open(out / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", "predicted", "probability"])
        writer.writerows([[f"{at}.png", "ab"[at % 2], "ab"[(at + (at < 20)) % 2], "0.75"] for at in range(200)])
    text = text_of(out)
    assert "Expected calibration error 15.0 %" in text and "less confident than it is right" in text
    (out / "predictions.csv").write_text("file_name,label,predicted,probability\nx,a,c,y\n")
    assert 'id="calibration"' not in text_of(out)


def test_several_classes_a_row_are_scored_by_average_precision(tmp_path: Path) -> None:
    write_config(tmp_path, finetune={"start": "init"})
    one = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 10, "average_precision": 0.75}
    metrics = {"mean_average_precision": 0.75, "macro_f1": 0.5, "subset_accuracy": 0.25, "threshold": 0.5}
    inputs = {"start": "0" * 64, "classes": ["a", "b"], "problem_type": "multi_label_classification"}
    tables = {"per_class": {"test": {"a": one, "b": one}}}
    write_result(tmp_path, "finetune", "finetune", inputs, "1" * 64, metrics, tables)
    text = said(tmp_path)
    assert "Mean average precision is 0.750" in text and "no interval" in text and "plain fine-tuning" in text
    assert "average precision" in text_of(tmp_path)
    with open(tmp_path / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "labels", "predicted", "a", "b"])
        writer.writerows(
            [f"{at}.png", json.dumps([["a"], ["b"], ["a", "b"], []][at % 4]), '["a"]', 0.9 - at / 200, at / 100]
            for at in range(60)
        )
    assert re.search(r"95 % interval 0\.\d+ to 0\.\d+", said(tmp_path))


def test_numbers_are_scored_by_r2(tmp_path: Path) -> None:
    write_config(tmp_path, finetune={"start": "init"})
    each = {"mse": 0.25, "rmse": 0.5, "mae": 0.5, "r2": 0.8, "spearman": 0.9}
    inputs = {"start": "0" * 64, "classes": ["age"], "problem_type": "regression"}
    tables = {"per_output": {"test": {"age": each}}}
    write_result(tmp_path, "finetune", "finetune", inputs, "1" * 64, {**each, "test_loss": 0.25}, tables)
    assert "R² is 0.800" in said(tmp_path) and '<section id="numbers"' in text_of(tmp_path)
    rows = [f"{at}.png,{at % 7},{at % 7 + (0.5 if at % 2 else -0.5)}" for at in range(70)]
    (tmp_path / "predictions.csv").write_text("\n".join(["file_name,label,predicted", *rows]) + "\n")
    assert re.search(r"95 % interval 0\.\d+ to 0\.\d+", said(tmp_path))


def test_a_run_that_goes_says_how_far_it_is_and_reloads(tmp_path: Path) -> None:
    write_config(tmp_path)
    write_records(tmp_path / "pretrain", 7)
    live = Live("pretrain", "pretrain", 7, 20)
    text = text_of(tmp_path, live)
    assert "Stage pretrain is at step 7 of 20" in text and "nothing can be said of how good it is" in text
    assert 'http-equiv="refresh"' in text and "not begun" in text
    stopped = text_of(tmp_path)
    assert "was interrupted at step 7 of 20" in stopped and 'http-equiv="refresh"' not in stopped


def test_a_classifier_of_a_teacher_that_is_trained_again_gives_no_verdict(tmp_path: Path) -> None:
    out = write_run(tmp_path)
    text = text_of(out, Live("pretrain", "pretrain", 3, 20))
    assert "Stage pretrain is at step 3 of 20" in text and "is right on" not in text and "outdated" in text


def test_a_folder_without_a_run_has_no_report(tmp_path: Path) -> None:
    assert write_report(tmp_path) is None
    write_config(tmp_path)
    assert write_report(tmp_path) is None and not (tmp_path / "report.html").exists()


def test_what_a_person_or_a_fault_left_costs_no_more_than_a_part(tmp_path: Path, caplog: Any) -> None:
    out = write_run(tmp_path)
    (out / "pack" / "manifest.json").write_text('{"splits": {"train": {"rows": [], "classes": 3}}, "warnings": 7}')
    (out / "pretrain" / "metrics.jsonl").write_text('{"step": 1, "loss": "x"}\n[]\n\n{"loss": 3}\nnothing')
    (out / "report").mkdir()
    (out / "report" / "sessions.json").write_text('[3, {"command": 4, "versions": []}]')
    (out / "report" / "test-predictions.npz").write_bytes(b"PK nothing")
    assert "80.0 %" in text_of(out)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_cannot_be_written_is_one_warning(tmp_path: Path, caplog: Any) -> None:
    out = write_run(tmp_path)
    (out / "report.html").mkdir()
    assert write_report(out) is None
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "no report at" in record.getMessage() and "report.html" in record.getMessage()


def test_a_page_of_a_thousand_classes_and_a_hundred_thousand_records_stays_small(tmp_path: Path) -> None:
    names = [f"class {place} of a data set with long names" for place in range(1000)]
    matrix = np.eye(1000, dtype=int) * 2
    matrix[np.arange(1000), np.arange(1000) - 1] = 1
    out = write_run(tmp_path, names, matrix.tolist())
    lines = (f'{{"step": {at}, "loss": {1.0 if at != 70_001 else 9.0}, "lr": 0.001}}' for at in range(1, 100_001))
    (out / "pretrain" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    text = text_of(out)
    assert len(text.encode()) < MOST_BYTES / 2
    assert "most confused" in text.lower() and text.count("<polyline") < 100
    assert max(records(out / "pretrain" / "metrics.jsonl")["loss"][1]) == 9.0


def test_records_that_were_added_are_read_on_and_a_new_file_is_read_anew(tmp_path: Path) -> None:
    write_records(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    assert records(path)["loss"][0] == [1, 2, 3]
    with open(path, "a") as file:
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    assert records(path)["loss"][0] == [1, 2, 3, 4]
    path.unlink()
    assert records(path) == {}
    write_records(tmp_path, 2)
    assert records(path)["loss"][0] == [1, 2]


def test_a_manifest_of_texts_is_told_in_tokens(tmp_path: Path) -> None:
    out = write_run(tmp_path)
    words = {"max_length": 128, "vocabulary": 8000}
    split = {"rows": 9, "labelled": 9, "classes": {"a": 9}, "tokens": 1234, "longest": 99, "truncated": 1}
    write_manifest(out, ("a",), tokenization=words, transform=None, splits={"train": split, "test": split})
    text = text_of(out)
    assert "1,234" in text and "test texts" in text and "seq/s" in text


@pytest.mark.parametrize("rounds", [1, 3])
def test_all_rounds_are_listed_before_they_are_made(tmp_path: Path, rounds: int) -> None:
    write_config(tmp_path, distill={"rounds": rounds, "steps": 5})
    write_records(tmp_path / "pretrain", 3)
    run = read_run(tmp_path)
    assert run is not None
    folders = [f"distill/round-{number}" for number in range(1, rounds)]
    assert [each.folder for each in run.stages] == ["pretrain", *folders, "distill", "finetune"]


def test_a_run_is_called_what_its_owner_calls_it(tmp_path: Path) -> None:
    write_config(tmp_path, name="garden birds")
    run = read_run(tmp_path)
    assert run is not None and page_of(run).title == "garden birds"
