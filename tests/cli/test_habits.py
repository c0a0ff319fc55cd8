"""Help that helps, a run's name, and how a run ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pipeline_fixtures import FEW_STEPS, write_images, write_model

from sdfast.cli import closing
from sdfast.cli.guide import SHOWN, name_of
from sdfast.cli.main import app, run
from sdfast.config import resolve
from sdfast.errors import UserError
from sdfast.pipeline import Pipeline


def commands(group: typer.Typer = app, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for entry in (*group.registered_commands, *group.registered_groups):
        yield (name := f"{prefix}{name_of(entry)}"), entry
        if (inner := getattr(entry, "typer_instance", None)) is not None:
            yield from commands(inner, f"{name} ")


def test_every_command_has_a_group_and_an_example_with_its_name() -> None:
    for name, entry in commands():
        assert name in SHOWN, f"sdfast/cli/guide.py does not know {name}"
        assert all(example.startswith(name) for example in SHOWN[name].examples) and entry.epilog, name
        assert " " in name or entry.rich_help_panel == SHOWN[name].panel


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_option_has_help_within_eighty_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["help", *name.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for line in lines:
        if line.startswith("│ --"):
            assert len(line.strip("│ ").split("  ")) > 1, line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["trian"], "'train'"), (["train", "--presett", "x"], "--preset"), (["config", "shwo"], "'show'")],
)
def test_a_slip_is_told_the_nearest(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "-x", "a\nb", "", "x" * 101, "a.", "[1]", "1.5"])
def test_a_name_is_that_of_a_folder(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        Pipeline(name=name) if name not in ("[1]", "1.5") else resolve(overrides=[f"name={name}"])


def test_a_name_is_the_default_folder_and_decides_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Pipeline(overrides=["name=2024"]).out == Path("runs/2024")
    assert Pipeline(name="a", out="b").out == Path("b")
    arguments = ["--model", str(write_model(tmp_path / "model")), "--data", str(write_images(tmp_path / "images"))]
    train = ["train", *arguments, *FEW_STEPS, "--name", "my photos"]
    assert run(train) == 0
    out = Path("runs/my photos")
    printed = capsys.readouterr().out.splitlines()
    assert (out / "finetune/model").is_dir() and printed[-1] == f"folder: {out}"
    assert printed[-2].startswith("accuracy ") and "always the largest class" in printed[-2]
    assert run(["train", *arguments, *FEW_STEPS, "--out", str(out), "--name", "another"]) == 0
    assert capsys.readouterr().err.count("already done") == 3
    (out / "report.html").write_text("")
    closing.close_run(out, [])
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {out / 'report.html'}"
