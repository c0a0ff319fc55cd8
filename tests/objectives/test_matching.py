"""What distill matches besides features, against the definitions written out, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_stage
import torch
from resuming import check_resumes
from small_stage import IMAGES, SHAPE, initialise, losses_of, objective_of, teacher_of
from torch import Tensor, nn

from sdfast.config import PretrainConfig
from sdfast.data.order import Batch
from sdfast.engine.loop import Trainer
from sdfast.modalities.images.model import MaskedAutoencoder, ViTEncoder
from sdfast.objectives.base import Shortcuts
from sdfast.objectives.matching import PredictionMatching, WeightMatching, mars_distance, squared_distance

BATCH, WHOLE = Batch(2, torch.arange(6)), slice(0, 6)
MATCHES = ("predictions", "weights-l2", "weights-mars")
L, P = SHAPE.patches, SHAPE.patch_values


def made(match: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    return objective_of("distill", dtype, match=match, **changes)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def predicted(module: MaskedAutoencoder, pixels: Tensor, visible: list[int]) -> Tensor:
    """One image's patches, the visible ones given: [L, P]."""
    ids = torch.tensor([visible])
    return module.decoder(module.encoder(pixels[None], ids), ids)[0]


@pytest.mark.parametrize("mask", ["fixed", "bernoulli"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("patches", ["all", "masked"])
@pytest.mark.parametrize("mae_weight", [0.5, 0.0])
def test_predictions_are_the_two_models_outputs(mask: Any, reduction: str, patches: str, mae_weight: float) -> None:
    masking, how = PretrainConfig(mask=mask), {"compared": patches, "reduction": reduction}
    ours = made("predictions", masking=masking, weight=0.3, mae_weight=mae_weight, **how)
    drawn = ours.draw(BATCH)
    parts = ours.loss(IMAGES[:6], BATCH, drawn, WHOLE)
    parts["loss"].backward()

    plain = objective_of("pretrain", torch.float64, masking=masking)
    student, teacher = plain.module, teacher_of(dtype=torch.float64)
    assert isinstance(student, MaskedAutoencoder)
    pixels, total, values = ours.views.normalise(IMAGES[:6]), torch.zeros((), dtype=torch.float64), 0
    for number in range(6):
        hidden = drawn.mask[number]
        seen = [patch for patch in range(L) if not hidden[patch]]
        kept = hidden if patches == "masked" else torch.ones(L, dtype=torch.bool)
        with torch.no_grad():
            target = predicted(teacher, pixels[number], seen)
        total = total + (predicted(student, pixels[number], seen) - target)[kept].square().sum()
        values += int(kept.sum()) * P
    matched = total / (6 if reduction == "sum" else values)
    mae = plain.loss(IMAGES[:6], BATCH, drawn, WHOLE)["loss"]
    (0.3 * matched + mae_weight * mae).backward()
    torch.testing.assert_close(parts["loss"], 0.3 * matched + mae_weight * mae)
    torch.testing.assert_close(parts["loss_distill"], matched.detach())
    assert ("loss_mae" in parts) is (mae_weight > 0)
    expected, found = gradients(student), gradients(ours.module)
    assert set(found) == set(expected) == {n for n, p in ours.trained_parameters() if p.requires_grad}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
    assert not gradients(ours.matched)


def test_no_shortcut_changes_the_predictions() -> None:
    losses = []
    for shortcuts in (Shortcuts(), Shortcuts(False, False, False)):
        ours = made("predictions", compared="masked", shortcuts=shortcuts)
        losses.append(ours.loss(IMAGES[:6], BATCH, ours.draw(BATCH), WHOLE)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def squared_by_hand(student: ViTEncoder, teacher: ViTEncoder) -> Tensor:
    theirs, total = dict(teacher.named_parameters()), torch.zeros((), dtype=torch.float64)
    for name, value in student.named_parameters():
        if name != "position_embeddings":
            total = total + (value - theirs[name]).square().sum()
    return total


def mars_by_hand(student: ViTEncoder, teacher: ViTEncoder) -> Tensor:
    """Row after row; query, key and value are layers of their own."""
    theirs, total = dict(teacher.named_modules()), torch.zeros((), dtype=torch.float64)
    for name, layer in student.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            other: Any = theirs[name]
            parts = 3 if name.endswith("qkv") else 1
            for one, two in zip(layer.weight.chunk(parts), other.weight.chunk(parts), strict=True):
                rows = [(one[j] - two[j]).abs().sum() for j in range(len(one))]
                total = total + torch.stack(rows).max()
    return total


@pytest.mark.parametrize("match", ["weights-l2", "weights-mars"])
def test_weights_are_compared_as_the_definition_says(match: str) -> None:
    ours = made(match, weight=0.2, mae_weight=0.5)
    drawn = ours.draw(BATCH)
    parts = ours.loss(IMAGES[:6], BATCH, drawn, WHOLE)
    parts["loss"].backward()
    plain = objective_of("pretrain", torch.float64)
    student, teacher = plain.module, teacher_of(dtype=torch.float64)
    assert isinstance(student, MaskedAutoencoder)
    by_hand = squared_by_hand if match == "weights-l2" else mars_by_hand
    distance = by_hand(student.encoder, teacher.encoder)
    (0.5 * plain.loss(IMAGES[:6], BATCH, drawn, WHOLE)["loss"] + 0.2 * distance).backward()
    torch.testing.assert_close(parts["loss_distill"], distance.detach())
    expected, found = gradients(student), gradients(ours.module)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_distances_by_hand() -> None:
    weight = torch.tensor([[3.0, -1.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    anchor = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.5]])
    # rows: (2, -1), (0, 2), (1, 1), (0, -0.5); l1 norms 3, 2, 2, 0.5
    assert squared_distance([weight], [anchor]).item() == 4 + 1 + 4 + 1 + 1 + 0.25
    assert mars_distance([(weight, 1)], [anchor]).item() == 3
    two = mars_distance([(weight, 2)], [anchor])
    assert two.item() == 3 + 2
    (10 * two).backward()
    assert weight.grad is not None and weight.grad.tolist() == [[10, -10], [0, 0], [10, 10], [0, 0]]


@pytest.mark.parametrize("function", [squared_distance, mars_distance])
def test_the_gradients_of_the_distances(function: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((6, 4), (3, 2, 2, 2))
    weights = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in sizes]
    anchors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes]
    given = [1, 1] if function is mars_distance else None

    def distance(*values: Tensor) -> Tensor:
        return function(list(zip(values, given, strict=True)) if given else list(values), anchors)

    assert torch.autograd.gradcheck(distance, weights)
    with torch.no_grad():  # as under ZeRO with weights in bfloat16
        halves = [weight.bfloat16().requires_grad_() for weight in weights]
    distance(*halves).backward()
    assert all(half.grad is not None and half.grad.dtype == torch.bfloat16 and half.grad.any() for half in halves)


@pytest.mark.parametrize("match", MATCHES)
def test_a_teacher_that_is_the_student_has_no_distance_and_no_gradient(match: str) -> None:
    ours = made(match, weight=100.0)
    plain = objective_of("pretrain", torch.float64)
    initialise(teacher := MaskedAutoencoder(SHAPE), 2)
    teacher = teacher.double()
    if isinstance(ours, PredictionMatching):
        ours.matched = teacher
    else:
        ours = WeightMatching(ours.module, ours.views, 5, teacher, ours.distance.norm, 100.0)
    losses = []
    for each in (ours, plain):
        parts = each.loss(IMAGES[:6], BATCH, each.draw(BATCH), WHOLE)
        parts["loss"].backward()
        losses.append(parts)
    assert losses[0]["loss_distill"] == 0 and losses[1]["loss"] > 0
    torch.testing.assert_close(losses[0]["loss"], losses[1]["loss"])
    for name, value in gradients(plain.module).items():
        torch.testing.assert_close(gradients(ours.module)[name], value)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("mask", ["fixed", "bernoulli"])
def test_parts_and_processes_sum_to_the_whole(match: str, mask: Any) -> None:
    more = {"compared": "masked", "reduction": "mean"} if match == "predictions" else {}
    ours = made(match, masking=PretrainConfig(mask=mask), **more)
    whole = ours.loss(IMAGES[:6], BATCH, ours.draw(BATCH), WHOLE)
    sums: dict[str, float] = {}
    for rows, cuts in ((slice(0, 2), [slice(0, 2)]), (slice(2, 6), [slice(0, 1), slice(1, 4)])):
        mine = Batch(BATCH.epoch, BATCH.rows[rows], BATCH.rows)
        drawn = ours.draw(mine)
        for part in cuts:
            for name, value in ours.loss(IMAGES[mine.rows[part]], mine, drawn, part).items():
                sums[name] = sums.get(name, 0.0) + float(value)
    assert sums == pytest.approx({name: float(value) for name, value in whole.items()}, rel=1e-9)


def trainer_of(match: str, directory: Path, **changes: Any) -> Trainer:
    objective = made(match, torch.float32, **changes) if match else objective_of("pretrain")
    return small_stage.trainer_of(objective, directory)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.objective.module.state_dict().items()}


@pytest.mark.parametrize("match", MATCHES)
def test_a_stopped_stage_resumes_bit_for_bit(match: str, tmp_path: Path) -> None:
    check_resumes(lambda folder: trainer_of(match, folder, weight=0.1), tmp_path)


@pytest.mark.parametrize("match", MATCHES)
def test_each_nears_its_teacher_and_without_a_weight_is_further_pre_training(match: str, tmp_path: Path) -> None:
    losses = losses_of(acting := trainer_of(match, tmp_path / "acting", weight=1.0))
    assert losses[-1]["loss_distill"] < losses[0]["loss_distill"]
    plain = trainer_of("", tmp_path / "plain")
    plain.run()
    without = trainer_of(match, tmp_path / "without", weight=0.0)
    without.run()
    same = {name: torch.equal(value, weights(without)[name]) for name, value in weights(plain).items()}
    assert all(same.values())
    assert any(not torch.equal(value, weights(acting)[name]) for name, value in weights(plain).items())


@pytest.mark.parametrize("match", MATCHES)
def test_a_step_can_be_captured_where_masks_are_fixed(match: str) -> None:
    assert made(match).static and not made(match, masking=PretrainConfig(mask="bernoulli")).static
