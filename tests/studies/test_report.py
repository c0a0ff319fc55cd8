"""The report of a study: what it says, what it draws, and that it is there while the study runs and afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from study_samples import Metrics, made_up

from sdfast.cli.main import run
from sdfast.report.page import MOST_BYTES, render
from sdfast.rundir import REPORT
from sdfast.studies.declared import COST, STUDIES, Arm
from sdfast.studies.report import LiveReport, page_of, write_report
from sdfast.studies.results import Found
from sdfast.studies.tables import record
from sdfast.studies.verdict import verdicts


def stored(*found: Found) -> dict[str, Any]:
    """As the JSON file has it, read again."""
    about = {"protocol": "paper", "jobs": 1, "seeds": [0], "command": "sdfast study x", "versions": {}, "config": []}
    values: dict[str, Any] = json.loads(json.dumps(record(found[0].study, found, device="cpu", **about)))
    return values


def shown(values: dict[str, Any], out: Path = Path("nowhere"), **more: Any) -> str:
    return render(page_of(out, values, **more))


def shifted(shift: dict[str, float]) -> Any:
    """Metrics in which methods differ from fine-tuning by so much, and a little by seed."""

    def metrics(arm: Arm, seed: int) -> Metrics:
        noise = 0.001 * ((seed * 7 + len(arm.title)) % 5)
        return {"accuracy": 0.6 + shift.get(arm.title, 0.0) + noise, "test_loss": 1.0, "train_loss": 0.5}

    return metrics


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ({"self-distillation": 0.05}, "Self-distillation gains +5."),
        ({"self-distillation": 0.05, "MARS": 0.02}, "; so does MARS (+"),
        ({}, "No method is shown to gain on fine-tuning in accuracy, over 5 seeds"),
        ({"R3F": -0.05}, "; R3F (-5."),
    ],
)
def test_the_verdict_says_plainly_whether_a_method_gains(shift: dict[str, float], words: str) -> None:
    found = made_up(STUDIES["compare"], range(5), shifted(shift))
    (sentence,) = verdicts(stored(found))
    assert words in sentence
    assert ("[95 %: " in sentence) and sentence in shown(stored(found))


def test_one_seed_tells_nothing_and_says_so() -> None:
    (sentence,) = verdicts(stored(made_up(STUDIES["compare"], [0])))
    assert "without an interval (one seed): more seeds are needed" in sentence
    page = shown(stored(made_up(STUDIES["compare"], [0])))
    assert "Every run" in page and ">Differences<" not in page


@pytest.mark.parametrize("name", [*STUDIES, COST.name])
def test_every_study_has_a_page(name: str, tmp_path: Path) -> None:
    study = STUDIES.get(name, COST)
    values = stored(made_up(study, range(3)))
    (tmp_path / f"{name}.svg").write_text("<svg></svg>")
    page = shown(values, tmp_path)
    keys = re.findall(r'<section id="([^"]+)"', page)
    assert {"stages", "again"} <= set(keys) and len(keys) == len(set(keys))
    assert ("d0-results" in keys) == (name != "cost")
    assert ("<polyline" in page) == (study.axis is not None)
    assert ("d0-figure" in keys) == (name == "figure5")
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_several_data_sets_have_parts_of_their_own_and_titles_are_only_text() -> None:
    study = STUDIES["table1"]
    values = stored(made_up(study, range(2), title="<b>photos</b>"), made_up(study, range(2), title="birds"))
    page = shown(values)
    assert "Results: birds" in page and "Results: &lt;b&gt;photos" in page and "<b>photos" not in page
    assert "birds: " in " ".join(verdicts(values))


def test_failures_and_an_earlier_versions_file_have_a_page() -> None:
    found = made_up(STUDIES["compare"], range(2))
    found.failures.append("finetune (MARS, seed 2): the loss is not finite")
    found.target.unavailable["kNN"] = "no"
    values = stored(found)
    assert "the loss is not finite" in shown(values) and "not available" in shown(values)
    for name in ("legend", "command", "versions", "config", "device"):
        del values[name]
    del values["data"][0]["notes"]
    assert "Results" in shown(values)


def test_hundreds_of_runs_stay_small() -> None:
    values = stored(made_up(STUDIES["labels"], range(30)))
    assert sum(len(arm["runs"]) for arm in values["data"][0]["arms"]) == 720
    assert len(shown(values).encode()) < MOST_BYTES / 5


def test_the_page_of_a_running_study_reloads_and_says_how_far_it_is(tmp_path: Path) -> None:
    values: list[dict[str, Any] | None] = [None]
    live = LiveReport(tmp_path, lambda: values[0])
    live.tell(1, 9)
    assert not (tmp_path / REPORT).exists()
    values[0], live._due = stored(made_up(STUDIES["compare"], range(2))), 0.0
    live.tell(2, 9)
    page = (tmp_path / REPORT).read_text()
    assert "2 of 9 stages" in page and "data-running" in page.partition("<head>")[0]
    live.tell(3, 9)  # too soon for another
    assert "2 of 9 stages" in (tmp_path / REPORT).read_text()


def test_a_study_ends_with_its_report_and_an_earlier_one_gets_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDFAST_REPORT", "1")
    inputs = ["--model", str(write_model(tmp_path / "model")), "--data", str(write_images(tmp_path / "images"))]
    out = tmp_path / "study"
    study = ["study", "compare", *inputs, *FEW_STEPS, "--out", str(out), "--name", "which one"]
    study += ["--seeds", "2", "--methods", "fine-tuning,further pre-training"]
    assert run(study) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {out / REPORT}"
    page = (out / REPORT).read_text()
    for words in (
        "which one: ",
        "over 2 seeds",
        "Learning curves",
        "What fine-tuning takes for what",
        "F1",
        "SHA-256 of images: model",
    ):
        assert words in page, words
    titles = re.findall("<h2>([^<]+)</h2>", page)  # what was learnt before what it cost
    assert titles.index("Learning curves") < titles.index("Classes") < titles.index("Cost")
    links = re.findall(r'<a href="(stages/[^"]+)/"', page)
    assert len(links) == 5 and all((out / link / "model").is_dir() for link in links)
    assert "data-running" not in page.partition("<head>")[0]

    (out / REPORT).unlink()
    moved = out.rename(tmp_path / "moved")
    assert run(["report", "--out", str(moved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(moved / REPORT)
    assert len(re.findall(r'<a href="(stages/[^"]+)/"', (moved / REPORT).read_text())) == 5

    (moved / REPORT).unlink()
    again = [str(moved) if each == str(out) else each for each in study]
    for off in (["engine.report=false"], []):
        monkeypatch.setenv("SDFAST_REPORT", "1" if off else "0")
        assert run([*again, *off, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["report"] is None and found["failures"] == [] and len(found["data"][0]["arms"]) == 2


def test_no_report_where_there_is_no_study(tmp_path: Path) -> None:
    assert write_report(tmp_path) is None
    assert not (tmp_path / REPORT).exists()
