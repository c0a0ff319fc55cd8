"""The tables of docs/plan.md are what their script prints."""

from __future__ import annotations

from pathlib import Path

import plan_tables


def test_the_page_shows_what_the_script_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    for devices in plan_tables.DEVICES:
        assert "\n".join(plan_tables.table(devices)) in page, "run benchmarks/plan_tables.py and update docs/plan.md"
