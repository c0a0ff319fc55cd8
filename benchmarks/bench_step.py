"""Training steps of sdfast against the naive step (benchmarks/naive.py), stage by stage, in one run.

Images are uint8 in memory for ours (gathered and normalised inside the step) and normalised float32 for the naive step,
which is thereby spared its loader. `python benchmarks/ratios.py FILE` turns the JSON of a run into a table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import naive
import pytest
import torch
from transformers import ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

from sdfast.config import EngineConfig, FinetuneConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import Trainer
from sdfast.models.checkpoint import classifier_from_mae, load_mae, save_classifier
from sdfast.models.processor import ImageProcessor
from sdfast.objectives.base import Normalise
from sdfast.objectives.classification import Classification
from sdfast.objectives.pretraining import FurtherPretraining
from sdfast.teacher.live import LiveTeacher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# name: encoder width, depth, heads; decoder width, depth, heads; batch size
MODELS = {
    "ViT-Ti/16": ((192, 12, 3), (192, 4, 3), 16),
    "ViT-S/16": ((384, 12, 6), (256, 8, 8), 8),
    "ViT-B/16": ((768, 12, 12), (512, 8, 16), 4),
}
ROUNDS = {"ViT-Ti/16": 5, "ViT-S/16": 5, "ViT-B/16": 3}


@cache
def folder_of(model: str) -> TemporaryDirectory[str]:
    (width, depth, heads), (decoder_width, decoder_depth, decoder_heads), _ = MODELS[model]
    torch.manual_seed(0)
    config = ViTMAEConfig(
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


def images_of(batch: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def naive_step(stage: str, model: str) -> Callable[[], Any]:
    batch = MODELS[model][2]
    pixels = Normalise(MEAN, STD)(images_of(batch))
    load = ViTMAEForPreTraining.from_pretrained
    start = folder_of(model).name
    if stage == "finetune":
        classifier = classifier_from_mae(load_mae(start).module, 10, 0.1, seed=0)
        with TemporaryDirectory() as folder:
            names = [str(label) for label in range(10)]
            save_classifier(classifier, Path(folder), ImageProcessor(224, 224, MEAN, STD), names, 0.1)
            step = naive.NaiveFinetuning(ViTForImageClassification.from_pretrained(folder))
        return lambda: step.step(pixels, torch.arange(batch) % 10)
    if stage == "distill":
        distillation = naive.NaiveDistillation(load(start), load(start))
        return lambda: distillation.step(pixels)
    pretraining = naive.NaivePretraining(load(start))
    return lambda: pretraining.step(pixels)


def sdfast_step(stage: str, model: str, directory: Path) -> Callable[[], Any]:
    batch = MODELS[model][2]
    images = images_of(batch)
    normalise = Normalise(MEAN, STD)
    module = load_mae(folder_of(model).name).module
    config: PretrainConfig | FinetuneConfig = PretrainConfig(batch_size=batch)
    if stage == "finetune":
        config = FinetuneConfig(batch_size=batch)
        classifier = classifier_from_mae(module, 10, 0.1, seed=0)
        objective: Any = Classification(classifier, normalise, torch.arange(batch) % 10, 0.5, seed=0)
    else:
        teacher = LiveTeacher(module.encoder, "cls") if stage == "distill" else None
        objective = FurtherPretraining(module, normalise, PretrainConfig(), 0, teacher)
    order = BatchOrder(torch.arange(batch), batch, seed=0)
    trainer = Trainer(stage, objective, config, EngineConfig(), order, lambda rows: images[rows], directory, {})
    return trainer._one_step


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", ["pretrain", "distill", "finetune"])
@pytest.mark.parametrize("who", ["naive", "sdfast"])
def test_step(benchmark: Any, who: str, stage: str, model: str, tmp_path: Path) -> None:
    step = naive_step(stage, model) if who == "naive" else sdfast_step(stage, model, tmp_path)
    batch = MODELS[model][2]
    benchmark.group = f"{stage} {model} batch {batch} float32"
    benchmark.extra_info.update(who=who, stage=stage, model=model, batch=batch, threads=torch.get_num_threads())
    benchmark.pedantic(step, rounds=ROUNDS[model], warmup_rounds=1)
