"""What the commands print."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdfast import __version__
from sdfast.rundir import Result

_CLASSES = 20  # that are shown
_BETWEEN = 2  # columns of a terminal between those of a table: a blank of the box and one of padding


def show_result(result: Result, stages: Sequence[Result]) -> None:
    """Seconds, speed and model of each stage that the command needed, and the classifier's scores."""
    table = Table("stage", "steps", "seconds", result.unit, "model")
    for each in stages:
        table.add_row(each.stage, str(each.steps), f"{each.seconds:.0f}", f"{each.rate:.0f}", str(each.model))
    Console().print(table)
    if result.metrics:
        show_metrics(result.metrics, result.paper_metric)
    if scores := (result.per_class or {}).get("test"):
        show_classes(scores, (result.confusion_matrix or {}).get("test"))
    if numbers := (result.per_output or {}).get("test"):
        show_numbers(numbers)


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


def show_classes(scores: Mapping[str, Mapping[str, float]], matrix: Sequence[Sequence[int]] | None = None) -> None:
    """What came out for each class: a table of up to 20, else a line for each of the 20 with the lowest F1.

    Args:
        scores: see `Result.per_class`, of one split.
        matrix: the split's `Result.confusion_matrix`; None where there is none.
    """
    if scores and "average_precision" in next(iter(scores.values())):
        _show_several(scores)
        return
    names = list(scores)
    rows = []
    for place, (name, each) in enumerate(scores.items()):
        others = [0 if other == place else count for other, count in enumerate(matrix[place])] if matrix else [0]
        most = max(others)
        taken = f"{names[others.index(most)]} ({most})" if most else ""
        rows.append((name, *(f"{each[key]:.4f}" for key in ("precision", "recall", "f1")), f"{each['support']}", taken))
    if len(rows) <= _CLASSES:
        table = Table(*("class", "precision", "recall", "F1", "rows", "most often taken for"))
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    typer.echo(f"the {_CLASSES} of {len(rows):,} classes with the lowest F1:")
    for row in sorted(rows, key=lambda row: scores[row[0]]["f1"])[:_CLASSES]:
        name, precision, recall, f1, count, taken = row
        more = f", most often taken for {taken}" if taken else ""
        typer.echo(f"{name}: precision {precision}, recall {recall}, F1 {f1}, rows {count}{more}")


def _show_several(scores: Mapping[str, Mapping[str, float]]) -> None:
    """The same where rows have several classes; of more than 20 those with the lowest average precision."""
    keys = {"average_precision": "average precision", "precision": "precision", "recall": "recall", "f1": "F1"}
    shown = list(scores)
    if len(shown) > _CLASSES:
        shown = sorted(shown, key=lambda name: scores[name]["average_precision"])[:_CLASSES]
        typer.echo(f"the {_CLASSES} of {len(scores):,} classes with the lowest average precision:")
    table = Table("class", *keys.values(), "rows")
    for name in shown:
        each = scores[name]
        table.add_row(*map(Text, (name, *(f"{each[key]:.4f}" for key in keys), f"{each['support']:.0f}")))
    Console().print(table)


def show_numbers(scores: Mapping[str, Mapping[str, float]]) -> None:
    """What came out for each number, where there are several: see `Result.per_output`, of one split."""
    if len(scores) < 2:
        return
    keys = list(next(iter(scores.values())))
    table = Table("number", *keys)
    for name, each in scores.items():
        table.add_row(*map(Text, (name, *(f"{each[key]:.6g}" for key in keys))))
    Console().print(table)


def environment() -> dict[str, str]:
    """Versions and hardware, as words."""
    import torch

    from sdfast.doctor.packages import NEEDED, OPTIONAL, installed
    from sdfast.engine.waiting import why_not_adapting

    lines = {"sdfast": __version__, "python": platform.python_version(), "platform": platform.platform()}
    lines |= {package: installed(package) or "not installed" for package in (*NEEDED, *OPTIONAL)}
    lines["cpu threads"] = str(torch.get_num_threads())
    lines["cpu capability"] = torch.backends.cpu.get_cpu_capability()
    lines["cpu waiting"] = why_not_adapting() or "spins while processors are free, sleeps beside other work"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines["cuda"] = f"{torch.version.cuda or 'not built in'}; devices: {', '.join(gpus) or 'none'}"
    return lines


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
