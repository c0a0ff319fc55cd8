"""`sdfast runs`: the runs and studies below a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdfast.cli import output

if TYPE_CHECKING:
    from sdfast.listing import Listed

_SHORT = {"interrupted": "cut", "not begun": "-"}


def runs(
    folder: Annotated[Path, typer.Argument(help="in which they are, at any depth")] = Path("runs"),
) -> None:
    """List runs and studies with the state of each stage and the best metric, the one touched last first."""
    from sdfast.listing import list_runs

    found = list_runs(folder)
    output.give(found, lambda: _show_all(folder, found))


def _show_all(folder: Path, found: list[Listed]) -> None:
    if not found:
        typer.echo(f"no run and no study in {folder}")
        return
    _show(found)
    for each in found:
        for problem in each.problems:
            typer.echo(f"{each.name}: {problem}")


def _show(found: list[Listed]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, heads = Console(), ("name", "model", "data", "stages", "best", "changed", "size")
    rows = [_cells(each) for each in found]
    if not console.is_terminal:
        for row in (heads, *rows):
            typer.echo("\t".join(row))
        return
    table = Table(*heads)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _cells(each: Listed) -> tuple[str, ...]:
    best = "" if each.value is None else f"{each.metric} {each.value:.4f}"
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.touched))
    model, data = (Path(spec).name if spec and Path(spec).is_absolute() else spec for spec in (each.model, each.data))
    unknown = "?" if each.kind == "study" and each.value is None else "bundled"
    name = each.name if each.called in (None, Path(each.name).name) else f"{each.name} ({each.called})"
    return (name, model or unknown, data or unknown, _stages(each), best, changed, _size(each.bytes))


def _stages(each: Listed) -> str:
    if each.kind == "study":
        ready = each.counts.get("done", 0)
        of = f" of {each.wanted}" if each.wanted is not None and each.wanted >= ready else ""
        others = "".join(f", {count} {state}" for state, count in each.counts.items() if state != "done")
        return f"study {each.study or '?'}: {ready}{of} stages done{others}"
    parts = []
    for name, state in each.stages.items():
        steps = ""
        if name in each.steps:
            done, wanted = each.steps[name]
            steps = f" {done}" if wanted is None else f" {done}/{wanted}"
        parts.append(f"{name} {_SHORT.get(state, state)}{steps}")
    busy = each.running and "running" not in each.stages.values()
    return ", ".join(parts) + (", running" if busy else "")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
