"""`sdfast doctor`: whether the installation works, and what to do where it does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sdfast.doctor.finding import Finding

_STYLES = {"ok": "green", "not installed": "dim", "broken": "bold red"}
_STATES = max(map(len, _STYLES))


def doctor(
    out: Annotated[Path, typer.Option(help="run directory, or where one would be: its disk is tried")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON document")] = False,
    seconds: Annotated[
        float, typer.Option(min=1, help="without a word, after which an import or a computation hangs")
    ] = 120,
) -> None:
    """Try each part of the installation, and say what to do about what is broken. Exit code 0 when nothing is."""
    from rich.console import Console

    from sdfast import __version__
    from sdfast.doctor.examine import examine

    console = Console()
    found: list[Finding] = []
    if console.is_terminal and not as_json:
        with console.status("looking") as status:
            found += examine(out, seconds, lambda what: status.update(f"looking at {what}"))
        _show(console, found)
    else:
        for finding in examine(out, seconds):
            found.append(finding)
            if not as_json:
                typer.echo(f"{finding.state:{_STATES}}  {finding.check}: {finding.found}")
                if finding.todo:
                    typer.echo(f"{'':{_STATES}}  -> {finding.todo}")
    wrong = [finding for finding in found if finding.broken]
    if as_json:
        checks = [finding.to_json() for finding in found]
        typer.echo(json.dumps({"sdfast": __version__, "ok": not wrong, "checks": checks}, indent=2))
    else:
        names = ", ".join(finding.check for finding in wrong)
        typer.echo(f"{len(wrong)} of {len(found)} broken: {names}" if wrong else "everything that is installed works")
    if wrong:
        raise typer.Exit(1)


def _show(console: object, found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    assert isinstance(console, Console)
    table = Table("", "check", "found")
    for each in found:
        cell = Text(each.found)
        if each.todo:
            cell.append(f"\n{each.todo[0].upper()}{each.todo[1:]}", style="yellow")
        table.add_row(Text(each.state, style=_STYLES[each.state]), Text(each.check), cell)
    console.print(table)
