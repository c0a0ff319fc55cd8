"""What a command says and gives: --quiet, --verbose and --json, in one place for all."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from sdfast.cli import output
from sdfast.cli.main import run
from sdfast.errors import Interrupted, UserError
from sdfast.log import console, log


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[typer.Typer]:
    """An application of our kind, in the place of sdfast's."""
    app = typer.Typer()

    @app.callback()
    def _root(quiet: output.Quiet = False, verbose: output.Verbose = False, json: output.Json = False) -> None:
        output.choose(quiet, verbose, json)

    @app.command()
    def work(fail: str = "", twice: bool = False, shown: bool = False) -> None:
        log.debug("because")
        log.info("working")
        log.warning("careful")
        warnings.warn("a library's", stacklevel=1)
        print("by a library")
        if fail == "user":
            raise UserError("no such thing.")
        if fail == "signal":
            raise Interrupted("stopped.", 15)
        if fail == "defect":
            raise ZeroDivisionError("a defect")
        for _ in range(1 + twice):
            output.give({"path": Path("a/b"), "value": float("nan"), "bar": shown}, lambda: print("a person's"))
        if fail == "later":
            raise UserError("one of them failed.")

    output.everywhere(app)
    monkeypatch.setattr(sys.modules["sdfast.cli.main"], "app", app)
    return app


pytestmark = pytest.mark.filterwarnings("ignore:a library's")


@pytest.mark.parametrize("arguments", [["work", "--json"], ["--json", "work"]])
def test_json_is_the_one_thing_on_stdout(
    arguments: list[str], command: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--twice"] if arguments[0] == "work" else arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"path": "a/b", "value": None, "bar": False}
    assert "working" in printed.err and "by a library" in printed.err and "a person's" not in printed.out
    assert run(["work"]) == 0  # the next run is a person's again
    assert capsys.readouterr().out == "by a library\na person's\n"


@pytest.mark.parametrize(
    ("fail", "code", "words"), [("user", 2, "no such thing."), ("signal", 143, "stopped."), ("later", 2, None)]
)
def test_a_failure_is_a_document_where_no_result_was_given(
    fail: str, code: int, words: str | None, command: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["work", "--json", "--fail", fail]) == code
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found == {"error": words, "exit_code": code} if words else found["path"] == "a/b"
    assert "sdfast: " in printed.err


def test_a_defect_leaves_a_document_too(command: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        run(["work", "--json", "--fail", "defect"])
    assert json.loads(capsys.readouterr().out)["error"] == "ZeroDivisionError: a defect"


def test_bad_usage_before_json_was_read_is_a_document(command: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["work", "--nonsense", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_leaves_warnings_and_the_result(
    option: str, command: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["work", option]) == 0
    printed = capsys.readouterr()
    assert printed.err.strip() == "careful" and "a person's" in printed.out
    assert run(["work"]) == 0
    assert "working" in capsys.readouterr().err


def test_quiet_shows_no_bar_and_verbose_says_why_and_when(
    command: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    with output.session(silent=False):
        output.choose(quiet=True)
        assert not console().is_terminal and console().file.write("bar") == 3
    assert "bar" not in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(["-v", "work"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.endswith(" because") and line[2] == ":" for line in lines)
    assert any("a library's" in line for line in lines)


def test_quiet_and_verbose_exclude_each_other(command: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["work", "-q", "-v"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert run(["-q", "work", "-v"]) == 2


def test_every_command_of_sdfast_has_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train"], ["config", "show"], ["cache", "info"]):
        assert run([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in ("--quiet", "--verbose", "--json")), words
    assert run(["config", "presets", "--json"]) == 0
    assert "demo" in json.loads(capsys.readouterr().out)
