"""The set-up of benchmarks/bench_step.py and of the GPU suite: models, points, and the arms that run them.

An arm is one way to run a training step. Every arm of a point starts from the same weights and sees images of the same
size; ours takes uint8 images from memory, gathers and normalises them inside the step, and draws its masks there; the
Hugging Face arms are given one normalised float32 batch that lies on the device, and so are spared a loader.
"""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import honest
import naive
import torch
from torch import Tensor
from transformers import ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from sdfast.config import Config, EngineConfig, ZeroConfig
from sdfast.context import Context
from sdfast.engine.loop import Trainer
from sdfast.modalities.drawn import DrawnImages, DrawnPack
from sdfast.modalities.images.checkpoint import PretrainedMAE, classifier_from_mae, fresh_mae, load_mae, save_classifier
from sdfast.modalities.images.costs import ImageTask
from sdfast.modalities.images.modality import IMAGES
from sdfast.modalities.images.model import ViTEncoder, ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.modalities.images.reader import Normalise
from sdfast.objectives.base import SHORTCUTS, shortcuts
from sdfast.ops.linear.fp32_matmul import float32_products
from sdfast.ranks import Ranks
from sdfast.stages.build import build_stage
from sdfast.stages.graph import Stage
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank, Teacher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, DROPOUT = 10, 0.1
STAGES = ("pretrain", "distill", "finetune")
# EngineConfig's fields that are no way to run a step: everything else is a switch.
NO_SWITCHES = {
    "precision",
    "accumulate",
    "threads",
    "checkpoint_seconds",
    "checkpoint_steps",
    "keep_checkpoints",
    "log_every",
    "tracker",
    "tracker_project",
    "tensorboard",
    "timeout_seconds",
}
Run = Callable[[], Any]


@dataclass(frozen=True)
class Model:
    """Width, depth and heads of the encoder and of the decoder; pixels of an image's side and of a patch's.

    `make` gives another model of transformers than a ViTMAE of these sizes.
    """

    encoder: tuple[int, int, int]
    decoder: tuple[int, int, int]
    image: int = 224
    patch: int = 16
    make: Callable[[], Any] | None = None


MODELS = {
    "ViT-Ti/16": Model((192, 12, 3), (192, 4, 3)),
    "ViT-S/16": Model((384, 12, 6), (256, 8, 8)),
    "ViT-B/16": Model((768, 12, 12), (512, 8, 16)),
    "ViT-L/16": Model((1024, 24, 16), (512, 8, 16)),
    "tiny": Model((32, 2, 2), (16, 1, 2), 32, 8),  # to try the machinery, not to measure
}


@dataclass(frozen=True)
class Point:
    """What is trained: a stage of a model with a batch size on a device, out of `images` images in memory."""

    stage: str
    model: str
    batch: int
    device: str = "cpu"
    images: int = 0

    def __str__(self) -> str:
        return f"{self.stage} {self.model} batch {self.batch}"

    @property
    def rows(self) -> int:
        """Images in memory; one batch when nothing is said."""
        return max(self.batch, self.images)


@dataclass(frozen=True)
class Arm:
    """One way to run a point's step.

    Attributes:
        build: makes the step; everything it needs is allocated there or in its first call.
        flops: matrix-product FLOPs of one image.
        precision: fp32, tf32 or bf16, of the products.
        ours: sdfast's loop, or Hugging Face's modules.
    """

    build: Callable[[], Run]
    flops: float
    precision: str
    ours: bool


@cache
def folder_of(model: str) -> TemporaryDirectory[str]:
    """A Hugging Face folder of a model with new weights."""
    sizes = MODELS[model]
    if sizes.make is not None:
        folder = TemporaryDirectory()
        sizes.make().save_pretrained(folder.name)
        return folder
    (width, depth, heads), (decoder_width, decoder_depth, decoder_heads) = sizes.encoder, sizes.decoder
    torch.manual_seed(0)
    config = ViTMAEConfig(
        image_size=sizes.image,
        patch_size=sizes.patch,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
        norm_pix_loss=True,
    )
    folder = TemporaryDirectory()
    ViTMAEForPreTraining(config).save_pretrained(folder.name)
    return folder


@cache
def _ours_once(model: str) -> PretrainedMAE:
    return load_mae(folder_of(model).name)


@cache
def _teacher_once(model: str) -> ViTEncoder:
    """Other weights than the student's, as in a run."""
    return fresh_mae(_ours_once(model).shape, seed=1).encoder


@cache
def _mae_once(model: str) -> ViTMAEForPreTraining:
    return ViTMAEForPreTraining.from_pretrained(folder_of(model).name, attn_implementation="sdpa")


@cache
def _classifier_once(model: str) -> ViTForImageClassification:
    sizes = MODELS[model]
    with TemporaryDirectory() as folder:
        names = [str(label) for label in range(CLASSES)]
        classifier = classifier_from_mae(copy.deepcopy(_ours_once(model).module), CLASSES, DROPOUT, seed=0)
        save_classifier(classifier, Path(folder), ImageProcessor(sizes.image, sizes.image, MEAN, STD), names, DROPOUT)
        return ViTForImageClassification.from_pretrained(folder, attn_implementation="sdpa")


def hugging_face(point: Point) -> Any:
    """A fresh copy of the Hugging Face model of the point's stage, on its device."""
    once = _classifier_once if point.stage == "finetune" else _mae_once
    return copy.deepcopy(once(point.model)).to(point.device)


@cache
def images_of(side: int, count: int, device: str) -> Tensor:
    """[count, side, side, 3] uint8."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator, device=device)


def pixels_of(point: Point) -> Tensor:
    """[B, 3, side, side] float32, normalised: the first batch."""
    images = images_of(MODELS[point.model].image, point.rows, point.device)[: point.batch]
    return Normalise(MEAN, STD).to(point.device)(images)


@cache
def targets_of(model: str, count: int, device: str) -> Tensor:
    """[count, D] float32: the teacher's CLS tokens, which every arm with a cache is given."""
    teacher = LiveTeacher(_teacher_once(model), "cls").to(device)
    normalise = Normalise(MEAN, STD).to(device)
    parts = images_of(MODELS[model].image, count, device).split(64)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return torch.cat([teacher(normalise(part)).float() for part in parts])


def labels_of(count: int, device: str) -> Tensor:
    """[count] int64."""
    return torch.arange(count, device=device) % CLASSES


def shape_of(model: str) -> ViTShape:
    """The sizes, as sdfast writes them."""
    return _ours_once(model).shape


def flops_of(point: Point, teacher: Literal["bank", "live"], engine: EngineConfig | None = None) -> float:
    """FLOPs of one image in a step; with `engine`, what its shortcuts leave out is not counted."""
    on = dict.fromkeys(SHORTCUTS, False) if engine is None else asdict(shortcuts(engine))
    stage: Any = point.stage
    config = Config.model_validate({"engine": on, "teacher": {"mode": teacher}})
    return ImageTask(stage, config, shape_of(point.model), CLASSES).flops().step


def naive_arm(point: Point, tf32: bool = False) -> Arm:
    """benchmarks/naive.py: the step as the paper's authors ran it."""

    def build() -> Run:
        pixels, model = pixels_of(point), hugging_face(point)
        if point.stage == "finetune":
            labels, finetuning = labels_of(point.batch, point.device), naive.NaiveFinetuning(model)
            return lambda: finetuning.step(pixels, labels)
        if point.stage == "distill":
            distillation = naive.NaiveDistillation(model, hugging_face(point))
            return lambda: distillation.step(pixels)
        pretraining = naive.NaivePretraining(model)
        return lambda: pretraining.step(pixels)

    return Arm(build, flops_of(point, "live"), "tf32" if tf32 else "fp32", ours=False)


def honest_arm(point: Point, speed: honest.Speed) -> Arm:
    """benchmarks/honest.py: the same modules, run with care, against cached targets."""

    def build() -> Run:
        pixels, model = pixels_of(point), hugging_face(point)
        if point.stage == "finetune":
            labels, finetuning = labels_of(point.batch, point.device), honest.HonestFinetuning(model, speed=speed)
            return lambda: finetuning.step(pixels, labels)
        if point.stage == "distill":
            targets = targets_of(point.model, point.rows, point.device)
            rows, distillation = torch.arange(point.batch, device=point.device), honest.HonestDistillation
            step = distillation(model, targets, speed=speed).step
            return lambda: step(pixels, rows)
        pretraining = honest.HonestPretraining(model, speed=speed)
        return lambda: pretraining.step(pixels)

    return Arm(build, flops_of(point, "bank"), "bf16" if speed.bf16 else "fp32", ours=False)


@dataclass(frozen=True)
class Ours:
    """How sdfast runs a step: engine settings that differ from the defaults, where targets come from, a spared loader.

    With `fixed_pixels` the batch's images are gathered once, before the step: what is saved is the wait for them.
    `finetune` holds settings of fine-tuning that differ, such as its regularizer.
    """

    engine: dict[str, Any] = field(default_factory=dict)
    teacher: Literal["bank", "live"] = "bank"
    fixed_pixels: bool = False
    finetune: dict[str, Any] = field(default_factory=dict)


def trainer_of(
    point: Point,
    ours: Ours,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    teacher: Teacher | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    zero: ZeroConfig = ZeroConfig(),  # noqa: B008 (frozen)
) -> Trainer:
    """A run's own trainer over the point's images, ready for its first step; `teacher` replaces what `ours` names."""
    device = torch.device(point.device)
    sections: dict[str, Any] = {stage: {"batch_size": point.batch} for stage in STAGES}
    sections["finetune"] |= ours.finetune
    config = Config.model_validate({**sections, "engine": ours.engine, "teacher": {"mode": ours.teacher}, "zero": zero})
    once = _ours_once(point.model)
    model = replace(once, module=copy.deepcopy(once.module).to(dtype))
    images = images_of(MODELS[point.model].image, point.rows, point.device)
    pack = DrawnPack(DrawnImages(point.rows, CLASSES, images.cpu().numpy()))
    context = Context(config.resolved("images"), IMAGES, device, ranks, model, pack)
    if point.stage == "distill" and teacher is None:
        if ours.teacher == "live":
            teacher = LiveTeacher(_teacher_once(point.model), "cls").to(point.device, dtype)
        else:
            targets = targets_of(point.model, point.rows, point.device).to(dtype)
            teacher = ResidentBank(targets, None, torch.arange(point.rows)[None])
    first = images[: point.batch]
    stage: Any = point.stage
    trainer = build_stage(
        context,
        Stage(stage, stage, seed=0 if stage == "finetune" else None),
        model.module,
        directory,
        teacher=teacher,
        read=(lambda rows: first) if ours.fixed_pixels else None,
    )
    trainer.objective.module.train()
    return trainer


def sdfast_arm(point: Point, directory: Path, ours: Ours) -> Arm:
    """Steps of sdfast's loop, one after the other: batches, masks and rates move on as in a run."""
    engine = EngineConfig(**ours.engine)

    def build() -> Run:
        trainer = trainer_of(point, ours, directory)

        def step() -> Any:
            with float32_products(engine.fp32_products):
                parts = trainer.step()
            return parts

        return step

    precision = engine.precision
    if precision == "auto":
        precision = "bf16" if point.device == "cuda" else "fp32"
    return Arm(build, flops_of(point, ours.teacher, engine), precision, ours=True)


def switches() -> dict[str, list[Any]]:
    """EngineConfig's ways to run a step: name, and the values other than the default (`auto` is no value)."""
    found = {}
    for name, info in EngineConfig.model_fields.items():
        if name in NO_SWITCHES:
            continue
        values: list[Any] = []
        for kind in typing.get_args(info.annotation) if is_union(info.annotation) else (info.annotation,):
            values += (True, False) if kind is bool else typing.get_args(kind)
        found[name] = [value for value in values if value not in (info.default, "auto")]
    return {name: values for name, values in found.items() if values}


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def shortcuts_off() -> dict[str, dict[str, Any]]:
    """For each shortcut, by the name of the arm: the settings with it alone switched off."""
    return {f"sdfast without {name}": {name: False} for name in SHORTCUTS}


def plain() -> dict[str, Any]:
    """The settings with everything off that makes a step fast, and the reference attention."""
    return {**dict.fromkeys((*SHORTCUTS, "compile", "cuda_graph"), False), "attention": "reference"}
