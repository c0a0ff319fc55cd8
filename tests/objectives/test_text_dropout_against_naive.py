"""With dropout, steps on texts equal the naive steps on Hugging Face modules in the mean over many draws."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from text_step_setup import LR, MASKING, ROWS, SEED, SHAPE, TEXTS, read
from torch import Tensor, nn

from sdfast.config import EngineConfig, PretrainConfig
from sdfast.data.order import Batch
from sdfast.engine.single import SingleEngine
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import Companions, fresh_mlm, load_mlm, save_mlm
from sdfast.modalities.texts.model import Dropouts
from sdfast.modalities.texts.objectives import MaskedTexts
from sdfast.objectives.base import ALL_SHORTCUTS
from sdfast.objectives.masked import MaskedTraining
from sdfast.teacher.live import LiveTeacher

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
DROPOUTS = Dropouts(hidden=0.1, attention=0.2)
DRAWS, STEPS = 24, 2
COPIES = 32  # of each text in a batch, with the same masked words: dropout differs between them
SHORT = torch.tensor(sorted(range(ROWS), key=lambda row: len(TEXTS[row]))[2:6])
BATCH = Batch(0, SHORT.repeat_interleave(COPIES))
NAMES = ("words", "positions", "query", "value", "projection", "MLP", "norm", "head")
Losses = dict[str, Tensor]


@pytest.fixture(scope="module")
def naive_text(naive: ModuleType) -> ModuleType:
    return importlib.import_module("naive_text")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Student and teacher, with weights so large that attention prefers some tokens."""
    made = []
    for seed in range(2):
        module = fresh_mlm(SHAPE, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                scale = 0.4 if ".attn." in name else 0.2
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        made.append(tmp_path_factory.mktemp("start") / "model")
        save_mlm(module, made[-1], Companions(), DROPOUTS)
    return made


@pytest.fixture(scope="module")
def naive_draws(naive_text: ModuleType, folders: list[Path]) -> Tensor:
    student, teacher = (transformers.AutoModelForMaskedLM.from_pretrained(folder) for folder in folders)
    assert student.config.hidden_dropout_prob == DROPOUTS.hidden
    assert student.config.attention_probs_dropout_prob == DROPOUTS.attention
    step = naive_text.NaiveTextDistillation(student, teacher, LR)
    drawn = objective_of(folders).draw(BATCH)
    texts = TokenBatch(*read(BATCH.rows))
    labels = torch.full((len(texts.ids),), -100).index_copy(0, drawn.chosen, drawn.labels)
    base, layer = student.base_model, student.base_model.encoder.layer[0]
    weights = {
        "words": base.embeddings.word_embeddings.weight,
        "positions": base.embeddings.position_embeddings.weight,
        "query": layer.attention.self.query.weight,
        "value": layer.attention.self.value.weight,
        "projection": layer.attention.output.dense.weight,
        "MLP": layer.output.dense.weight,
        "norm": base.encoder.layer[1].output.LayerNorm.weight,
        "head": student.lm_head.dense.weight,
    }
    return draws_of(
        student,
        step.optimizer,
        lambda: step.step(drawn.batch.ids, labels, texts.lengths, texts.ids),
        lambda: {name: weight.grad for name, weight in weights.items()},
    )


def objective_of(folders: list[Path], dropouts: Dropouts | None = None) -> MaskedTraining:
    student, teacher = load_mlm(str(folders[0]), dropouts=dropouts), load_mlm(str(folders[1]))
    live = LiveTeacher(teacher.module.encoder, "cls")
    return MaskedTraining(student.module, MaskedTexts(read, MASKING), SEED, live)


def our_draws(objective: MaskedTraining) -> Tensor:
    engine = SingleEngine(objective, PretrainConfig(lr=LR), EngineConfig(), CPU)
    module, encoder = objective.module.train(), objective.module.encoder
    drawn, texts = objective.draw(BATCH), TokenBatch(*read(BATCH.rows))

    def gradients() -> Losses:
        query, _, value = encoder.blocks[0].attn.qkv.weight.grad.chunk(3)
        return {
            "words": encoder.word_embeddings.weight.grad,
            "positions": encoder.position_embeddings.weight.grad,
            "query": query,
            "value": value,
            "projection": encoder.blocks[0].attn.proj.weight.grad,
            "MLP": encoder.blocks[0].fc2.weight.grad,
            "norm": encoder.blocks[1].norm2.weight.grad,
            "head": module.head.dense.weight.grad,
        }

    return draws_of(module, engine.optimizer, lambda: engine.step(texts, BATCH, drawn, LR), gradients)


def draws_of(module: nn.Module, optimizer: Any, step: Callable[[], Losses], gradients: Callable[[], Losses]) -> Tensor:
    """[DRAWS, statistics]: what two steps from the same weights and fresh moments gave, in many draws of the dropout.

    Of each step the losses, and of some gradients the sum of squares and the component along a fixed direction.
    """
    start = copy.deepcopy(module.state_dict())
    directions = {}
    found = []
    for draw in range(DRAWS):
        module.load_state_dict(start)
        optimizer.state.clear()
        torch.manual_seed(draw)
        row = []
        for _ in range(STEPS):
            losses, grads = step(), gradients()
            row += [losses["loss_mlm"], losses["loss_distill"]]
            for number, name in enumerate(NAMES):
                if name not in directions:
                    rng = torch.Generator().manual_seed(number)
                    directions[name] = torch.randn(grads[name].shape, generator=rng)
                row += [grads[name].square().sum(), (grads[name] * directions[name]).sum()]
        found.append(torch.stack(row))
    return torch.stack(found).double()


def apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """[statistics]: differences of the means, in standard errors of the difference."""
    error = ((ours.var(dim=0) + theirs.var(dim=0)) / DRAWS).sqrt()
    return (ours.mean(dim=0) - theirs.mean(dim=0)).abs() / error


def test_means_are_equal_within_their_error(folders: list[Path], naive_draws: Tensor) -> None:
    ours = our_draws(objective_of(folders))
    assert apart(ours, naive_draws).max() < 4


@pytest.mark.parametrize("wrong", ["attention", "clean", "teacher"])
def test_dropout_in_other_places_is_told_apart(wrong: str, folders: list[Path], naive_draws: Tensor) -> None:
    """No attention weight is dropped; the clean texts see no dropout; the teacher sees it."""
    objective = objective_of(folders, replace(DROPOUTS, attention=0.0) if wrong == "attention" else None)
    if wrong == "clean":
        clean = read(BATCH.rows)[0]
        objective.shortcuts = replace(ALL_SHORTCUTS, packed=False)
        objective.module.encoder.register_forward_pre_hook(
            lambda encoder, given: encoder.train(not torch.equal(given[0].ids, clean)) and None
        )
    if wrong == "teacher":
        objective.teacher.encoder.train()
    assert apart(our_draws(objective), naive_draws).max() > 8
