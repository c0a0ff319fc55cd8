"""Twenty steps on texts equal the naive step on Hugging Face modules: padded, with a head for every token."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from naive_setup import decayed_rate
from text_step_setup import LABELS, LR, MASKING, SEED, SHAPE, STEPS, batches, read, scrambled, train
from torch import Tensor

from sdfast.config import FinetuneConfig
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import (
    Companions,
    classifier_from_mlm,
    load_mlm,
    save_classifier,
    save_mlm,
)
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.model import Dropouts
from sdfast.modalities.texts.objectives import LabelledTexts, MaskedTexts
from sdfast.models.layout import write_state
from sdfast.objectives.classification import Classification
from sdfast.objectives.masked import MaskedTraining
from sdfast.teacher.live import LiveTeacher

transformers = pytest.importorskip("transformers")
KIN = ("bert", "xlm-roberta", "camembert", "distilbert", "electra")


@pytest.fixture(scope="module")
def naive_text(naive: ModuleType) -> ModuleType:
    return importlib.import_module("naive_text")


def theirs_of(seed: int, folder: Path, dtype: torch.dtype, kind: str = "roberta") -> torch.nn.Module:
    save_mlm(scrambled(seed, torch.float32, kind=kind), folder, Companions(), Dropouts())
    return transformers.AutoModelForMaskedLM.from_pretrained(folder).to(dtype)


def ours_of(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    return load_mlm(str(folder)).module.to(dtype)


def with_ignored(labels: Tensor, chosen: Tensor, count: int) -> Tensor:
    return torch.full((count,), -100).index_copy(0, chosen, labels)


@pytest.mark.parametrize(
    ("kind", "stage", "tokens", "dtype", "bound"),
    [
        ("roberta", "pretrain", "cls", torch.float64, 1e-9),
        ("roberta", "distill", "cls", torch.float64, 1e-9),
        ("roberta", "distill", "all", torch.float64, 1e-9),
        ("roberta", "distill", "cls", torch.float32, 2e-5),
        *((kind, "distill", "cls", torch.float64, 1e-9) for kind in KIN),
    ],
)
def test_pretraining_and_distillation(
    kind: str, stage: str, tokens: str, dtype: torch.dtype, bound: float, naive_text: ModuleType, tmp_path: Path
) -> None:
    theirs = theirs_of(0, tmp_path / "start", dtype, kind)
    module = ours_of(tmp_path / "start", dtype)
    teacher = None
    if stage == "distill":
        their_teacher = theirs_of(1, tmp_path / "teacher", dtype, kind)
        teacher = LiveTeacher(ours_of(tmp_path / "teacher", dtype).encoder, tokens)  # type: ignore[arg-type]
        naive_step = naive_text.NaiveTextDistillation(theirs, their_teacher, LR, tokens)
    else:
        naive_step = naive_text.NaiveTextPretraining(theirs, LR)
    objective = MaskedTraining(module, MaskedTexts(read, MASKING), SEED, teacher, tokens)  # type: ignore[arg-type]
    ours = train(objective, tmp_path / "run")
    for step, batch in enumerate(batches()):
        decayed_rate(naive_step, step, LR)
        drawn = objective.draw(batch)
        texts = TokenBatch(*read(batch.rows))
        labels = with_ignored(drawn.labels, drawn.chosen, len(texts.ids))
        clean = (texts.ids,) if teacher is not None else ()
        losses = naive_step.step(drawn.batch.ids, labels, texts.lengths, *clean)
        assert losses.keys() == ours[step].keys() - {"loss"}
        for name, value in losses.items():
            assert abs(ours[step][name] - float(value)) <= bound * max(1.0, abs(float(value))), (step, name)
    assert abs(ours[-1]["loss"] - ours[0]["loss"]) > 0.01
    compare(module, theirs, bound)


def compare(module: torch.nn.Module, theirs: torch.nn.Module, bound: float) -> None:
    """All weights but the keys' biases: softmax ignores those, and Adam divides their noise by itself."""
    mine = write_state(module.state_dict(), FAMILIES[module.shape.kind].naming)
    wanted = dict(theirs.named_parameters(remove_duplicate=False))
    assert len(mine) == len(list(theirs.parameters()))
    for name, value in mine.items():
        if not name.endswith(("key.bias", "k_lin.bias")):
            assert (value - wanted[name]).abs().max() <= bound, name


def test_finetuning(tmp_path: Path) -> None:
    """Against the classifier of transformers, padded, with AdamW on the same two groups."""
    naive_text = importlib.import_module("naive_text")
    names = ["a", "b", "c"]
    module = classifier_from_mlm(scrambled(0, torch.float32), 3, Dropouts(), seed=2)
    save_classifier(module, tmp_path / "start", Companions(), names, Dropouts())
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "start").double().train()
    module.double()
    config = FinetuneConfig(steps=STEPS, batch_size=8, lr=LR, warmup=0.0)
    ours = train(Classification(module, LabelledTexts(), LABELS), tmp_path / "run", config=config)
    step_of_theirs = naive_text.NaiveTextPretraining(theirs, LR)
    for group in step_of_theirs.optimizer.param_groups:
        group["betas"] = (0.9, 0.999)
    for step, batch in enumerate(batches()):
        decayed_rate(step_of_theirs, step, LR)
        step_of_theirs.optimizer.zero_grad()
        loss = theirs(**naive_text.inputs_of(*read(batch.rows), theirs), labels=LABELS[batch.rows]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        step_of_theirs.optimizer.step()
        assert abs(ours[step]["loss"] - loss.item()) <= 1e-9, step
    compare(module, theirs, 1e-9)
    assert (module.classifier.weight - theirs.classifier.out_proj.weight).abs().max() <= 1e-9
    assert (module.dense.bias - theirs.classifier.dense.bias).abs().max() <= 1e-9
    assert module.shape == SHAPE
