"""Times the steps of a configured run on random images, on this machine: what a stage costs, and what would save."""

from __future__ import annotations

import contextlib
import copy
import gc
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sdfast import __version__
from sdfast.config import Config, ZeroConfig
from sdfast.context import Context
from sdfast.costs.plan import setup_of
from sdfast.costs.resident import PeakGrowth
from sdfast.costs.workload import workload
from sdfast.costs.zero_memory import device_memory
from sdfast.engine.loop import Trainer
from sdfast.engine.machine import (
    cpu_settings,
    fp32_matmul,
    freed_pages_kept,
    matmul_dtype,
)
from sdfast.engine.peak import matmul_peak, peak_name
from sdfast.errors import RunError
from sdfast.modalities.drawn import DrawnImages, DrawnPack
from sdfast.modalities.images.checkpoint import PretrainedMAE
from sdfast.modalities.images.costs import ImageTask
from sdfast.modalities.images.modality import IMAGES
from sdfast.modalities.images.model import MaskedAutoencoder
from sdfast.objectives.base import SHORTCUTS
from sdfast.objectives.choose import matches_features
from sdfast.ranks import Ranks
from sdfast.stages.build import build_stage
from sdfast.stages.graph import Stage
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.residency import free_memory
from sdfast.teacher.targets import ResidentBank, Teacher

StageName = Literal["pretrain", "distill", "finetune"]
STAGES: tuple[StageName, ...] = ("pretrain", "distill", "finetune")
_CLASSES = 10
_SECONDS = 30.0  # that all rows together may take, about
_STEPS = (3, 9)  # timed in a row, at least and at most
_ENOUGH = 100  # steps of a stage, so that the rate falls to nothing in none that is timed
_SHARE = 0.8  # of the free memory that a row may need
_EXPECTED_PEAK_SHARE = 0.4  # to guess which batches can be timed at all


@dataclass(frozen=True)
class Variant:
    """One way to run a stage: its configuration, what a person calls it, and whether it is the configured one."""

    stage: StageName
    name: str
    config: Config
    configured: bool = False


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        stage: its name.
        variant: how it was run; "+ key" adds a shortcut to the row's predecessor.
        batch: images per step.
        seconds: of a step, the median.
        steps: how many were timed.
        img_per_s, tflops: images and TFLOP a second.
        peak_share: 0 to 1, of the measured peak.
        gflop_per_image: of one image's step, forward and backward.
        memory: largest growth while the stage was set up and run, bytes; None where the system does not tell.
        memory_predicted: bytes of tensors, by `sdfast.costs.measure`.
        configured: whether the run would train in this very way.
    """

    stage: StageName
    variant: str
    batch: int
    seconds: float
    steps: int
    img_per_s: float
    tflops: float
    peak_share: float
    gflop_per_image: float
    memory: int | None
    memory_predicted: int
    configured: bool


@dataclass(frozen=True)
class Planned:
    """What a stage of the run would take, at the rate of its largest measured batch up to its own."""

    stage: StageName
    steps: int
    batch: int
    seconds: float
    measured_batch: int


@dataclass
class Report:
    """A whole bench.

    Attributes:
        machine: names, versions and settings, for people.
        peak_tflops: the measured rate of a matrix product in the run's precision.
        rows: measurements.
        planned: what the configured run would take.
    """

    machine: dict[str, str]
    peak_tflops: float
    rows: list[Row] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)


def bench(
    config: Config,
    model: PretrainedMAE,
    device: torch.device,
    batches: Sequence[int] = (),
    say: Callable[[str], object] = lambda text: None,
) -> Report:
    """Measure every stage, every variant, a few batch sizes.

    Args:
        config: of the run.
        model: that it would train.
        device: where.
        batches: sizes to measure; by default a quarter of each stage's own and its own, on a GPU four times as well. A
            size is halved until a step is expected to take seconds, not minutes, and to fit into memory.
        say: told what is measured next.

    Raises:
        RunError: memory ran out.
    """
    with cpu_settings(config.engine, device), fp32_matmul(config.engine.precision, device):
        return _report(config, model, device, batches, say)


def _report(
    config: Config,
    model: PretrainedMAE,
    device: torch.device,
    batches: Sequence[int],
    say: Callable[[str], object],
) -> Report:
    """Measure all variants at all batch sizes, with torch set as a run sets it; `say` is told what begins."""
    dtype = matmul_dtype(config.engine.precision, device)
    say("the peak of a matrix product")
    peak = matmul_peak(device, dtype)
    report = Report(_machine(device, dtype), peak / 1e12)
    work = []
    for variant in variants(config, model):
        own = getattr(config, variant.stage).batch_size
        wanted = batches or [max(own // 4, 1), own, *([4 * own] if device.type == "cuda" else [])]
        sizes = {_feasible(variant, model, device, batch, peak) for batch in wanted}
        work += [(variant, size) for size in sorted(sizes)]
    if device.type == "cpu":  # the first step of a process brings in libraries, which are no growth of the others
        _measure(work[0][0], model, device, 1, peak, 0.0)
    for variant, size in work:
        say(f"{variant.stage}, {variant.name}, batch {size}")
        report.rows.append(_measure(variant, model, device, size, peak, _SECONDS / len(work)))
    again = matmul_peak(device, dtype, anew=True)
    if again > peak:  # something else ran at the beginning
        report.peak_tflops = again / 1e12
        report.rows = [replace(row, peak_share=row.peak_share * peak / again) for row in report.rows]
    report.planned = [_planned(stage, config, report.rows) for stage in STAGES]
    return report


def variants(config: Config, model: PretrainedMAE) -> list[Variant]:
    """The stages as they would run with no shortcut, then with one more at a time; the configured ones are among them.

    A shortcut that changes no stage's arithmetic is left out there.
    """
    found: list[Variant] = []
    for stage in STAGES:
        ways: list[tuple[str, Literal["live", "bank"]]] = [("plain", config.teacher.mode)]
        if stage == "distill" and config.distill.weight and matches_features(config):
            ways = [("live", "live"), ("bank", "bank")]
        off = dict.fromkeys(SHORTCUTS, False)
        for name, mode in ways:
            found.append(Variant(stage, name, _changed(config, mode, off)))
        on = dict(off)
        for shortcut in off:
            on[shortcut] = True
            candidate = Variant(stage, f"+ {shortcut}", _changed(config, ways[-1][1], on))
            if _flops(candidate, model) != _flops(found[-1], model):
                found.append(candidate)
        own = _flops(Variant(stage, "", config), model)
        if own not in [_flops(each, model) for each in found]:
            found.append(Variant(stage, "as configured", config))
        found = [replace(each, configured=each.configured or _flops(each, model) == own) for each in found]
    return found


def _changed(config: Config, mode: Literal["live", "bank"], switches: dict[str, bool]) -> Config:
    engine = config.engine.model_copy(update=switches)
    return config.model_copy(
        update={"engine": engine, "teacher": config.teacher.model_copy(update={"mode": mode})},
    )


def _task(variant: Variant, model: PretrainedMAE) -> ImageTask:
    return ImageTask(variant.stage, variant.config, model.shape, _CLASSES)


def _flops(variant: Variant, model: PretrainedMAE) -> tuple[StageName, int]:
    return variant.stage, round(_task(variant, model).flops().step)


def _feasible(variant: Variant, model: PretrainedMAE, device: torch.device, batch: int, peak: float) -> int:
    """The batch, halved until a step is expected to end soon and to fit."""
    longest, room = _SECONDS / 10, _SHARE * free_memory(device)
    while batch > 1 and (
        _flops(variant, model)[1] * batch > longest * _EXPECTED_PEAK_SHARE * peak
        or _predicted_memory(variant, model, device, batch) > room
    ):
        batch //= 2
    return batch


def _measure(
    variant: Variant, model: PretrainedMAE, device: torch.device, batch: int, peak: float, seconds: float
) -> Row:
    growth = _Growth(device)
    try:
        with tempfile.TemporaryDirectory() as folder, freed_pages_kept(device.type):
            trainer = _trainer(variant, model, device, batch, Path(folder))
            times = _timed(trainer.step, device, seconds, warm_up=5 if device.type == "cuda" else 1)
            memory = growth.bytes()
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"{variant.stage} ({variant.name}) with {batch} images does not fit into the memory of {device}; give a"
            " smaller --batch."
        ) from error
    median, (_, flops) = statistics.median(times), _flops(variant, model)
    rate = batch / median
    return Row(
        variant.stage,
        variant.name,
        batch,
        seconds=median,
        steps=len(times),
        img_per_s=rate,
        tflops=rate * flops / 1e12,
        peak_share=rate * flops / peak,
        gflop_per_image=flops / 1e9,
        memory=memory,
        memory_predicted=_predicted_memory(variant, model, device, batch),
        configured=variant.configured,
    )


def _timed(step: Callable[[], object], device: torch.device, seconds: float, warm_up: int) -> list[float]:
    """Seconds of each of some steps, within about `seconds` in all."""

    def once() -> float:
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    spent = sum(once() for _ in range(warm_up))
    least, most = _STEPS
    times: list[float] = []
    while len(times) < least or (len(times) < most and spent < seconds):
        times.append(once())
        spent += times[-1]
    return times


def _trainer(variant: Variant, model: PretrainedMAE, device: torch.device, batch: int, folder: Path) -> Trainer:
    """A run's own trainer of the stage, over `batch` drawn images, in one process."""
    stage, shape = variant.stage, model.shape
    given = getattr(variant.config, stage)
    section = given.model_copy(update={"batch_size": batch, "steps": max(given.steps, _ENOUGH)})
    config = variant.config.model_copy(update={stage: section, "zero": ZeroConfig()})
    pixels = config.data.pixels or "uint8"
    pack = DrawnPack(DrawnImages.of(batch, shape.image_size, shape.channels, _CLASSES, pixels))
    context = Context(config, IMAGES, device, Ranks(), model, pack)
    teacher = _teacher(variant, model, device, batch) if stage == "distill" and config.distill.weight else None
    trainer = build_stage(context, Stage(stage, stage), model.module, folder, teacher=teacher)
    trainer.objective.module.train()
    return trainer


def _teacher(variant: Variant, model: PretrainedMAE, device: torch.device, batch: int) -> Teacher | MaskedAutoencoder:
    config, shape = variant.config, model.shape
    if not matches_features(config):
        return copy.deepcopy(model.module).to(device)
    if config.teacher.mode == "live":
        return LiveTeacher(model.module.encoder, config.distill.tokens, config.distill.layer).to(device)
    tokens = {"cls": (), "patch": (shape.patches,), "all": (1 + shape.patches,)}[config.distill.tokens]
    features = torch.randn(batch, *tokens, shape.encoder.width, generator=torch.Generator().manual_seed(1))
    scale = None
    if config.teacher.dtype == "int8":
        features, scale = features * 32, torch.full(features.shape[:-1], 1 / 32).to(device)
    features = features.clamp(-127, 127).to(getattr(torch, config.teacher.dtype))
    return ResidentBank(features.to(device), scale, torch.arange(batch)[None])


def _predicted_memory(variant: Variant, model: PretrainedMAE, device: torch.device, batch: int) -> int:
    config, task = variant.config, _task(variant, model)
    work, setup = workload(task), replace(setup_of(task, device, 1), zero=0, offload="none")
    kept = work.features * batch * getattr(torch, config.teacher.dtype).itemsize
    if task.stage == "finetune" and config.finetune.regularizer in ("recadam", "mars"):  # they keep the start
        kept = sum(parameter.nbytes for parameter in model.module.encoder.parameters())
    return device_memory(work, replace(setup, accumulate=min(setup.accumulate, batch)), batch, bank=kept).total


class _Growth:
    """Memory taken since this was made, at the worst moment."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self.device, self.start = device, 0
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
        else:
            self.resident = PeakGrowth()

    def bytes(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.start
        return self.resident.bytes()


def _planned(stage: StageName, config: Config, rows: Sequence[Row]) -> Planned:
    section = getattr(config, stage)
    own = [row for row in rows if row.stage == stage and row.configured]
    fitting = [row for row in own if row.batch <= section.batch_size] or own
    nearest = max(fitting, key=lambda row: row.batch)
    images = section.steps * section.batch_size
    return Planned(stage, section.steps, section.batch_size, images / nearest.img_per_s, nearest.batch)


def _machine(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    names = {"sdfast": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        names["device"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        names["device"] = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
        names["threads"] = str(torch.get_num_threads())
    return {**names, "precision": peak_name(device, dtype)}


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
