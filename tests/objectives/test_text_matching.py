"""What distill matches of texts besides features: against Hugging Face's dense heads and the definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from resuming import check_resumes
from small_stage import losses_of
from small_text_stage import LENGTHS, PAD, model, text_objective_of, texts
from torch import Tensor, nn

from sdfast.config import EngineConfig, PretrainConfig
from sdfast.data.order import Batch
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.modalities.texts.checkpoint import Companions, save_mlm
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.model import NO_DROPOUT
from sdfast.modalities.texts.order import TextBatchOrder
from sdfast.models import layout
from sdfast.objectives.base import Shortcuts
from sdfast.objectives.matching import PredictionMatching, WeightMatching

BATCH, WHOLE = Batch(2, torch.arange(6)), slice(0, 6)
MATCHES = ("predictions", "weights-l2", "weights-mars")
NO_SHORTCUTS = Shortcuts(packed=False, cls_tail=False, masked_tail=False)


def made(match: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    return text_objective_of("distill", dtype, rate=0.3, match=match, **changes)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def wide(rows: Tensor, lengths: Tensor, value: float) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows.split(lengths.tolist())), batch_first=True, padding_value=value)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("patches", ["all", "masked"])
@pytest.mark.parametrize("mlm_weight", [0.5, 0.0])
def test_predictions_are_those_of_two_dense_heads(
    reduction: str, patches: str, mlm_weight: float, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    more = {"compared": patches, "reduction": reduction, "mae_weight": mlm_weight, "weight": 0.3}
    ours = made("predictions", **more)
    drawn = ours.draw(BATCH)
    parts = ours.loss(texts(BATCH.rows), BATCH, drawn, WHOLE)
    parts["loss"].backward()

    heads = []
    for seed in (2, 3):
        save_mlm(model(seed), tmp_path / str(seed), Companions(), NO_DROPOUT)
        heads.append(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / str(seed)).double())
    student, teacher = heads
    lengths = drawn.batch.lengths
    ids = wide(drawn.batch.ids, lengths, PAD)
    there = torch.arange(ids.shape[1]) < lengths[:, None]
    positions = (torch.arange(ids.shape[1]) + PAD + 1).expand_as(ids)  # a random word may be the padding's
    given = {"input_ids": ids, "attention_mask": there.long(), "position_ids": positions}
    q, p = student(**given).logits.softmax(-1), teacher(**given).logits.softmax(-1).detach()
    every = torch.zeros(len(drawn.batch.ids), dtype=torch.bool)
    every[drawn.chosen] = True
    compared = there if patches == "all" else wide(every, lengths, False)
    divergence = (p * (p.log() - q.log())).sum(-1)[compared].sum()
    divergence = divergence / (6 if reduction == "sum" else int(compared.sum()))
    labels = wide(torch.full_like(drawn.batch.ids, -100).index_copy(0, drawn.chosen, drawn.labels), lengths, -100)
    mlm = F.cross_entropy(q.log().flatten(0, 1), labels.flatten())
    (0.3 * divergence + mlm_weight * mlm).backward()
    torch.testing.assert_close(parts["loss"], 0.3 * divergence + mlm_weight * mlm)
    torch.testing.assert_close(parts["loss_distill"], divergence.detach())
    assert ("loss_mlm" in parts) is (mlm_weight > 0)
    assert set(gradients(ours.module)) == {name for name, _ in ours.trained_parameters()}
    found = layout.write_state(gradients(ours.module), FAMILIES["roberta"].naming)
    expected = dict(student.named_parameters())
    assert set(expected) <= set(found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert not gradients(ours.matched)


@pytest.mark.parametrize("patches", ["all", "masked"])
def test_no_shortcut_changes_the_predicted_words(patches: str) -> None:
    found = []
    for shortcuts in (Shortcuts(), NO_SHORTCUTS):
        ours = made("predictions", compared=patches, shortcuts=shortcuts)
        parts = ours.loss(texts(BATCH.rows), BATCH, ours.draw(BATCH), WHOLE)
        parts["loss"].backward()
        found.append((parts, gradients(ours.module)))
    for one, two in zip(*found, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-10, atol=1e-12)


def test_the_student_drops_and_the_teacher_does_not() -> None:
    ours = made("predictions", dropout=0.3)
    ours.module.train()
    assert not ours.matched.training
    masked = ours.draw(BATCH).batch
    first, second = ours.matched.encoder(masked), ours.matched.encoder(masked)
    assert torch.equal(first, second)
    losses = {ours.loss(texts(BATCH.rows), BATCH, ours.draw(BATCH), WHOLE)["loss_distill"].item() for _ in range(2)}
    assert len(losses) == 2


def test_the_weights_of_texts_are_compared_as_the_definition_says() -> None:
    for match in ("weights-l2", "weights-mars"):
        ours = made(match, weight=0.2, mae_weight=0.5)
        drawn = ours.draw(BATCH)
        parts = ours.loss(texts(BATCH.rows), BATCH, drawn, WHOLE)
        parts["loss"].backward()
        plain: Any = text_objective_of("pretrain", torch.float64, rate=0.3)
        student, theirs = plain.module.encoder, dict(model(3).double().encoder.named_parameters())
        distance = torch.zeros((), dtype=torch.float64)
        for name, value in student.named_parameters():
            difference = value - theirs[name]
            if match == "weights-l2":
                distance = distance + difference.square().sum()
            elif name.endswith("weight") and "blocks" in name and "norm" not in name:
                for part in difference.chunk(3 if "qkv" in name else 1):
                    distance = distance + torch.stack([row.abs().sum() for row in part]).max()
        (0.5 * plain.loss(texts(BATCH.rows), BATCH, drawn, WHOLE)["loss"] + 0.2 * distance).backward()
        torch.testing.assert_close(parts["loss_distill"], distance.detach())
        expected, found = gradients(plain.module), gradients(ours.module)
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("match", MATCHES)
def test_a_text_teacher_that_is_the_student_has_no_distance_and_no_gradient(match: str) -> None:
    ours, plain = made(match, weight=100.0), text_objective_of("pretrain", torch.float64, rate=0.3)
    teacher = model(2).double()
    more = (ours.module, ours.views, 5)
    if match == "predictions":
        ours = PredictionMatching(*more, teacher, 100.0)
    else:
        ours = WeightMatching(*more, teacher, ours.distance.norm, 100.0)
    losses = []
    for each in (ours, plain):
        parts = each.loss(texts(BATCH.rows), BATCH, each.draw(BATCH), WHOLE)
        parts["loss"].backward()
        losses.append(parts)
    assert abs(losses[0]["loss_distill"]) < 1e-12 and losses[1]["loss"] > 0
    torch.testing.assert_close(losses[0]["loss"], losses[1]["loss"])
    for name, value in gradients(plain.module).items():
        torch.testing.assert_close(gradients(ours.module)[name], value)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("patches", ["all", "masked"])
def test_parts_and_processes_of_texts_sum_to_the_whole(match: str, patches: str) -> None:
    more = {"compared": patches, "reduction": "mean"} if match == "predictions" else {}
    ours = made(match, **more)
    whole = ours.loss(texts(BATCH.rows), BATCH, ours.draw(BATCH), WHOLE)
    sums: dict[str, float] = {}
    for rows, cuts in ((slice(0, 2), [slice(0, 2)]), (slice(2, 6), [slice(0, 1), slice(1, 4)])):
        mine = Batch(BATCH.epoch, BATCH.rows[rows], BATCH.rows)
        drawn = ours.draw(mine)
        for part in cuts:
            for name, value in ours.loss(texts(mine.rows[part]), mine, drawn, part).items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
    assert sums == pytest.approx({name: float(value.detach()) for name, value in whole.items()}, rel=1e-9)


def test_a_text_without_a_masked_word_is_compared_nowhere() -> None:
    ours = made("predictions", compared="masked", mae_weight=0.0)
    drawn = ours.draw(BATCH)
    nothing = type(drawn)(texts(BATCH.rows), drawn.chosen[:0], drawn.labels[:0], torch.zeros(6, dtype=torch.int64))
    parts = ours.loss(texts(BATCH.rows), BATCH, nothing, WHOLE)
    parts["loss"].backward()
    assert parts["loss"] == 0 and all(grad.isfinite().all() for grad in gradients(ours.module).values())


def trainer_of(match: str, directory: Path, **changes: Any) -> Trainer:
    if match:
        objective = made(match, torch.float32, dropout=0.1, **changes)
    else:
        objective = text_objective_of("pretrain", rate=0.3, dropout=0.1)
    config, order = PretrainConfig(steps=12, batch_size=16, lr=1e-3), TextBatchOrder(torch.arange(50), LENGTHS, 16, 9)
    data, folder = TrainingData(order, texts), StageFolder(directory, {"a": "b"})
    return Trainer("distill", objective, config, EngineConfig(log_every=4), data, folder)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.objective.module.state_dict().items()}


@pytest.mark.parametrize("match", MATCHES)
def test_a_stopped_text_stage_of_each_match_resumes_bit_for_bit(match: str, tmp_path: Path) -> None:
    check_resumes(lambda folder: trainer_of(match, folder, weight=0.1), tmp_path)


@pytest.mark.parametrize("match", MATCHES)
def test_each_text_match_nears_its_teacher_and_without_a_weight_is_further_pre_training(
    match: str, tmp_path: Path
) -> None:
    losses = losses_of(acting := trainer_of(match, tmp_path / "acting", weight=1.0))
    assert losses[-1]["loss_distill"] < losses[0]["loss_distill"]
    plain = trainer_of("", tmp_path / "plain")
    plain.run()
    without = trainer_of(match, tmp_path / "without", weight=0.0)
    without.run()
    assert all(torch.equal(value, weights(without)[name]) for name, value in weights(plain).items())
    assert any(not torch.equal(value, weights(acting)[name]) for name, value in weights(plain).items())


def test_without_masked_words_the_head_is_not_trained_and_features_alone_are() -> None:
    ours: Any = text_objective_of("distill", torch.float64, rate=0.3, mae_weight=0.0)
    ours.loss(texts(BATCH.rows), BATCH, ours.draw(BATCH), WHOLE)["loss"].backward()
    names = {name for name, _ in ours.module.named_parameters()}
    assert set(gradients(ours.module)) == {name for name in names if not name.startswith("head.")}
    assert {name for name, _ in ours.trained_parameters()} == set(gradients(ours.module))
