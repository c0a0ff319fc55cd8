"""A stage's FLOPs as its objective makes torch count them, as the progress line has them, and as a plan does."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_fixtures import write_images, write_model
from steps import ONEDNN
from test_text_flops import NOT_COUNTED
from text_fixtures import write_text_model, write_texts
from torch.utils.flop_counter import FlopCounterMode

import sdfast
from sdfast.context import Context
from sdfast.costs.workload import workload
from sdfast.data.order import Batch
from sdfast.engine.prepare import running_teacher
from sdfast.evaluation.classification import labels_of
from sdfast.modalities.named import task_of
from sdfast.modalities.texts.costs import text_flops
from sdfast.models.blocks import use_attention
from sdfast.objectives.choose import classifier_objective, masked_objective
from sdfast.teacher.targets import ResidentBank

ROWS = 6
FINETUNE = [[f"finetune.regularizer={regularizer}"] for regularizer in ("none", "recadam", "mars", "r3f", "r4f")] + [
    ["finetune.objective=supcon"]
]
MATCHES = [
    ["distill.match=features", f"distill.tokens={tokens}", f"distill.layer={layer}", f"teacher.mode={mode}"]
    for tokens, layer, mode in product(("cls", "all"), ("last", 1), ("bank", "live"))
] + [
    ["distill.match=predictions", "distill.predictions.patches=all"],
    ["distill.match=predictions", "distill.predictions.patches=masked"],
    ["distill.match=weights-l2"],
    ["distill.match=weights-mars"],
    ["distill.mae_weight=0"],
    ["distill.weight=0"],
]  # fmt: skip
CASES = [("pretrain", []), *(("distill", keys) for keys in MATCHES), *(("finetune", keys) for keys in FINETUNE)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        "images": write_images(folder / "images"),
        "texts": write_texts(folder / "texts"),
        "ViT": write_model(folder / "vit"),
        "RoBERTa": write_text_model(folder / "roberta"),
        "out": folder / "out",
    }


def opened(sources: dict[str, Path], model: str, data: str, keys: list[str]) -> sdfast.Pipeline:
    return sdfast.Pipeline(
        model=sources[model], data=sources[data], out=sources["out"] / model, device="cpu", overrides=keys
    )


def objective_of(run: sdfast.Pipeline, stage: Any) -> Any:
    """As the run makes it; the teacher has the initial weights, a bank none."""
    initial, config = run.initial, run.context.config
    module = copy.deepcopy(initial.module)
    if stage == "finetune":
        labels = torch.from_numpy(labels_of(run.context.train))
        classifier = run.modality.classifier(run.config, module, 2, 0)
        return classifier_objective(classifier, run.modality.labelled_views(run.context, 0), labels, run.config, 0)
    teacher: Any = None
    if stage == "distill" and config.distill.weight:
        if config.distill.match != "features":
            teacher = copy.deepcopy(initial.module)
        elif config.teacher.mode == "live":
            teacher = run.modality.live_teacher(run.config, run.device, initial)
        else:
            patches = 17 if config.distill.tokens == "all" else 0
            size = (64, *([patches] if patches else []), 32)
            teacher = ResidentBank(torch.zeros(size), None, torch.arange(64)[None])
    return masked_objective(module, run.modality.masked_views(run.context, stage, 0), config, stage, 0, teacher)


def of_rows(run: sdfast.Pipeline, batch: Batch) -> Context:
    """The run, on the rows of a batch alone."""
    context = copy.copy(run.context)
    object.__setattr__(context, "train_rows", lambda kind: batch.rows)
    return context


def counted(run: sdfast.Pipeline, stage: Any) -> tuple[float, Batch, Any]:
    """FLOPs of a batch by torch, but for those of a contrastive loss; the batch and its masks."""
    objective = objective_of(run, stage)
    for part in (objective.module, running_teacher(objective)):
        if part is not None:
            use_attention(part, "reference")
    objective.module.train()
    batch = Batch(0, torch.arange(ROWS))
    inputs, drawn = run.context.read(run.context.train_of(stage))(batch.rows), objective.draw(batch)
    with FlopCounterMode(display=False, custom_mapping={**ONEDNN, **NOT_COUNTED}) as counter:
        objective.loss(inputs, batch, drawn, slice(0, ROWS))["loss"].backward()
    given = run.config.finetune
    compared = 3 * 2 * (2 * ROWS) ** 2 * given.supcon.projection if given.objective == "supcon" else 0
    return counter.get_total_flops() - compared * (stage == "finetune"), batch, drawn


@pytest.mark.parametrize(
    ("stage", "keys"), [("head", []), *CASES], ids=lambda each: "+".join(each) if isinstance(each, list) else each
)
def test_images(sources: dict[str, Path], stage: Any, keys: list[str]) -> None:
    run = opened(sources, "ViT", "images", keys)
    found, batch, _ = counted(run, stage)
    assert found == ROWS * run.modality.flops(of_rows(run, batch), stage)
    assert found == ROWS * workload(task_of(stage, run.config, run.initial.shape, 2)).flops


@pytest.mark.parametrize(
    ("stage", "keys"),
    [("head", []), *(case for case in CASES if {"distill.tokens=all", "teacher.mode=bank"} - {*case[1]})],
    ids=lambda each: "+".join(each) if isinstance(each, list) else each,
)
def test_texts(sources: dict[str, Path], stage: Any, keys: list[str]) -> None:
    run = opened(sources, "RoBERTa", "texts", [*keys, "data.max_length=20", "pretrain.mask_ratio=0.5"])
    found, batch, drawn = counted(run, stage)
    task = task_of(stage, run.config, run.initial.shape, 2)
    lengths = run.context.train_of(stage).lengths[batch.rows.numpy()]
    masked = [] if drawn is None else drawn.counts.tolist()
    assert found == text_flops(task, lengths.tolist(), masked).step
    mean = text_flops(task, lengths.tolist(), [] if drawn is None else 0.5 * (lengths - 2)).step
    assert run.modality.flops(of_rows(run, batch), stage) == pytest.approx(mean / ROWS)
    assert workload(task).flops == text_flops(task, [20], [] if drawn is None else [10]).step
