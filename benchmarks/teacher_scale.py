"""A bank as large as the disk allows, of invented features: what building, opening and streaming cost at scale.

    python benchmarks/teacher_scale.py FOLDER --rows 100000                     # all 197 tokens of ViT-B/16 in bfloat16
    python benchmarks/teacher_scale.py FOLDER --rows 1281167 --tokens cls       # as many rows as ImageNet has

There is no teacher, and the images are of 4 x 4 pixels: what is timed is everything else, from the features in memory
to the published bank. FOLDER gets the bank, which is deleted at the end. Prints one line of JSON and one of Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdfast.data.rows import row_digest
from sdfast.engine.teacher_bank import bank_targets, build_or_open
from sdfast.modalities.images.checkpoint import fresh_mae
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.images.teacher import ImageRecipe
from sdfast.modalities.images.transform import Transform
from sdfast.models.blocks import TransformerShape
from sdfast.teacher.bank import Bank, open_bank

SHAPE = ViTShape((224, 224), 16, 3, TransformerShape(768, 1, 12, 768), TransformerShape(8, 0, 1, 8))
BATCH = 64


class Invented(ImageRecipe):
    """Features without a teacher, another for each row."""

    def features(self, images: np.ndarray, entries: np.ndarray) -> torch.Tensor:
        """[b, N, D] or [b, D] float32."""
        if not hasattr(self, "noise"):
            object.__setattr__(self, "noise", torch.randn(BATCH, *self.feature_shape))
        step = torch.from_numpy(entries).float().view(-1, *(1 for _ in self.feature_shape))
        return self.noise[: len(entries)] + step / 1e4  # type: ignore[attr-defined]


def recipe_of(rows: int, tokens: Any, dtype: str) -> ImageRecipe:
    pictures = np.random.default_rng(0).integers(0, 256, (rows, 4, 4, 3), dtype=np.uint8)
    transform = Transform(224, 224)
    return Invented(
        encoder=fresh_mae(SHAPE, 1).encoder,
        shape=SHAPE,
        images=pictures,
        digests=np.frombuffer(b"".join(map(row_digest, pictures)), np.uint8).reshape(-1, 32),
        rows=np.arange(rows),
        transform=transform,
        normalise=Normalise(transform.mean, transform.std),
        tokens=tokens,
        dtype=dtype,
        device=torch.device("cpu"),
    )


def seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def forget(bank: Bank) -> None:
    """Drop the data files from the page cache."""
    for path in bank.directory.glob("*-*.bin"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sequential(bank: Bank, size: int) -> float:
    """Bytes a second of reading the first `size` bytes of the data files, one after the other."""
    forget(bank)
    buffer, left, started = bytearray(8 << 20), size, time.perf_counter()
    for path in sorted(bank.directory.glob("features-*.bin")):
        with open(path, "rb", buffering=0) as file:
            while left > 0 and (count := file.readinto(buffer)):
                left -= count
    return (size - left) / (time.perf_counter() - started)


def streamed(bank: Bank, teacher: Any, rows: torch.Tensor) -> float:
    """Bytes a second of shuffled batches, checked, each announced while the one before is used."""
    forget(bank)
    batches, started = rows.split(BATCH), time.perf_counter()
    for now, following in zip(batches, (*batches[1:], batches[-1]), strict=True):
        teacher.announce(now, 0)
        teacher.announce(following, 0)
        teacher.targets(torch.empty(0), now, 0)
    return len(rows) * sum(bank.layout.streams.values()) / (time.perf_counter() - started)


def measure(folder: Path, rows: int, tokens: str, dtype: str, read_bytes: int) -> dict[str, Any]:
    recipe, directory = recipe_of(rows, tokens, dtype), folder / "teacher"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = seconds(lambda: recipe.identity)
    build = seconds(lambda: build_or_open(directory, recipe))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    opened = [seconds(lambda: open_bank(directory, recipe.identity)) for _ in range(3)]
    bank = open_bank(directory, recipe.identity)
    looked_up = seconds(lambda: recipe.bank_rows(bank))
    teacher = bank_targets(bank, recipe, "stream")
    chosen = torch.randperm(rows)[: max(BATCH, read_bytes // bank.layout.row_bytes) // BATCH * BATCH]
    pairs = [(sequential(bank, read_bytes), streamed(bank, teacher, chosen)) for _ in range(3)]
    return {
        "rows": rows,
        "tokens": tokens,
        "dtype": dtype,
        "gigabytes": bank.bytes / 1e9,
        "data_files": bank.layout.shards,
        "build_seconds": build,
        "build_gb_per_s": bank.bytes / 1e9 / build,
        "identity_seconds": index,
        "open_seconds": statistics.median(opened),
        "find_rows_seconds": looked_up,
        "sequential_gb_per_s": statistics.median(pair[0] for pair in pairs) / 1e9,
        "streamed_gb_per_s": statistics.median(pair[1] for pair in pairs) / 1e9,
        "read_gigabytes": read_bytes / 1e9,
        "rss_before_mb": before / 1e3,
        "rss_peak_of_build_mb": peak / 1e3,
        "rss_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tokens", choices=["cls", "patch", "all"], default="all")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--read", type=float, default=6.0, help="GB read in each round of the two readers")
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    try:
        found = measure(given.folder, given.rows, given.tokens, given.dtype, int(given.read * 1e9))
    finally:
        shutil.rmtree(given.folder)
    print(json.dumps(found))
    print(
        "| " + " | ".join(f"{value:.4g}" if isinstance(value, float) else f"{value}" for value in found.values()) + " |"
    )


if __name__ == "__main__":
    main()
