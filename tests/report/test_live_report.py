"""The report that is written while a run goes, and what asks for one: the pipeline, the key and the command."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import FEW_STEPS, write_images, write_model

from sdfast import Pipeline
from sdfast.cli.main import run as command
from sdfast.report import live
from sdfast.report.live import LiveReport, wanted
from sdfast.rundir import read_result


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDFAST_REPORT", raising=False)


def pipeline(place: Path, **more: Any) -> Pipeline:
    overrides = [*FEW_STEPS, "engine.log_every=1", "device=cpu", "engine.threads=1"]
    return Pipeline(place / "model", place / "images", place / "out", overrides=overrides, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    write_model(place / "model")
    write_images(place / "images")
    return place


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SDFAST_REPORT", raising=False)
        pipeline(place).run()
    return place / "out"


def test_a_run_ends_with_its_report(finished: Path) -> None:
    text = (finished / "report.html").read_text("utf-8")
    assert "The fine-tuned model is right on" in text and "data-running" not in text.partition("<head>")[0]
    (told,) = json.loads((finished / "report" / "sessions.json").read_text())
    assert told["device"] == "cpu" and told["versions"]["sdfast"] in text and told["command"] in text


def test_the_report_decides_nothing(place: Path, finished: Path) -> None:
    other = pipeline(place)
    other.out = place / "without"
    other.place.out = other.out
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDFAST_REPORT", "0")
        other.run()
    assert not (other.out / "report.html").exists() and not (other.out / "report").exists()
    for stage in ("pretrain", "distill", "finetune"):
        one, two = read_result(finished / stage), read_result(other.out / stage)
        assert one is not None and two is not None
        assert (one.fingerprint, one.weights, one.metrics) == (two.fingerprint, two.weights, two.metrics)


def test_a_run_that_is_done_already_gets_the_report_that_it_lacks(place: Path, finished: Path) -> None:
    (finished / "report.html").unlink()
    pipeline(place).run()
    assert "The fine-tuned model is right on" in (finished / "report.html").read_text("utf-8")


def test_the_command_writes_the_report_of_a_run_that_is_there(finished: Path, capsys: Any) -> None:
    (finished / "report.html").unlink()
    assert command(["report", "--out", str(finished), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {finished / 'report.html'}"
    assert (finished / "report.html").is_file()


def test_the_command_says_what_is_no_run(tmp_path: Path, capsys: Any) -> None:
    assert command(["report", "--out", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_an_evaluation_adds_calibration(finished: Path, place: Path) -> None:
    pipeline(place).evaluate()
    assert 'id="calibration"' in (finished / "report.html").read_text("utf-8")


def test_the_page_follows_a_stage_and_is_stopped_by_the_end(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(live, "_SECONDS", 0.0)
    monkeypatch.setattr(live, "_SHARE", 1e9)
    follower = LiveReport(tmp_path, "cpu", 1)
    follower.begin("pretrain", tmp_path / "pretrain", 20, 0)
    page = tmp_path / "report.html"
    assert "Stage pretrain is at step 0 of 20" in page.read_text()
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "metrics.jsonl").write_text('{"step": 5, "loss": 0.25}\n')
    follower.record(5, {"loss": 0.25})
    assert "at step 5 of 20" in page.read_text() and "data-running" in page.read_text().partition("<head>")[0]
    follower.end()
    follower.finish()
    assert "was interrupted at step 5" in page.read_text()
    assert "data-running" not in page.read_text().partition("<head>")[0]


def test_pages_are_written_seldom(tmp_path: Path, monkeypatch: Any) -> None:
    written: list[object] = []
    monkeypatch.setattr(live, "write_report", lambda out, live=None, quiet=False: written.append(live) or out)
    follower = LiveReport(tmp_path, "cpu", 1)
    follower.begin("pretrain", tmp_path / "pretrain", 20, 0)
    for step in range(1, 20):
        follower.record(step, {"loss": 1.0})
    assert len(written) == 1


def test_a_plain_fine_tuning_beside_it_is_compared_row_by_row(finished: Path, place: Path) -> None:
    pipeline(place).finetune(start="init", name="finetune-plain")
    text = (finished / "report.html").read_text("utf-8")
    assert "plain fine-tuning" in text and "a percentile bootstrap that draws rows for both models together" in text
    assert "finetune-plain/model" in text


def test_a_report_that_cannot_be_written_is_one_warning_and_fails_no_run(
    place: Path, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    made = Pipeline(place / "model", place / "images", tmp_path / "out", overrides=[*FEW_STEPS, "device=cpu"])
    assert made.pretrain().steps == 6
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len([each for each in said if "report" in each]) == 1


@pytest.mark.parametrize(("variable", "asked", "made"), [("0", True, False), ("1", True, True), ("1", False, False)])
def test_the_key_and_the_variable_both_switch_it_off(monkeypatch: Any, variable: str, asked: bool, made: bool) -> None:
    monkeypatch.setenv("SDFAST_REPORT", variable)
    assert wanted(asked) is made


def test_the_command_line_is_told_as_it_was_typed() -> None:
    assert live.command(["/usr/bin/sdfast", "train", "--data", "my photos"]) == "sdfast train --data 'my photos'"
    assert live.command(["/a/sdfast/__main__.py", "train"]) == "sdfast train"
    assert live.command(["/a/own.py", "--token", "x"]) == "from Python (own.py)"
