"""What the commands of the pages find in their folder: small models by the hub's names, photos, texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pipeline_fixtures import write_model
from text_fixtures import write_text_model, write_texts


def put_in_place(name: str) -> None:
    """Make a file or folder here, under the name that a page calls it."""
    path = Path(name)
    if name.startswith("facebook/"):
        write_model(path)
    elif name == "roberta-base":
        write_text_model(path)
    elif name == "chemprot/":
        write_texts(path)
    elif name == "papers/":
        path.mkdir()
        rows = [json.loads(line) for line in (write_texts(Path("others")) / "train.jsonl").read_text().splitlines()]
        (path / "papers.txt").write_text("".join(f"{row['text']} again\n" for row in rows[:6]))
    elif name == "archive/":
        pictures(path, 12, 200)
    elif name == "scans.csv":
        pictures(Path("scans"), 24, 0)
        rows = [f"scans/{row:03}.jpg,{'good' if row % 2 else 'bad'},patient{row // 4}" for row in range(24)]
        path.write_text("\n".join(["file_name,label,patient_id", *rows]))
    elif name in ("photos/", "labelled/"):
        for number, folder in enumerate(("train/sparrow", "train/wren", "test/sparrow", "test/wren")):
            pictures(path / folder, 12, 20 * number)
    else:
        raise ValueError(f"{name}: nobody has said what that is")


def pictures(folder: Path, count: int, seed: int) -> None:
    """Noise, another in each picture."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg")
