"""What the commands print."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import groupby

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sdfast import __version__
from sdfast.rundir import Result

_PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "xformers",
    "deepspeed",
    "transformers",
    "timm",
    "datasets",
    "safetensors",
)
_BETWEEN = 2  # columns of a terminal between those of a table: a blank of the box and one of padding


def show_result(result: Result, stages: Sequence[Result]) -> None:
    """Seconds, speed and model of each stage that the command needed, and the classifier's scores."""
    table = Table("stage", "steps", "seconds", result.unit, "model")
    for each in stages:
        table.add_row(each.stage, str(each.steps), f"{each.seconds:.0f}", f"{each.rate:.0f}", str(each.model))
    Console().print(table)
    if result.metrics:
        show_metrics(result.metrics, result.paper_metric)


def show_metrics(metrics: Mapping[str, float], paper_metric: str | None = None) -> None:
    """One line per metric, with what it is to be compared with; the one that the paper reports is marked."""
    beside = {
        "accuracy": ("majority_class_accuracy", "always the largest class: {:.4f}"),
        "macro_f1": ("macro_f1_classes", "over the {:.0f} classes that occur in the test rows or predictions"),
    }
    compared = {other for other, _ in beside.values()}
    for name, value in metrics.items():
        if name in compared:
            continue
        notes = ["the paper's metric for this data set"] if name == paper_metric else []
        other, text = beside.get(name, ("", ""))
        if other in metrics:
            notes.append(text.format(metrics[other]))
        typer.echo(f"{name} {value:.4f}" + (f" ({'; '.join(notes)})" if notes else ""))


def show_environment() -> None:
    """Versions and hardware."""
    import torch

    from sdfast.engine.waiting import why_not_adapting

    lines = {"sdfast": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            lines[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            lines[package] = "not installed"
    lines["cpu threads"] = str(torch.get_num_threads())
    lines["cpu capability"] = torch.backends.cpu.get_cpu_capability()
    lines["cpu waiting"] = why_not_adapting() or "spins while processors are free, sleeps beside other work"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines["cuda"] = f"{torch.version.cuda or 'not built in'}; devices: {', '.join(gpus) or 'none'}"
    for name, value in lines.items():
        typer.echo(f"{name:16}{value}")


def show_markdown(text: str, console: Console | None = None) -> None:
    """Print Markdown for a person; as it is where stdout is no terminal.

    No cell of a table wraps: one that is too wide comes in parts below each other.

    Args:
        text: paragraphs of one line, headings, lists, and tables as `sdfast.studies.tables.aligned` makes them.
        console: where to; stdout when not given.
    """
    console = console or Console()
    if not console.is_terminal:
        typer.echo(text, file=console.file, nl=False)
        return
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
            _show_table(console, [rows[0], *rows[2:]])
            continue
        for line in lines:
            style = "bold" if line.startswith("# ") else None
            listed = line.startswith("- ")  # paths, which are to be copied whole
            console.print(
                line.removeprefix("# "), style=style, soft_wrap=listed, highlight=False, markup=False, emoji=False
            )


def _show_table(console: Console, rows: Sequence[Sequence[str]]) -> None:
    header = [_folded(name, [row[column] for row in rows[1:]]) for column, name in enumerate(rows[0])]
    widths = [
        max(map(len, [*name.splitlines(), *(row[column] for row in rows[1:])])) for column, name in enumerate(header)
    ]
    for place, columns in enumerate(_parts(widths, console.width)):
        if place:
            console.print()
        table = Table(box=box.SIMPLE_HEAD, padding=(0, _BETWEEN - 1, 0, 0), pad_edge=False, show_edge=False)
        for column in columns:
            table.add_column(header[column], no_wrap=True, min_width=widths[column])
        for row in rows[1:]:
            table.add_row(*(row[column] for column in columns))
        wide = max(console.width, sum(widths[column] + _BETWEEN for column in columns))
        console.print(table, width=wide, crop=False, highlight=False, markup=False, emoji=False)


def _folded(name: str, cells: Sequence[str]) -> str:
    """A heading in lines that are no wider than the cells below, as far as its words allow."""
    least = max(map(len, [*name.split(), *cells]), default=1)
    return "\n".join(textwrap.wrap(name, max(1, least), break_on_hyphens=False))


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns that fit beside the first one, which heads each part."""
    parts, left = [[0]], room - widths[0] - _BETWEEN
    for column, width in enumerate(widths[1:], 1):
        if width > left and len(parts[-1]) > 1:
            parts.append([0])
            left = room - widths[0] - _BETWEEN
        parts[-1].append(column)
        left -= width + _BETWEEN
    return parts
