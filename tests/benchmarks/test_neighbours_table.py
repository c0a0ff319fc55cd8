"""What a step keeps beside other work."""

from __future__ import annotations

import neighbours_table
import pytest


def entry() -> dict[str, object]:
    alone = {"naive": [2.0, 2.0, 9.0], "sdfast": [1.0], "sdfast, one thread": [1.5]}
    beside = {"naive": [10.0], "sdfast": [4.0], "sdfast, one thread": [3.0]}
    return {
        "point": "P",
        "batch": 8,
        "threads": 2,
        "processors": 2,
        "samples": {"0": alone, "3": beside},
        "machine": "a CPU",
        "torch": "2",
        "commit": "c",
    }


def test_shares_are_of_what_the_threads_would_get() -> None:
    assert neighbours_table.shares(entry(), "0")["sdfast, one thread"] == pytest.approx([8 / 1.5, 2 / 1.5, 1.0, 1.0])
    beside = neighbours_table.shares(entry(), "3")
    assert beside["sdfast"] == pytest.approx([2.0, 2.5, 0.25, 0.25 / 0.4])  # two of five threads on two processors
    assert beside["sdfast, one thread"] == pytest.approx([8 / 3, 10 / 3, 0.5, 1.0])  # one of four


def test_the_table_has_every_arm() -> None:
    text = neighbours_table.markdown([entry()])
    assert "| P | 3 | sdfast | 2.0 | 2.50 | 25% | 62% |" in text
    assert "medians of 3 samples" in text
