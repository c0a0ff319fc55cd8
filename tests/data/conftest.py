"""Fixtures of the tests of sdfast.data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.pack import Pack, prepare_pack
from sdfast.data.sources import open_source
from sdfast.data.transform import Transform


@pytest.fixture
def transform() -> Transform:
    return Transform(6, 8)


@pytest.fixture
def open_spec() -> Callable[..., Source]:
    """Opens a source with options given by keyword."""
    return lambda spec, **options: open_source(str(spec), DataConfig(**options))


@pytest.fixture
def build(tmp_path: Path, transform: Transform) -> Callable[..., Pack]:
    """Prepares the pack of a source in <tmp>/out/pack; the sentences go to `.said`, a list on the function."""

    def prepare(spec: Path | str, **options: Any) -> Pack:
        said.clear()
        return prepare_pack(str(spec), tmp_path / "out" / "pack", transform, DataConfig(**options), said.append)

    said: list[str] = []
    prepare.said = said  # type: ignore[attr-defined]
    return prepare
