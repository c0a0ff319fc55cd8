"""Markdown on a terminal: tables of which no cell wraps, in parts below each other where they are too wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby

import typer
from rich import box
from rich.console import Console
from rich.table import Table

_BETWEEN = 2  # columns: a blank of the box and one of padding


def show_markdown(text: str, console: Console | None = None) -> None:
    """Print it for a person; as it is where stdout is no terminal.

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
