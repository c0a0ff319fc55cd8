"""The study of lengths: which stages it has, what it compares, and how it is drawn."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_fixtures import write_images, write_model
from study_samples import Metrics, made_up, noisy

import sdfast
from sdfast.cli.main import run
from sdfast.config import Config
from sdfast.errors import UserError
from sdfast.report.page import render
from sdfast.studies.declared import STUDIES, Arm, configured, expand
from sdfast.studies.figures import _lengths, draw
from sdfast.studies.plan import Plan, Target
from sdfast.studies.report import page_of
from sdfast.studies.results import Found
from sdfast.studies.run import _chosen
from sdfast.studies.tables import markdown, record
from sdfast.studies.verdict import verdicts

LENGTHS = STUDIES["lengths"]
POINTS = (125, 250, 500, 1000, 2000)
STEPS = ["pretrain.steps=8", "distill.steps=8", "finetune.steps=3", "engine.threads=1"]
STEPS += [f"{stage}.batch_size=8" for stage in ("pretrain", "distill", "finetune")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": str(write_model(root / "model")), "data": str(write_images(root / "images"))}


def planned(inputs: dict[str, str], out: Path, name: str, *more: str, **options: Any) -> tuple[Target, Plan]:
    config = Config(model=inputs["model"]).changed([f"data.source={inputs['data']}", *STEPS, *more])
    plan = Plan(STUDIES[name], **{"seeds": [0, 1], **options})
    return plan.target(config, out), plan


def steps(arm: Arm, config: Config) -> tuple[int, int]:
    given = configured(config, arm)
    return given.pretrain.steps, given.distill.steps


def stored(*found: Found) -> dict[str, Any]:
    about = {"protocol": "full", "jobs": 1, "seeds": [0], "command": "", "versions": {}, "config": [], "device": "cpu"}
    values: dict[str, Any] = json.loads(json.dumps(record(LENGTHS, found, **about)))
    return values


def crossing(arm: Arm, seed: int) -> Metrics:
    """Further pre-training declines with its length, self-distillation does not, and is behind it at the least one."""
    noise = 0.001 * ((seed * 7 + len(arm.title)) % 5)
    doublings = np.log2((arm.x or 125) / 125)
    accuracy = {"init": 0.6, "pretrain": 0.7 - 0.02 * doublings, "distill": 0.66}[arm.start] + noise
    return noisy(arm, seed) | {"accuracy": accuracy}


def test_lengths_are_shares_of_those_configured_and_distillation_keeps_its_proportion() -> None:
    config = Config().changed(["pretrain.steps=1000", "distill.steps=500"])
    arms, notes = expand(LENGTHS, config, 100)
    level, *others = arms
    assert (level.title, level.x) == ("fine-tuning", None) and not notes
    assert [arm.x for arm in others] == [125, 125, 250, 250, 500, 500, 1000, 1000, 2000, 2000]
    assert [arm.title for arm in others[4:6]] == ["further pre-training of 500 steps", "self-distillation of 500 steps"]
    assert [arm.series for arm in others[:2]] == ["further pre-training", "self-distillation"]
    assert [steps(arm, config) for arm in others[1::2]] == [
        (125, 62),
        (250, 125),
        (500, 250),
        (1000, 500),
        (2000, 1000),
    ]
    assert [steps(arm, config) for arm in others[::2]] == [(n, 500) for n in POINTS]  # it does not distil
    assert steps(level, config) == (1000, 500)
    short = expand(LENGTHS, Config().changed(["pretrain.steps=3", "distill.steps=1"]), 100)[0]
    assert [arm.x for arm in short[2::2]] == [1, 2, 3, 6]  # none of no step
    assert all(arm.overrides[-1].startswith("distill.steps=") for arm in short[2::2])
    assert [arm.overrides[-1] for arm in short[2::2]] == [f"distill.steps={n}" for n in (1, 1, 1, 2)]


def test_points_are_steps_and_methods_choose_arms() -> None:
    arms, _ = expand(LENGTHS, Config(), 100, [70, 7, 70])
    assert [arm.x for arm in arms] == [None, 7, 7, 70, 70]
    chosen = expand(_chosen(LENGTHS, ["further-pre-training"]), Config(), 100, [7, 70])[0]
    assert [arm.title for arm in chosen] == ["further pre-training of 7 steps", "further pre-training of 70 steps"]
    for points in ([0, 7], [-3]):
        with pytest.raises(UserError, match=rf"--points {points[0]} is no length of pre-training: give .* from 1 on"):
            expand(LENGTHS, Config(), 100, points)
    with pytest.raises(UserError, match="compares with further pre-training; name it in --methods too"):
        _chosen(LENGTHS, ["fine-tuning", "self-distillation"])


def test_each_student_has_the_teacher_of_its_length_and_that_is_trained_once(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    target, plan = planned(inputs, tmp_path, "lengths")
    nodes = [*plan.nodes.values()]
    assert Counter(node.task.stage for node in nodes) == {"pretrain": 5, "distill": 5, "finetune": 2 * (1 + 5 + 5)}
    teachers = {node.task.config.pretrain.steps: node for node in nodes if node.task.stage == "pretrain"}
    students = [node for node in nodes if node.task.stage == "distill"]
    assert sorted(teachers) == [1, 2, 4, 8, 16]
    for student in students:
        length = student.task.config.pretrain.steps
        assert student.task.config.distill.steps == length and student.needs == [teachers[length]]
    for cell in target.cells:
        chain = [node.task.stage for node in cell.stages[:-1]]
        assert chain == {"init": [], "pretrain": ["pretrain"], "distill": ["pretrain", "distill"]}[cell.arm.start]
        assert cell.arm.x is None or cell.stages[0] is teachers[int(cell.arm.x)]
        assert all(node.task.config.pretrain.steps == cell.arm.x for node in cell.stages[:-1])
    assert len({cell.stages[-1].key for cell in target.cells}) == len(target.cells)
    _, compare = planned(inputs, tmp_path, "table4")  # whose stages are those of pretrain.steps
    assert set(compare.nodes) <= set(plan.nodes)
    _, chains = planned(inputs, tmp_path, "lengths", protocol="full")
    assert Counter(node.task.stage for node in chains.nodes.values())["pretrain"] == 2 * 5


def test_where_epochs_decide_the_lengths_are_shares_of_them(inputs: dict[str, str], tmp_path: Path) -> None:
    epochs = ("pretrain.epochs=4", "distill.epochs=2")  # of 24 rows, 3 batches of 8
    target, plan = planned(inputs, tmp_path, "lengths", *epochs)
    assert target.epoch == 3
    assert target.notes == [
        "Lengths are steps of pretrain, 3 an epoch. Self-distillation of a length has a teacher of that length and"
        " distils 0.5 times as many steps."
    ]
    found = [cell.config for cell in target.cells if cell.arm.start == "distill" and cell.seed == 0]
    assert [(config.pretrain.steps, config.distill.steps) for config in found] == [
        (2, 1),
        (3, 2),
        (6, 3),
        (12, 6),
        (24, 12),
    ]
    _, compare = planned(inputs, tmp_path, "table4", *epochs)
    assert set(compare.nodes) <= set(plan.nodes)


def test_self_distillation_is_compared_with_further_pretraining_of_its_length() -> None:
    found = made_up(LENGTHS, points=POINTS)
    pairs = {f"self-distillation of {n:,} steps": f"further pre-training of {n:,} steps" for n in POINTS}
    for column in LENGTHS.columns:
        assert {title: found.reference(arm) for arm in found.target.arms if (title := arm.title) in pairs} == pairs
        assert set(found.compared(column)) == set(pairs)
    each = found.compared("score")["self-distillation of 500 steps"]
    student, teacher = (
        found.values(f"{name} of 500 steps", "score") for name in ("self-distillation", LENGTHS.reference)
    )
    assert each.mean == pytest.approx(np.mean(student) - np.mean(teacher))
    text = markdown(LENGTHS, [found], "full")
    header = [cell.strip() for cell in text.splitlines()[2].split("|")][1:-1]
    assert header[:3] == ["arm", "accuracy %", "difference from further pre-training at that length [95 %]"]
    assert header[5:] == ["test loss", "train loss", "gap", "distance"]
    assert text.count("| self-distillation of 500 steps ") == 3  # with the tests of loss and distance


def test_the_verdict_counts_lengths_and_says_where_each_method_begins_and_ends() -> None:
    (sentence,) = verdicts(stored(made_up(LENGTHS, range(5), crossing, points=POINTS)))
    assert sentence.startswith(
        "Self-distillation is above further pre-training at the same length at 2 of 5 lengths (most: +4."
    )
    assert ", self-distillation of 2,000 steps) and below further" in sentence
    assert "below further pre-training at the same length at 2 of 5 lengths (most: -4." in sentence
    assert "Mean accuracy %: further pre-training 70.2 at 125 steps, 62.2 at 2,000; self-distillation 66." in sentence
    (sentence,) = verdicts(stored(made_up(LENGTHS, [0], crossing, points=POINTS)))
    assert "without an interval (one seed)" in sentence and "Mean accuracy %" in sentence
    (sentence,) = verdicts(stored(made_up(_chosen(LENGTHS, ["further-pre-training"]), range(3), points=[7])))
    assert sentence == "There is nothing yet to compare."


@pytest.mark.parametrize("seeds", [1, 3, 10])
@pytest.mark.parametrize("points", [POINTS[:3], (62, 125, 250, 500, 1000, 16_000)])
def test_the_figure_has_a_panel_for_score_loss_and_distance(seeds: int, points: tuple[int, ...]) -> None:
    found = made_up(LENGTHS, range(seeds), points=points)
    found.target.epoch = 4
    figure = _lengths([found])
    assert [place.get_title(loc="left") for place in figure.axes] == ["(a) accuracy", "(b) test loss", "(c) distance"]
    for place in figure.axes:
        assert place.get_xscale() == "log" and [int(tick) for tick in place.get_xticks()] == [*points]
        names = {text.get_text() for text in place.texts}
        assert names == {"fine-tuning", "further\npre-training", "self-\ndistillation"}
        heights = sorted(text.xy[1] for text in place.texts)
        low, high = place.get_ylim()
        assert min(np.diff(heights)) >= 0.129 * (high - low) and heights[-1] <= high
        (epochs,) = place.child_axes
        named = {label.get_text() for label in epochs.get_xticklabels()}
        assert {f"{points[-1] / 4000:g}k" if points[-1] >= 4000 else f"{points[-1] / 4:g}"} <= named
        assert epochs.get_xlabel() == "length of pre-training, steps (and epochs)"
        assert len(place.patches) == (seeds >= 3)  # the band of the level


def test_the_pictures_are_there_and_the_same_for_the_same_numbers() -> None:
    found = [made_up(LENGTHS, title=title, points=POINTS) for title in ("photos", "birds")]
    pictures, again = (draw(found, "two data sets") for _ in range(2))
    assert pictures == again and pictures["png"].startswith(b"\x89PNG") and len(pictures["png"]) > 10_000
    words = pictures["svg"].decode()
    for title in ("(a) photos: accuracy", "(b) birds: test loss", "(c) birds: distance", "test loss, nats"):
        assert title in words
    assert "epochs" not in words  # which nobody has counted here


def test_a_length_alone_and_what_is_not_done_can_be_drawn() -> None:
    one = _lengths([made_up(LENGTHS, points=[500])]).axes[0]
    low, high = one.get_xlim()
    assert low * high == pytest.approx(500**2)
    found = made_up(LENGTHS, points=POINTS)
    done = {title: runs for title, runs in found.runs.items() if "2,000" not in title and title != "fine-tuning"}
    place = _lengths([replace(found, runs=done)]).axes[0]
    assert max(place.get_xticks()) == 1000 and len(place.texts) == 2
    for runs in found.runs.values():
        for cell in runs:
            del cell.result.metrics["distance"]
    assert len(_lengths([found]).axes) == 2


def test_the_page_draws_the_three_panels_along_a_logarithmic_axis() -> None:
    page = render(page_of(Path("nowhere"), stored(made_up(LENGTHS, points=POINTS))))
    assert all(f'<section id="d0-{name}"' in page for name in ("runs", "test_loss", "distance", "differences"))
    assert page.count("<polyline") == 3 * 3 and page.count("<polygon") == 3 * 3
    assert "further pre-training at that length" in page
    first = page.partition("<polyline")[2].partition("</svg>")[0]
    ticks = [float(part.partition('"')[0]) for part in first.split('<circle cx="')[1:6]]
    assert np.ptp(np.diff(ticks)) < 0.2  # doublings are equally far apart


def test_a_study_of_lengths_is_trained_and_loaded(
    inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ["study", "lengths", "--model", inputs["model"], "--data", inputs["data"], "--out", str(tmp_path), *STEPS]
    assert run([*study, "--seeds", "1", "--points", "0,2"]) == 2
    assert capsys.readouterr().err.startswith("sdfast: --points 0 is no length")
    assert run([*study, "--seeds", "1", "--points", "2,3"]) == 0
    found = sdfast.Study.load(tmp_path)
    rows = found.to_pandas()
    assert list(rows["arm"])[:3] == ["fine-tuning", "further pre-training of 2 steps", "self-distillation of 2 steps"]
    assert list(rows["x"].dropna()) == [2, 2, 3, 3] and found.name == "lengths" and "at that length" in found.table
    assert {path.suffix for path in tmp_path.glob("lengths.*")} == {".md", ".csv", ".json", ".png", ".svg"}
    taken = Counter(path.name.split("-")[0] for path in (tmp_path / "stages").iterdir())
    assert taken == {"pretrain": 2, "distill": 2, "finetune": 5}
    lengths = {node["steps"] for node in found.record["data"][0]["stages"] if node["stage"] == "distill"}
    assert lengths == {2, 3}
    # another length joins the table, and what is there stays
    assert run([*study, "--seeds", "1", "--points", "4", "--methods", "further-pre-training"]) == 0
    assert list(sdfast.Study.load(tmp_path).to_pandas()["x"].dropna()) == [2, 2, 3, 3, 4]
