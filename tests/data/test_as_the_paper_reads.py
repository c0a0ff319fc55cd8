"""What docs/differences.md says of the paper's code: its keys give the pixels and rows that this code trains on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from data_samples import pixels
from numpy.typing import NDArray
from PIL import Image

from sdfast.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "differences.md"
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3


def keys_of(row: str) -> dict[str, Any]:
    """The keys of `data` in the last cell of a row of the page's last table."""
    line = next(line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| {row} |"))
    found = re.findall(r"data\.(\w+)=([^\s`]+)", line.rpartition("|")[0].rpartition("|")[2])
    return {key: tuple(value) if isinstance(value := yaml.safe_load(text), list) else value for key, text in found}


def write_pictures(root: Path, kind: str) -> list[Path]:
    """Four pictures of two classes: of `EXIF`, `transparent pixels` or `16-bit grey`."""
    for name in "ab":
        (root / name).mkdir(parents=True)
    files = [root / name / f"{number}.png" for name in "ab" for number in range(2)]
    for seed, file in enumerate(files):
        if kind == "EXIF":
            Image.fromarray(pixels(seed)).save(file, exif=UPSIDE_DOWN)
        elif kind == "transparent pixels":
            Image.fromarray(pixels(seed, channels=4)).save(file)
        else:
            Image.fromarray(pixels(seed)[..., 0].astype(np.uint16) * 3).save(file)  # up to 765
    return files


def read_as_the_paper(file: Path) -> NDArray[np.uint8]:
    """RGB by Pillow and a bilinear resize, as its loader and feature extractor do it: [6, 8, 3]."""
    return np.asarray(Image.open(file).convert("RGB").resize((8, 6), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("kind", ["EXIF", "transparent pixels", "16-bit grey"])
def test_the_keys_of_the_page_give_the_pixels_of_the_papers_code(
    tmp_path: Path, build: Callable[..., Any], kind: str
) -> None:
    files = write_pictures(tmp_path / "pictures", kind)
    expected = {read_as_the_paper(file).tobytes() for file in files}
    for options, same in ((keys_of(kind), True), ({}, False)):
        pack = build(tmp_path / "pictures", test_fraction=0.0, **options)
        rows = {np.asarray(row).tobytes() for row in pack.split("train").images}
        assert len(rows) == len(files) and (rows == expected) == same, options


def test_images_of_train_and_test_stop_the_run_until_they_are_kept(tmp_path: Path, build: Callable[..., Any]) -> None:
    for split in ("train", "test"):
        write_pictures(tmp_path / "pictures" / split, "transparent pixels")
    with pytest.raises(UserError, match="test"):
        build(tmp_path / "pictures")
    pack = build(tmp_path / "pictures", **keys_of("the same image in train and test"))
    assert len(pack.split("train")) == len(pack.split("test")) == 4
