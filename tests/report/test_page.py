"""The shell of a report: nothing of a person's becomes markup, nothing is loaded, and it does not grow without end."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from markupsafe import Markup

from sdfast.report.chart import Curve, chart, running_mean, thinned, ticks
from sdfast.report.page import MOST_BYTES, Page, render, save
from sdfast.report.panel import Panel, Shown, details, duration, facts, figure, number, percent, table

HOSTILE = "<script>alert('x')</script>\"&"
PNG = b"\x89PNG\r\n\x1a\n rest"


def test_what_comes_from_a_person_is_escaped_everywhere() -> None:
    body = table([HOSTILE], [[HOSTILE], [Shown(1.0, HOSTILE)]], sortable=True, caption=HOSTILE)
    body += facts([(HOSTILE, HOSTILE)]) + figure(PNG, HOSTILE, HOSTILE) + details(HOSTILE, Markup(""))
    body += chart(HOSTILE, [Curve(HOSTILE, [0, 1], [1, 2]), Curve(HOSTILE, [0], [1])], unit=HOSTILE, x_name=HOSTILE)
    panel = Panel("one", HOSTILE, body, HOSTILE)
    page = Page(
        HOSTILE, HOSTILE, [panel] * 3, about=HOSTILE, notes=[HOSTILE], tiles=[(HOSTILE, HOSTILE)], state=HOSTILE
    )
    text = render(page)
    assert HOSTILE not in text
    assert text.count("<script>") == 2  # ours
    assert "&lt;script&gt;" in text


def test_a_page_names_no_address() -> None:
    text = render(Page("t", "v", [Panel("a", "A", Markup("<p>b</p>"))]))
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", text)
    assert "http:" not in text and "https:" not in text and "url(" not in text


def test_only_a_running_page_reloads_itself() -> None:
    assert 'http-equiv="refresh"' in render(Page("t", "v", [], running=True))
    done = render(Page("t", "v", []))
    assert 'http-equiv="refresh"' not in done and not re.search(r"<html[^>]*data-running", done)


def test_a_panel_that_makes_a_page_too_large_is_left_out_and_said() -> None:
    large = Panel("large", "L", Markup("<p>" + "x" * MOST_BYTES + "</p>"))
    text = render(Page("t", "v", [Panel("small", "S", Markup("<p>stays</p>")), large]))
    assert len(text) < MOST_BYTES and "left out" in text and "stays" in text


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    path = save(Page("t \udcff", "v", []), tmp_path / "report.html")  # a name as the system has it
    assert path.read_text("utf-8").endswith("</html>") and [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_numbers_are_aligned_and_sorted_by_what_they_are() -> None:
    text = table(["name", "n"], [["a", 1234.0], ["b", Shown(0.5, "50 %")], ["c", None]])
    assert 'class="n" data-sort="1234.0">1,234<' in text and 'data-sort="0.5">50 %<' in text


def test_a_picture_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="is no PNG"):
        figure(b"nothing")


def test_numbers_as_a_person_reads_them() -> None:
    assert [number(value) for value in (3, 12345.6, 0.123456, 2.5e-5, math.nan)] == [
        *("3", "12,346", "0.1235", "2.5e-05", "not a number")
    ]
    assert percent(0.8534) == "85.3 %"
    assert [duration(value) for value in (4.21, 42, 600, 11100)] == ["4.2 s", "42 s", "10 min", "3 h 5 min"]


def test_thinning_keeps_the_ends_and_every_spike() -> None:
    points = [(float(step), 1.0) for step in range(100_000)]
    points[70_001] = (70_001.0, 9.0)
    kept = thinned(points, 400)
    assert len(kept) <= 400 and kept[0] == points[0] and kept[-1] == points[-1] and points[70_001] in kept
    assert kept == sorted(kept)


def test_a_running_mean_of_a_line_is_the_line() -> None:
    points = [(float(x), 2.0 * x) for x in range(200)]
    assert all(math.isclose(y, 2 * x, abs_tol=1e-9) for x, y in running_mean(points))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7), (1e-7, 3e-7), (5, 5.0001), (0, 123456)])
def test_ticks_lie_in_the_axis(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6 and all(low - 1e-9 <= each <= high + 1e-9 for each in found)


def test_values_that_are_not_finite_break_no_chart() -> None:
    text = chart("t", [Curve("a", [0, 1, 2, 3], [1.0, math.nan, math.inf, 2.0]), Curve("b", [], [])], log=True)
    assert "nan" not in text and "inf" not in text
    assert "Nothing was recorded" in chart("t", [Curve("a", [0], [math.nan])])
    assert "polyline" in chart("t", [Curve("a", [5], [0.25])])
