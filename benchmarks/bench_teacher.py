"""The teacher's bank: what building it costs beside one bare teacher epoch, what a step gains, what opening it takes.

Each comparison runs its two arms in turn, in one process; `extra_info` holds the other arm's seconds and the ratio of
the medians. Both arms compute in float32 without torch.compile. `SDFAST_BENCH_IMAGES` sets how many images are built.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdfast.config import EngineConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.data.rows import row_digest
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.engine.teacher_bank import bank_targets
from sdfast.modalities.images.checkpoint import fresh_mae
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.objectives import MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.images.teacher import ImageRecipe
from sdfast.modalities.images.transform import Transform
from sdfast.models.blocks import TransformerShape
from sdfast.objectives.masked import MaskedTraining
from sdfast.teacher.bank import Bank, open_bank
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.live import LiveTeacher

IMAGES = int(os.environ.get("SDFAST_BENCH_IMAGES", "128"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = ViTShape((224, 224), 16, 3, TransformerShape(384, 12, 6, 1536), TransformerShape(256, 8, 8, 1024))
# As wide as ViT-B with one small block: the bank is as large, and there is hardly a teacher to wait for.
WIDE = ViTShape((16, 16), 16, 3, TransformerShape(768, 1, 12, 768), TransformerShape(8, 0, 1, 8))
CUB_ROWS = 5994


def recipe_of(shape: ViTShape, count: int, tokens: Any = "cls") -> ImageRecipe:
    height, width = shape.image_size
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    transform = Transform(height, width)
    return ImageRecipe(
        encoder=fresh_mae(shape, 1).encoder,
        shape=shape,
        images=images,
        digests=np.frombuffer(b"".join(map(row_digest, images)), np.uint8).reshape(-1, 32),
        rows=np.arange(count),
        transform=transform,
        normalise=Normalise(transform.mean, transform.std).to(DEVICE),
        tokens=tokens,
        dtype="float32",
        device=DEVICE,
    )


def compare(benchmark: Any, arm: Callable[[], Any], other: Callable[[], Any], other_name: str, rounds: int) -> None:
    """Benchmark `arm`, with `other` timed before each of its rounds."""
    seconds: list[float] = []

    def timed_other() -> None:
        started = time.perf_counter()
        other()
        seconds.append(time.perf_counter() - started)

    benchmark.pedantic(arm, setup=timed_other, rounds=rounds, warmup_rounds=1)
    median = statistics.median(seconds[1:])
    benchmark.extra_info.update(
        {other_name: median, "ratio": benchmark.stats.stats.median / median, "threads": torch.get_num_threads()}
    )


def synchronised(function: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> None:
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return call


def test_build(benchmark: Any, tmp_path: Path) -> None:
    """A whole build, checks and fsync included, against the same batches through the same teacher and nothing else."""
    recipe = recipe_of(SMALL, IMAGES)
    teacher, normalise = LiveTeacher(recipe.encoder, "cls").to(DEVICE), recipe.normalise
    directory = tmp_path / "teacher"

    def bare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        for batch in torch.from_numpy(recipe.images).split(64):
            teacher(normalise(batch.to(DEVICE))).cpu()

    benchmark.group = f"build, ViT-S/16, {IMAGES} images, float32"
    compare(benchmark, lambda: prepare_bank(directory, recipe), bare, "bare epoch", rounds=5)


@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_step(benchmark: Any, tmp_path: Path, tokens: Any) -> None:
    """A step of distill against the bank, and with the teacher beside the student."""
    batch = 8 if DEVICE.type == "cpu" else 64
    recipe = recipe_of(SMALL, batch, tokens)
    images = torch.from_numpy(recipe.images).to(DEVICE)
    banked = bank_targets(prepare_bank(tmp_path / "teacher", recipe), recipe)
    live = LiveTeacher(recipe.encoder, tokens).to(DEVICE)

    def step(teacher: Any) -> Callable[[], Any]:
        module = fresh_mae(SMALL, 0).to(DEVICE)
        masked = MaskedImages(recipe.normalise, PretrainConfig())
        objective = MaskedTraining(module, masked, 0, teacher, tokens)
        order = BatchOrder(torch.arange(batch), batch, seed=0)
        trainer = Trainer(
            "bench",
            objective,
            PretrainConfig(),
            EngineConfig(),
            TrainingData(order, lambda rows: images[rows]),
            StageFolder(tmp_path, {}),
        )
        return synchronised(trainer.step)

    benchmark.group = f"step, ViT-S/16, batch {batch}, {tokens}, float32"
    compare(benchmark, step(banked), step(live), "live", rounds=7)


def test_open(benchmark: Any, tmp_path: Path) -> None:
    """Open, check and load a bank as large as CUB's (5,994 CLS rows of 768 float32); the identity is at hand."""
    recipe = recipe_of(WIDE, CUB_ROWS)
    prepare_bank(tmp_path / "teacher", recipe)
    benchmark.group = f"open and check {CUB_ROWS} rows"
    benchmark.pedantic(lambda: open_bank(tmp_path / "teacher", recipe.identity).load(), rounds=20, warmup_rounds=2)


class Invented(ImageRecipe):
    """Features without a teacher: what is timed is the disk."""

    def features(self, images: np.ndarray, entries: np.ndarray) -> torch.Tensor:
        """[b, N, D] float32."""
        return torch.randn(len(images), *self.feature_shape)


def forget(bank: Bank) -> None:
    """Drop the data files from the page cache."""
    for path in bank.directory.glob("features-*.bin"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_stream(benchmark: Any, tmp_path: Path) -> None:
    """All tokens of shuffled batches, checked, against reading the same file from end to end; both from the disk."""
    count = int(os.environ.get("SDFAST_BENCH_STREAM_ROWS", "3072"))
    shape = replace(WIDE, image_size=(224, 224), encoder=replace(WIDE.encoder, width=768))
    pictures = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    plain = recipe_of(WIDE, 1)
    digests = np.frombuffer(b"".join(map(row_digest, pictures)), np.uint8).reshape(-1, 32)
    encoder = fresh_mae(shape, 1).encoder
    changes = {"shape": shape, "images": pictures, "digests": digests, "encoder": encoder, "rows": np.arange(count)}
    recipe = Invented(**{**vars(plain), **changes, "tokens": "all", "dtype": "bfloat16"})
    bank = prepare_bank(tmp_path / "teacher", recipe)
    files = sorted(bank.directory.glob("features-*.bin"))

    def sequential() -> None:
        forget(bank)
        buffer = bytearray(8 << 20)
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        forget(bank)

    teacher = bank_targets(bank, recipe, "stream")
    nothing, order = torch.empty(0), torch.randperm(count)

    def shuffled() -> None:
        batches = order.split(64)
        for rows, following in zip(batches, (*batches[1:], batches[-1]), strict=True):  # as the loop announces them
            teacher.announce(rows, 0)
            teacher.announce(following, 0)
            teacher.targets(nothing, rows, 0)

    benchmark.group = f"read {bank.bytes / 1e9:.2f} GB of all tokens, batches of 64"
    compare(benchmark, shuffled, sequential, "sequential", rounds=5)
    benchmark.extra_info["share of the sequential bandwidth"] = 1 / benchmark.extra_info["ratio"]


def test_wait(benchmark: Any, tmp_path: Path) -> None:
    """Steps of distill with all tokens streamed, no page of the bank in memory: how long `targets` blocks them."""
    batch = 8 if DEVICE.type == "cpu" else 64
    recipe = Invented(**{**vars(recipe_of(SMALL, 16 * batch)), "tokens": "all"})
    bank = prepare_bank(tmp_path / "teacher", recipe)
    images = torch.from_numpy(recipe.images).to(DEVICE)
    teacher = bank_targets(bank, recipe, "stream")
    waits: list[float] = []
    fetched = teacher.targets

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        found = fetched(*arguments)
        waits.append(time.perf_counter() - started)
        return found

    teacher.targets = timed  # type: ignore[method-assign]
    masked = MaskedImages(recipe.normalise, PretrainConfig())
    objective = MaskedTraining(fresh_mae(SMALL, 0).to(DEVICE), masked, 0, teacher, "all")
    order = BatchOrder(torch.arange(len(images)), batch, seed=0)
    trainer = Trainer(
        "bench",
        objective,
        PretrainConfig(),
        EngineConfig(),
        TrainingData(order, lambda rows: images[rows]),
        StageFolder(tmp_path, {}),
    )

    def step() -> None:
        trainer.step()

    benchmark.group = f"wait of a step, ViT-S/16, batch {batch}, all tokens streamed, float32"
    benchmark.pedantic(synchronised(step), setup=lambda: forget(bank), rounds=8, warmup_rounds=1)
    benchmark.extra_info["share of the step spent waiting"] = sum(waits[1:]) / benchmark.stats.stats.total
