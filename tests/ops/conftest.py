"""Makes the case tables beside this file importable, and has backends say that they cannot be used."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdfast.ops import registry

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str | None], None]]:
    """Has a backend of an operator say why it cannot be used (None: that it can)."""
    rows = registry.all_rows()

    def say(op: str, backend: str, reason: str | None) -> None:
        backends = rows[op].backends
        monkeypatch.setitem(backends, backend, dataclasses.replace(backends[backend], why_not=lambda use: reason))
        registry.forget()

    registry.forget()
    yield say
    monkeypatch.undo()
    registry.forget()
