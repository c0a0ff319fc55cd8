"""Weights of classes and label smoothing: beside torch's cross-entropy in float64, and weights beside numpy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_stage
import small_text_stage
import torch
import torch.nn.functional as F
from resuming import check_resumes
from small_stage import IMAGES, LABELS, objective_of
from small_text_stage import text_objective_of, texts
from torch import Tensor

from sdfast.config import Config, EngineConfig, FinetuneConfig
from sdfast.data.order import Batch, BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.errors import UserError
from sdfast.objectives.classification import classification_loss
from sdfast.objectives.contrastive import contrastive_losses, supervised_contrastive_loss
from sdfast.objectives.cross_entropy import (
    PLAIN,
    CrossEntropy,
    balanced_weights,
    check_class_weights,
    cross_entropy_of,
    listed_weights,
    weights_note,
    with_listed_weights,
)
from sdfast.regularizers.choose import advice
from sdfast.regularizers.r3f import R3F, symmetric_kl

WEIGHTS = torch.tensor([1.0, 0.25, 3.0, 7.0])
LOSSES = {
    "plain": PLAIN,
    "weighted": CrossEntropy(WEIGHTS),
    "smoothed": CrossEntropy(smoothing=0.3),
    "both": CrossEntropy(WEIGHTS, 0.3),
}
ROWS = torch.tensor([5, 1, 8, 2, 11, 30, 17])


def wanted(logits: Tensor, labels: Tensor, loss: CrossEntropy) -> Tensor:
    weights = None if loss.weights is None else loss.weights.to(logits.dtype)
    return F.cross_entropy(logits, labels, weight=weights, label_smoothing=loss.smoothing)


def by_hand(logits: Tensor, labels: Tensor, loss: CrossEntropy) -> float:
    """In numpy: the smoothed target times weight and log-probability, by the sum of the rows' weights."""
    z = logits.detach().numpy()
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    weights = np.ones(z.shape[1]) if loss.weights is None else loss.weights.double().numpy()
    target = np.full(z.shape, loss.smoothing / z.shape[1])
    target[np.arange(len(z)), labels.numpy()] += 1 - loss.smoothing
    return float(-(target * weights * log_p).sum() / weights[labels.numpy()].sum())


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_parts_and_processes_sum_to_the_loss_of_the_whole_batch(name: str, text: bool) -> None:
    loss, make = LOSSES[name], text_objective_of if text else objective_of
    objective: Any = make("finetune", torch.float64, dropout=0.0, cross_entropy=loss)
    read: Any = texts if text else IMAGES.__getitem__
    module = objective.module.eval()

    def computed(batch: Batch, *parts: slice) -> list[Tensor]:
        drawn, inputs = objective.draw(batch), read(batch.rows)
        return [objective.loss(inputs[part], batch, drawn, part)["loss"] for part in parts]

    whole = Batch(2, ROWS)
    drawn = objective.draw(whole)
    logits = module(objective.views.seen(read(ROWS), drawn, 1), True, None)
    labels = (small_text_stage if text else small_stage).LABELS[ROWS]
    truth = wanted(logits, labels, loss)
    assert by_hand(logits, labels, loss) == pytest.approx(truth.item(), rel=1e-12)
    torch.testing.assert_close(computed(whole, slice(0, 7))[0], truth)
    torch.testing.assert_close(sum(computed(whole, slice(0, 3), slice(3, 7))), truth)
    shares = [computed(Batch(2, ROWS[part], ROWS), slice(0, 7))[0] for part in (slice(0, 2), slice(2, 7))]
    torch.testing.assert_close(sum(shares), truth)
    gradients = [torch.autograd.grad(each, list(module.parameters())) for each in (truth, sum(shares))]  # type: ignore[arg-type]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_by_default_it_is_the_plain_loss_bit_for_bit() -> None:
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), LABELS[:9]
    plain = classification_loss(logits, labels, 9)["loss"]
    assert torch.equal(plain, F.cross_entropy(logits, labels, reduction="sum") / 9)
    assert cross_entropy_of(FinetuneConfig(), labels, 4) == PLAIN


@pytest.mark.parametrize("name", LOSSES)
def test_r3f_and_supervised_contrast_weigh_the_classifier_alone(name: str) -> None:
    rng, loss = torch.Generator().manual_seed(1), LOSSES[name]
    logits, labels = torch.randn(12, 4, dtype=torch.float64, generator=rng), LABELS[:12]
    clean, noised = logits[:6], logits[6:]
    divisor = loss.divisor(labels[:6])
    parts = classification_loss(logits, labels[:6], 6, R3F(weight=0.5), loss, divisor)
    torch.testing.assert_close(parts["loss_task"], wanted(clean, labels[:6], loss))
    torch.testing.assert_close(parts["loss_r3f"], 0.5 * symmetric_kl(clean, noised) / 6)
    projected = torch.randn(12, 5, dtype=torch.float64, generator=rng)
    parts = contrastive_losses(projected, logits, labels, 0.07, loss)
    torch.testing.assert_close(parts["loss_task"], wanted(logits, labels, loss))
    torch.testing.assert_close(parts["loss_contrastive"], supervised_contrastive_loss(projected, labels))


def test_balanced_weights_are_those_of_scikit_learns_formula() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [3])
    weights = balanced_weights(labels, 4)
    present, counts = np.unique(labels.numpy(), return_counts=True)
    assert weights[present].tolist() == pytest.approx((100 / (3 * counts)).tolist())
    assert weights[2] == 1 and weights[labels].mean() == pytest.approx(1)


def test_what_the_settings_give() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    given = cross_entropy_of(FinetuneConfig(class_weights=(1, 2.5), label_smoothing=0.1), labels, 2)
    assert given.weights is not None and given.weights.tolist() == [1, 2.5] and given.smoothing == 0.1
    balanced = cross_entropy_of(FinetuneConfig(class_weights="balanced"), labels, 2)
    assert balanced.weights is not None and balanced.weights.tolist() == pytest.approx([4 / 6, 2])
    assert weights_note(balanced.weights, ["a", "b"]) == "class weights: a 0.6667, b 2"
    assert "and 5 more" in weights_note(torch.ones(25), [str(number) for number in range(25)])
    both = advice(FinetuneConfig(class_weights="balanced", sampling="balanced"))
    assert len(both) == 1 and "together twice" in both[0]
    assert not advice(FinetuneConfig(class_weights="balanced"))


@pytest.mark.parametrize(
    "given", ["[1,0]", "[1,-2]", "[3]", "[]", "[1,true]", "[1,a]", "[1,.inf]", "null", "equal", "2"]
)
def test_weights_that_are_none_are_refused_in_a_sentence(given: str) -> None:

    with pytest.raises(UserError, match=r"finetune\.class_weights.* does not fit: give none, balanced, or a list with"):
        Config().changed([f"finetune.class_weights={given}"])


def test_a_list_of_another_length_names_the_classes_in_order() -> None:
    config = FinetuneConfig(class_weights=(1, 2, 3))
    check_class_weights(config, ["a", "b", "c"])
    check_class_weights(FinetuneConfig(class_weights="balanced"), ["a", "b"])
    with pytest.raises(UserError, match=r"has 3 weights, and the data have 2 classes; .* in this order: owl, ant"):
        check_class_weights(config, ["owl", "ant"])


def test_weights_by_name_are_the_list_of_them() -> None:
    names, order = ["ant", "1", "owl", "true"], {"owl": 2.5, "1": 3.0}
    assert listed_weights(order, names) == [order.get(name, 1.0) for name in names]
    assert listed_weights({"1.0": 3, "True": 4}, names) == [1, 3, 1, 4]
    given = Config().changed(["finetune.class_weights={owl: 2.5, 1: 3}"]).finetune
    assert with_listed_weights(given, names) == FinetuneConfig(class_weights=(1, 3, 2.5, 1))
    check_class_weights(given, names)
    again = Config().changed(["finetune.class_weights.owl=2.5", "finetune.class_weights.1=3"]).finetune
    assert again == given
    for wrong, said in {
        "{cow: 2}": "names 'cow', which is no class; they are ant, 1, owl, true.",
        '{"1": 2, "1.0": 3}': "names the class '1' twice",
    }.items():
        with pytest.raises(UserError, match=re.escape(said)):
            check_class_weights(Config().changed([f"finetune.class_weights={wrong}"]).finetune, names)
    with pytest.raises(UserError, match="a class that reads as True has to be in quotes"):
        Config().changed(["finetune.class_weights={yes: 2}"])


def test_a_stage_with_all_of_them_resumes_bit_for_bit(tmp_path: Path) -> None:
    def trainer_of(directory: Path) -> Trainer:
        objective = objective_of("finetune", cross_entropy=LOSSES["both"])
        order = BatchOrder(torch.arange(50), 16, 9, torch.arange(50) // 42)
        data = TrainingData(order, lambda rows: IMAGES[rows])
        config = FinetuneConfig(steps=12, batch_size=16, lr=1e-3)
        folder = StageFolder(directory, {"a": "b"})
        return Trainer("finetune", objective, config, EngineConfig(log_every=4), data, folder)

    check_resumes(trainer_of, tmp_path)
