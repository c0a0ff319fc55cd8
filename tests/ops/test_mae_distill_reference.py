"""The reference against formulas written here, against transformers, and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from mae_distill_cases import CASES, MEAN, STD, Case, build, evaluate, in_float64

from sdfast.losses import MaeDistillLoss, mae_distill_loss


def naive_mae(images: list, pred: list, masked: list[tuple[int, int, int]], patch_size: int, norm_pix: bool) -> float:
    """Plain Python: ``masked`` lists (sample, patch, row of pred)."""
    total = 0.0
    for sample, patch, position in masked:
        image = images[sample]
        columns = len(image[0][0]) // patch_size
        top, left = (patch // columns) * patch_size, (patch % columns) * patch_size
        values = [
            image[channel][top + row][left + column]
            for row in range(patch_size)
            for column in range(patch_size)
            for channel in range(len(image))
        ]
        if norm_pix:
            mean = math.fsum(values) / len(values)
            variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
            values = [(v - mean) / math.sqrt(variance + 1e-6) for v in values]
        total += math.fsum((p - v) ** 2 for p, v in zip(pred[sample][position], values, strict=True)) / len(values)
    return total / max(len(masked), 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_equals_a_formula_in_plain_python(case: Case) -> None:
    arguments = in_float64(build(case))
    output = mae_distill_loss(**arguments, backend="reference")
    mae = distill = 0.0
    if case.pixel_part:
        images = arguments["images"].double()
        if case.image_dtype == torch.uint8:
            mean, std = (torch.tensor(v[: case.channels], dtype=torch.float64).view(-1, 1, 1) for v in (MEAN, STD))
            images = (images / 255 - mean) / std
        if case.masked_only:
            ids = arguments["mask_ids"].tolist()
            masked = [(b, patch, m) for b, row in enumerate(ids) for m, patch in enumerate(row)]
        else:
            masked = [(b, patch, patch) for b, patch in arguments["mask"].nonzero().tolist()]
        mae = naive_mae(images.tolist(), arguments["pred"].tolist(), masked, case.patch_size, case.norm_pix)
    if case.features is not None:
        teacher = arguments["teacher"].double()
        if "teacher_scale" in arguments:
            teacher = teacher * arguments["teacher_scale"].unsqueeze(-1)
        for b, student in enumerate(arguments["student"]):
            target = teacher[int(arguments["rows"][b])] if case.bank else teacher[b]
            squares = math.fsum(
                (s - t) ** 2 for s, t in zip(student.flatten().tolist(), target.flatten().tolist(), strict=True)
            )
            distill += squares / max(student.numel() if case.reduction == "mean" else 1, 1)
        distill /= max(case.batch, 1)
    assert output.mae.item() == pytest.approx(mae, rel=1e-12, abs=1e-12)
    assert output.distill.item() == pytest.approx(distill, rel=1e-12, abs=1e-12)
    assert output.loss.item() == pytest.approx(
        case.mae_weight * mae + case.distill_weight * distill, rel=1e-12, abs=1e-12
    )
    assert not output.mae.requires_grad and not output.distill.requires_grad


@pytest.mark.parametrize("name", ["mask", "mask_ids", "uint8", "bank", "int8"])
def test_gradcheck(name: str) -> None:
    float64 = {"pred_dtype": torch.float64, "student_dtype": torch.float64}
    small = {
        "batch": 2,
        "channels": 2,
        "height": 4,
        "width": 6,
        "patch_size": 2,
        "features": (2, 3),
        **float64,
    }
    extra = {
        "mask": {"mask": "uneven", "image_dtype": torch.float64},
        "mask_ids": {"masked_only": True, "norm_pix": False},
        "uint8": {"image_dtype": torch.uint8},
        "bank": {"bank": 5, "reduction": "mean", "mae_weight": 0.3, "distill_weight": 2.0},
        "int8": {"bank": 5, "teacher_dtype": torch.int8},
    }[name]
    arguments = build(Case(name, **{**small, **extra}))
    pred, student = arguments.pop("pred"), arguments.pop("student")

    def loss(pred: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return mae_distill_loss(pred=pred, student=student, **arguments, backend="reference").loss

    assert torch.autograd.gradcheck(loss, (pred, student))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_reference_equals_transformers(norm_pix: bool) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        norm_pix_loss=norm_pix,
    )
    model = transformers.ViTMAEForPreTraining(config).double().eval()
    pixels = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    theirs = model(pixels)
    ours = mae_distill_loss(theirs.logits, pixels, theirs.mask, patch_size=8, norm_pix=norm_pix, backend="reference")
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-12)
    their_grad = torch.autograd.grad(theirs.loss, theirs.logits, retain_graph=True)[0]
    our_grad = torch.autograd.grad(ours.loss, theirs.logits)[0]
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-10, atol=1e-14)


def test_gradient_is_zero_outside_the_mask_even_where_the_prediction_is_not_finite() -> None:
    case = Case("partly masked")
    arguments = build(case)
    visible = ~arguments["mask"]
    with torch.no_grad():
        arguments["pred"][visible] = math.nan
    result = evaluate(case, arguments, "reference")
    assert math.isfinite(result.output.loss.item())
    assert (result.grads["pred"][visible] == 0).all()
    assert (result.grads["pred"][~visible] != 0).any()


def test_module_keeps_the_settings() -> None:
    arguments = build(Case("module", image_dtype=torch.uint8, reduction="mean", norm_pix=False, patch_size=8))
    direct = mae_distill_loss(**arguments, backend="reference")
    settings = ("patch_size", "norm_pix", "mae_weight", "distill_weight", "mean", "std")
    module = MaeDistillLoss(
        **{name: arguments.pop(name) for name in settings},
        distill_reduction=arguments.pop("distill_reduction"),
        backend="reference",
    )
    assert module(**arguments) == direct
    assert "patch_size=8" in repr(module) and not list(module.parameters()) and not module.state_dict()
