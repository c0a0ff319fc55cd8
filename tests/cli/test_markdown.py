"""A study's Markdown on a terminal, and where there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sdfast.cli.show import show_markdown
from sdfast.studies.tables import aligned

HEADER = ["method", "accuracy %", "difference from fine-tuning [95 %]", "p", *(f"loss {index}" for index in range(9))]
ROWS = [
    HEADER,
    *([name, "66.0 ± 0.2", "-1.5 [-5.4, +2.4]", "0.238", *[f"{at}.957 ± 0.006"] * 9] for at, name in enumerate("ab")),
]
TEXT = "\n".join(["# compare: All methods", "", *aligned(ROWS), "", "word " * 40, "- a: " + "/a/long/path" * 12, ""])


def printed(width: int, terminal: bool = True) -> str:
    file = io.StringIO()
    show_markdown(TEXT, Console(file=file, width=width, force_terminal=terminal, color_system=None))
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_no_cell_wraps_and_none_is_lost(width: int) -> None:
    lines = printed(width).splitlines()
    assert max(len(line.rstrip()) for line in lines if not line.startswith("- ")) <= width
    assert "| " not in "".join(lines) and lines[0].strip() == "compare: All methods"
    for row in ROWS[1:]:
        mine = " ".join(line for line in lines if line.startswith(f"{row[0]} "))
        assert all(mine.count(cell) == row.count(cell) for cell in row[1:]), row
    words = " ".join(lines).split()
    assert all(word in words for name in HEADER for word in name.split())
    assert "- a: " + "/a/long/path" * 12 in printed(width)  # whole, to be copied
    assert (len([line for line in lines if line.startswith("a ")]) == 1) == (width == 400)


def test_a_cell_that_is_wider_than_the_terminal_is_not_cut() -> None:
    assert "-1.5 [-5.4, +2.4]" in printed(12)


def test_where_there_is_no_terminal_it_is_markdown() -> None:
    assert printed(80, terminal=False) == TEXT
