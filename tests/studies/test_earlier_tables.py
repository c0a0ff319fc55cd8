"""A command after another in one folder: the table holds what both trained, or both tables are there."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import write_images, write_model

from sdfast.cli.main import run

STAGES = [
    *(f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("steps=1", "batch_size=8")),
    "engine.threads=1",
]
Runs = dict[str, list[int]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": str(write_model(root / "model")), "data": str(write_images(root / "images"))}


def study(inputs: dict[str, str], out: Path, *more: str, name: str = "compare") -> None:
    given = ["--model", inputs["model"], "--data", inputs["data"], "--out", str(out), *STAGES]
    assert run(["study", name, *given, *more]) == 0


def table(out: Path, name: str = "compare") -> Runs:
    """Seeds by arm, of the CSV; the other files agree."""
    found: Runs = {}
    for row in csv.DictReader((out / f"{name}.csv").open()):
        found.setdefault(row["arm"], []).append(int(row["seed"]))
    data: Any = json.loads((out / f"{name}.json").read_text())["data"][0]
    assert found == {arm["title"]: [run["seed"] for run in arm["runs"]] for arm in data["arms"] if arm["runs"]}
    shown = (out / f"{name}.md").read_text()
    assert all(f"\n| {title} " in shown for title in found)
    return found


def asides(out: Path, name: str = "compare") -> list[str]:
    return sorted(path.stem for path in out.glob(f"{name}-*.json"))


def trained(out: Path) -> int:
    return len(list((out / "stages").iterdir()))


def test_fewer_seeds_and_other_methods_leave_what_is_there(inputs: dict[str, str], tmp_path: Path) -> None:
    study(inputs, tmp_path, "--methods", "fine-tuning,mars", "--seeds", "3")
    both = {"fine-tuning": [0, 1, 2], "MARS": [0, 1, 2]}
    assert table(tmp_path) == both
    study(inputs, tmp_path, "--methods", "fine-tuning", "--seeds", "1")
    assert table(tmp_path) == both and trained(tmp_path) == 6
    study(inputs, tmp_path, "--methods", "fine-tuning,r3f", "--seeds", "2")
    assert table(tmp_path) == {**both, "R3F": [0, 1]} and trained(tmp_path) == 8 and not asides(tmp_path)
    text = (tmp_path / "compare.md").read_text()
    header, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line][:5]
    assert header[:2] == ["method", "n"] and [row[:2] for row in rows[1:]] == [
        ["fine-tuning", "3"],
        ["MARS", "3"],
        ["R3F", "2"],
    ]
    assert "over 2 to 3 fine-tuning seeds" in text and rows[3][3].endswith(", 2 pairs")


def test_other_settings_have_a_table_of_their_own_until_the_old_ones_are_back(
    inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ("--methods", "fine-tuning,further-pre-training")
    study(inputs, tmp_path, *methods, "--seeds", "2")
    before = {ending: (tmp_path / f"compare.{ending}").read_bytes() for ending in ("md", "csv", "json", "png", "svg")}
    capsys.readouterr()
    study(inputs, tmp_path, *methods, "--seeds", "1", "pretrain.steps=2")
    assert table(tmp_path) == {"fine-tuning": [0], "further pre-training": [0]}  # not of other settings
    (aside,) = asides(tmp_path)
    assert before == {ending: (tmp_path / f"{aside}.{ending}").read_bytes() for ending in before}
    assert f"{aside}.md" in capsys.readouterr().err
    study(inputs, tmp_path, *methods, "--seeds", "1")
    assert table(tmp_path) == {"fine-tuning": [0, 1], "further pre-training": [0, 1]}
    (other,) = asides(tmp_path)
    assert other != aside and not list(tmp_path.glob(f"{aside}*"))


def test_other_data_and_stages_that_are_gone_set_the_table_aside(inputs: dict[str, str], tmp_path: Path) -> None:
    study(inputs, tmp_path, "--methods", "fine-tuning", "--seeds", "2")
    other = {**inputs, "data": str(write_images(tmp_path / "other", classes=3))}
    study(other, tmp_path, "--methods", "fine-tuning", "--seeds", "1")
    assert table(tmp_path) == {"fine-tuning": [0]} and len(asides(tmp_path)) == 1
    study(inputs, tmp_path, "--methods", "fine-tuning", "--seeds", "1")
    assert table(tmp_path) == {"fine-tuning": [0, 1]}
    rows = list(csv.DictReader((tmp_path / "compare.csv").open()))
    (Path(rows[1]["model"]).parent / "result.json").unlink()
    study(inputs, tmp_path, "--methods", "fine-tuning", "--seeds", "1")
    assert table(tmp_path) == {"fine-tuning": [0]} and len(asides(tmp_path)) == 2


def test_fewer_points_of_a_figure_and_another_protocol(inputs: dict[str, str], tmp_path: Path) -> None:
    points = ("--seeds", "1", "--points")
    study(inputs, tmp_path, *points, "8,16", name="figure3")
    study(inputs, tmp_path, *points, "12", "--methods", "self-distillation", name="figure3")
    found = table(tmp_path, "figure3")
    assert set(found) == {
        *(f"{method}, n = {n}" for n in (8, 16) for method in ("fine-tuning", "further pre-training")),
        *(f"self-distillation, n = {n}" for n in (8, 12, 16)),
    }
    study(inputs, tmp_path, *points, "8", "--protocol", "full", name="figure3")
    assert len(table(tmp_path, "figure3")) == 3 and len(asides(tmp_path, "figure3")) == 1


@pytest.mark.parametrize("content", ["[1, 2]", "not JSON", '{"study": "compare", "data": [{}]}'])
def test_a_file_of_that_name_that_is_another_s_is_kept(inputs: dict[str, str], tmp_path: Path, content: str) -> None:
    (tmp_path / "compare.json").write_text(content)
    study(inputs, tmp_path, "--methods", "fine-tuning", "--seeds", "1")
    (aside,) = asides(tmp_path)
    assert (tmp_path / f"{aside}.json").read_text() == content and table(tmp_path) == {"fine-tuning": [0]}
    (tmp_path / f"{aside}.json").write_text("changed")
    study(inputs, tmp_path, "--methods", "fine-tuning", "--seeds", "1")
    assert (tmp_path / f"{aside}.json").read_text() == "changed"
