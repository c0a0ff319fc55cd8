"""The data section of the configuration."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sdfast.data.config import DataConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"test_fraction": 1},
        {"test_fraction": -0.1},
        {"max_broken": 1.5},
        {"duplicates": "delete"},
        {"channels": 0},
        {"image_size": 0},
        {"image_size": (4, 0)},
        {"max_pixels": 0},
        {"exif_rotation": "yes"},
        {"limits": 5},
    ],
)
def test_wrong_values_name_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig(**wrong)
    assert caught.value.errors()[0]["loc"][0] == next(iter(wrong))


def test_every_key_is_described_in_the_schema() -> None:
    properties = DataConfig.model_json_schema()["properties"]
    assert set(properties) == set(DataConfig.model_fields)
    assert all(entry.get("description") for entry in properties.values())


def test_sizes() -> None:
    assert DataConfig(image_size=32).image_size == 32
    assert DataConfig(image_size=[32, 48]).image_size == (32, 48)  # type: ignore[arg-type]
