"""Sentences have an end that a person reaches."""

from __future__ import annotations

import logging

import pytest

from sdfast.errors import brief
from sdfast.log import log


def test_long_names_are_cut_in_the_middle() -> None:
    path = "/".join(["folder"] * 57)  # 398 letters
    assert brief(f"{path} is\n\there, {path}xx too.") == f"{path} is\n\there, {path}xx too."
    cut = brief(f"the first is a{'x' * 1_000_000}b. Repair it.")
    assert cut == f"the first is a{'x' * 299}...{'x' * 98}b. Repair it."
    assert brief(cut) == cut


def test_so_are_those_of_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sdfast"):
        log.warning("classes %s and %d%% more", "a" * 5000, 5)
    assert caplog.messages == [f"classes {'a' * 300}...{'a' * 100} and 5% more"]
