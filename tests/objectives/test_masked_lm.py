"""The text objectives: shortcuts, parts of a batch, both means, the head alone, and what is trained."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from text_step_setup import BATCH, MASKING, ROWS, SEED, WORDS, batches, read, scrambled, train
from torch import Tensor

from sdfast.config import EngineConfig
from sdfast.engine.prepare import prepare
from sdfast.errors import UserError
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.masking import TokenMasking
from sdfast.modalities.texts.model import Dropouts
from sdfast.modalities.texts.objectives import MaskedTexts
from sdfast.models.blocks import PostNormBlock, use_attention
from sdfast.objectives.base import ALL_SHORTCUTS, Shortcuts, micro_slices
from sdfast.objectives.masked import MaskedTraining
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank, Targets

NO_SHORTCUTS = Shortcuts(packed=False, cls_tail=False, masked_tail=False)
TEACHER = scrambled(7)


def objective_of(dtype: torch.dtype = torch.float64, teacher: bool = True, **changes: Any) -> MaskedTraining:
    module = scrambled(0, dtype, changes.pop("dropouts", Dropouts()))
    if teacher:
        tokens, layer = changes.get("tokens", "cls"), changes.get("layer", "last")
        changes["teacher"] = LiveTeacher(TEACHER.encoder, tokens, layer).to(dtype)
    masked = MaskedTexts(read, changes.pop("masking", MASKING), changes.pop("mean", "token"))
    return MaskedTraining(module, masked, SEED, **changes)


def texts_of(batch: Any) -> TokenBatch:
    return TokenBatch(*read(batch.rows))


def loss_and_gradients(objective: MaskedTraining, parts: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    batch = batches()[0]
    drawn, texts = objective.draw(batch), texts_of(batch)
    total: dict[str, Tensor] = {}
    objective.module.zero_grad()
    for part in micro_slices(len(batch.rows), parts):
        values = objective.loss(texts[part], batch, drawn, part)
        if values["loss"].requires_grad:
            values["loss"].backward()
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + value.detach()
    grads = {name: p.grad for name, p in objective.module.named_parameters() if p.grad is not None}
    return total, grads


def assert_same(one: tuple, two: tuple, bound: float = 1e-11) -> None:
    assert one[0].keys() == two[0].keys() and one[1].keys() == two[1].keys()
    for mine, theirs in zip(one, two, strict=True):
        for name, value in mine.items():
            assert (value - theirs[name]).abs().max() <= bound, name


SCENARIOS: list[dict[str, Any]] = [
    {"teacher": False},
    {},
    {"tokens": "all"},
    {"layer": 1},
    {"mae_weight": 0.0},
    {"mae_weight": 0.0, "layer": 1},
    {"mean": "sequence", "mae_weight": 0.3, "weight": 2.0},
]


@pytest.mark.parametrize("changes", SCENARIOS, ids=str)
def test_shortcuts_change_nothing(changes: dict[str, Any]) -> None:
    """Each on its own, and all together; without `masked_tail` the head is computed for every token."""
    plain = loss_and_gradients(objective_of(shortcuts=NO_SHORTCUTS, **changes))
    for name in ("packed", "cls_tail", "masked_tail"):
        one = objective_of(shortcuts=replace(NO_SHORTCUTS, **{name: True}), **changes)
        assert_same(loss_and_gradients(one), plain)
    assert_same(loss_and_gradients(objective_of(**changes)), plain)


@pytest.mark.parametrize("changes", SCENARIOS, ids=str)
def test_parts_sum_to_the_batch(changes: dict[str, Any]) -> None:
    whole = loss_and_gradients(objective_of(**changes))
    for parts in (3, BATCH):
        assert_same(loss_and_gradients(objective_of(**changes), parts), whole)


@functools.cache
def trajectory(
    shortcuts: Shortcuts, attention: str, accumulate: int
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    objective = objective_of(shortcuts=shortcuts)
    use_attention(objective.module, attention)
    with tempfile.TemporaryDirectory() as directory:
        losses = train(objective, Path(directory), 40, accumulate)
    return losses, {name: value.clone() for name, value in objective.module.state_dict().items()}


@pytest.mark.parametrize(("attention", "accumulate"), [("sdpa", 1), ("reference", 3)])
def test_forty_steps(attention: str, accumulate: int) -> None:
    plain, ours = trajectory(NO_SHORTCUTS, "reference", 1), trajectory(ALL_SHORTCUTS, attention, accumulate)
    for mine, theirs in zip(ours[0], plain[0], strict=True):
        assert all(abs(mine[name] - value) <= 1e-9 * max(1.0, abs(value)) for name, value in theirs.items())
    assert max((ours[1][name] - value).abs().max() for name, value in plain[1].items()) <= 1e-9
    start = objective_of().module.state_dict()
    assert all((plain[1][name] - value).abs().max() > 1e-3 for name, value in start.items())


def test_the_shortcuts_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    whole, some = PostNormBlock.forward, PostNormBlock.some_rows

    def noted(self: Any, *arguments: Any) -> Tensor:
        calls.append(f"block of {len(arguments[0])}")
        return whole(self, *arguments)

    def noted_some(self: Any, *arguments: Any) -> Tensor:
        calls.append(f"{len(arguments[1])} rows of {len(arguments[0])}")
        return some(self, *arguments)

    monkeypatch.setattr(PostNormBlock, "forward", noted)
    monkeypatch.setattr(PostNormBlock, "some_rows", noted_some)
    batch = batches()[0]
    texts = texts_of(batch)
    count, seen = len(texts.ids), {}
    for name in ("", "packed", "cls_tail", "masked_tail"):
        objective = objective_of(shortcuts=replace(NO_SHORTCUTS, **{name: True}) if name else NO_SHORTCUTS)
        drawn = objective.draw(batch)
        calls.clear()
        objective.loss(texts, batch, drawn, slice(0, BATCH))
        seen[name] = list(calls)
    block, first, chosen = f"block of {count}", f"{BATCH} rows of {count}", f"{len(drawn.chosen)} rows of {count}"
    live = [block, first]  # the teacher's
    assert seen == {
        "": [block] * 4 + live,
        "packed": [f"block of {2 * count}"] * 2 + live,
        "cls_tail": [block] * 3 + [first, *live],
        "masked_tail": [block, chosen, block, block, *live],
    }


# ---- the losses ------------------------------------------------------------------------------------------------


def plain_loss(objective: MaskedTraining) -> tuple[list[Tensor], Tensor, Tensor]:
    """Cross-entropies of each text's masked tokens, and the clean features of student and teacher, text by text."""
    batch = batches()[0]
    drawn, module = objective.draw(batch), objective.module
    entropies, students, teachers = [], [], []
    for number in range(len(batch.rows)):
        part = drawn[number : number + 1]
        logits = module.logits(module.encoder(part.batch))[part.chosen]
        entropies.append(F.cross_entropy(logits, part.labels, reduction="none"))
        clean = texts_of(batch)[number : number + 1]
        students.append(module.encoder(clean)[0])
        teachers.append(TEACHER.encoder(clean)[0])
    return entropies, torch.stack(students), torch.stack(teachers)


def test_both_means_by_hand() -> None:
    objective = objective_of(masking=replace(MASKING, rate=0.12))
    entropies, students, teachers = plain_loss(objective)
    assert min(len(each) for each in entropies) == 0  # a text without a masked token
    total = torch.cat(entropies)
    by_text = sum((each.mean() if len(each) else 0.0) for each in entropies) / BATCH
    distance = (students - teachers).square().sum() / BATCH
    for mean, wanted in (("token", total.mean()), ("sequence", by_text)):
        parts, _ = loss_and_gradients(objective_of(masking=replace(MASKING, rate=0.12), mean=mean))
        torch.testing.assert_close(parts["loss_mlm"], wanted.detach())
        torch.testing.assert_close(parts["loss_distill"], distance.detach())
        torch.testing.assert_close(parts["loss"], (wanted + distance).detach())


@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_a_bank_gives_the_losses_of_the_live_teacher(tokens: Any) -> None:
    """Of all tokens a bank has a row each."""
    texts = [TokenBatch(*read(torch.tensor([row]))) for row in range(ROWS)]
    features = [TEACHER.encoder.features(text, tokens).detach() for text in texts]
    firsts = torch.tensor([0, *(len(each) for each in features)]).cumsum(0)

    class Bank(ResidentBank):
        def targets(self, inputs: Any, rows: Tensor, epoch: int) -> Targets:
            of_text = [torch.arange(int(firsts[row]), int(firsts[row + 1])) for row in rows.tolist()]
            return Targets(self.features, torch.cat(of_text))

    bank = Bank(torch.cat(features), None, torch.arange(ROWS)[None])
    with_bank = MaskedTraining(scrambled(0), MaskedTexts(read, MASKING), SEED, bank, tokens)
    assert_same(loss_and_gradients(with_bank), loss_and_gradients(objective_of(tokens=tokens)))


def test_nothing_is_masked() -> None:
    nothing = TokenMasking(4, WORDS, tuple(range(WORDS)))
    parts, grads = loss_and_gradients(objective_of(teacher=False, masking=nothing))
    assert parts["loss"] == 0 and not any(grad.any() for grad in grads.values())
    parts, _ = loss_and_gradients(objective_of(masking=nothing))
    assert parts["loss_mlm"] == 0 and parts["loss"] == parts["loss_distill"] > 0


def test_the_head_alone() -> None:
    objective = objective_of(teacher=False, head_only=True)
    assert {name for name, _ in objective.trained_parameters()} == {
        "head.bias",
        "head.dense.weight",
        "head.dense.bias",
        "head.norm.weight",
        "head.norm.bias",
    }
    parts, grads = loss_and_gradients(objective)
    whole_parts, whole = loss_and_gradients(objective_of(teacher=False))
    assert parts == whole_parts and grads.keys() == {name for name, _ in objective.trained_parameters()}
    for name, grad in grads.items():
        torch.testing.assert_close(grad, whole[name])


@pytest.mark.parametrize("changes", SCENARIOS, ids=str)
def test_trained_parameters_are_those_with_gradients(changes: dict[str, Any]) -> None:
    objective = objective_of(**changes)
    _, grads = loss_and_gradients(objective)
    assert grads.keys() == {name for name, _ in objective.trained_parameters()}


def test_dropout_acts_in_the_student_alone() -> None:
    """The teacher's features do not change from draw to draw."""
    objective = objective_of(dropouts=Dropouts(0.1, 0.1))
    batch = batches()[0]
    texts, drawn = texts_of(batch), objective.draw(batch)
    objective.module.train()
    teacher = objective.teacher
    assert isinstance(teacher, LiveTeacher) and torch.equal(teacher(texts), teacher(texts))
    losses = [objective.loss(texts, batch, drawn, slice(0, BATCH))["loss_distill"] for _ in range(2)]
    assert losses[0] != losses[1]


def test_an_attention_without_dropout_is_refused_in_one_sentence() -> None:
    module = scrambled(0, torch.float32, Dropouts(0.1, 0.1))
    with pytest.raises(UserError, match=r"engine.attention=varlen cannot be used here: it has no dropout.*; use auto"):
        prepare(module, EngineConfig(attention="varlen"), torch.device("cpu"), 10)
    prepare(module, EngineConfig(attention="sdpa"), torch.device("cpu"), 10)
    assert {block.attn.backend for block in module.encoder.blocks} == {"sdpa"}
