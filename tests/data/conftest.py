"""Fixtures of the tests of sdfast.data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.sources import open_source
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.transform import Transform


@pytest.fixture
def transform() -> Transform:
    return Transform(6, 8)


@pytest.fixture
def open_spec() -> Callable[..., Source]:
    """Opens a source with options given by keyword."""
    return lambda spec, **options: open_source(str(spec), DataConfig(**options))


@pytest.fixture
def build(tmp_path: Path, transform: Transform) -> Callable[..., ImagePack]:
    """Prepares the pack of a source in <tmp>/out/pack; the sentences go to `.said`, a list on the function."""

    def prepare(spec: Path | str, **options: Any) -> ImagePack:
        said.clear()
        given = DataConfig(**options)
        return ImagePack.prepare(
            str(spec), tmp_path / "out" / "pack", transform.with_options(given), given, said.append
        )

    said: list[str] = []
    prepare.said = said  # type: ignore[attr-defined]
    return prepare
