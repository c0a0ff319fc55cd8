"""Runs that are trained once for the tests of this folder; the model that each was given is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import write_text_model, write_texts

import sdfast

STEPS = (*FEW_STEPS, "finetune.steps=30", "finetune.lr=3e-3", "pretrain.steps=2", "distill.steps=2")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run directory, and a folder with the 24 pictures of its test split without labels."""
    root = tmp_path_factory.mktemp("images")
    data = write_images(root / "data", classes=3, train=12, test=8, side=16)
    sdfast.Pipeline(write_model(root / "model"), data, root / "out", overrides=STEPS).run()
    loose = root / "loose"
    loose.mkdir()
    for number, path in enumerate(sorted((data / "test").rglob("*.png"))):
        shutil.copy(path, loose / f"{number:02d}.png")
    shutil.move(root / "model", root / "given")
    return root / "out", loose


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run directory, and a file with the 40 texts of its test split, one a line."""
    root = tmp_path_factory.mktemp("texts")
    data = write_texts(root / "data", test=40)
    steps = (*STEPS, "data.max_length=30")
    sdfast.Pipeline(write_text_model(root / "model"), data, root / "out", overrides=steps).run()
    lines = [json.loads(line)["text"] for line in (data / "test.jsonl").read_text().splitlines()]
    (root / "new.txt").write_text("".join(f"{line}\n" for line in lines))
    return root / "out", root / "new.txt"
