"""`sdfast doctor`: whether the installation works, and what to do where it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdfast.cli import output

if TYPE_CHECKING:
    from rich.console import Console

    from sdfast.doctor.finding import Finding

_STYLES = {"ok": "green", "not installed": "dim", "broken": "bold red"}
_STATES = max(map(len, _STYLES))


def doctor(
    out: Annotated[Path, typer.Option(help="run directory, or where one would be: its disk is tried")] = Path("runs"),
    seconds: Annotated[
        float, typer.Option(min=1, help="without a word, after which an import or a computation hangs")
    ] = 120,
) -> None:
    """Try each part of the installation, and say what to do about what is broken. Exit code 0 when nothing is."""
    from rich.console import Console

    from sdfast import __version__
    from sdfast.doctor.examine import examine

    console = Console()
    in_table = console.is_terminal and not output.wants_json()
    found: list[Finding] = []
    with console.status("looking") if in_table else contextlib.nullcontext() as status:

        def begin(what: str) -> None:
            if status is not None:
                status.update(f"looking at {what}")

        for finding in examine(out, seconds, begin):
            found.append(finding)
            if not in_table and not output.wants_json():
                _say(finding)
    wrong = [finding for finding in found if finding.broken]

    def show() -> None:
        if in_table:
            _show(console, found)
        names = ", ".join(finding.check for finding in wrong)
        typer.echo(f"{len(wrong)} of {len(found)} broken: {names}" if wrong else "everything that is installed works")

    output.give({"sdfast": __version__, "ok": not wrong, "checks": found}, show)
    if wrong:
        raise typer.Exit(1)


def _say(finding: Finding) -> None:
    typer.echo(f"{finding.state:{_STATES}}  {finding.check}: {finding.found}")
    if finding.todo:
        typer.echo(f"{'':{_STATES}}  -> {finding.todo}")


def _show(console: Console, found: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "check", "found")
    for each in found:
        cell = Text(each.found)
        if each.todo:
            cell.append(f"\n{each.todo[0].upper()}{each.todo[1:]}", style="yellow")
        table.add_row(Text(each.state, style=_STYLES[each.state]), Text(each.check), cell)
    console.print(table)
