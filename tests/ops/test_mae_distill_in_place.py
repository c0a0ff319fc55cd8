"""Without the compiled core "auto" has the reference's numbers, and does less than the formula written out in torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mae_distill_cases import CASES, Case, assert_within_twice_eager, build, evaluate, in_float64
from torch import Tensor
from work_counter import work_of

from sdfast.losses import mae_distill_loss, mlm_distill_loss


@pytest.fixture(autouse=True)
def nothing_compiled(refuse: Callable[[str, str, str], None]) -> None:
    refuse("mae_distill", "native", "it was not built")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_references_bits_and_gradients_as_near_the_truth(case: Case) -> None:
    ours, eager = evaluate(case, build(case), "auto"), evaluate(case, build(case), "reference")
    for name in ("loss", "mae", "distill"):
        assert torch.equal(getattr(ours.output, name), getattr(eager.output, name)), name
    assert_within_twice_eager(case, ours, eager, evaluate(case, in_float64(build(case)), "reference"))


def test_inputs_stay_as_they_are_where_patches_are_a_view_of_the_pixels() -> None:
    """One channel and one column of patches: they lie in memory as the pixels do."""
    images, pred = torch.rand(2, 1, 8, 4), torch.rand(2, 2, 16, requires_grad=True)
    teacher, student = torch.rand(2, 3), torch.rand(2, 3, requires_grad=True)
    before = [each.detach().clone() for each in (images, pred, teacher, student)]
    for norm_pix in (False, True):
        mask = torch.tensor([[True, False]] * 2)
        mae_distill_loss(pred, images, mask, student, teacher, patch_size=4, norm_pix=norm_pix).loss.backward()
    assert all(torch.equal(*pair) for pair in zip(before, (images, pred, teacher, student), strict=True))


def test_a_second_derivative_is_refused_and_torch_compile_sees_the_reference() -> None:
    arguments = build(Case("second"))
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad(mae_distill_loss(**arguments).loss, [arguments["pred"]], create_graph=True)
    compiled = torch.compile(mae_distill_loss, backend="eager", fullgraph=True)
    torch.autograd.grad(compiled(**arguments).loss, [arguments["pred"]], create_graph=True)


def eager(pred: Tensor, images: Tensor, mask: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """As it is usually written, for patches of 16."""
    batch, channels, height, width = images.shape
    target = images.reshape(batch, channels, height // 16, 16, width // 16, 16).permute(0, 2, 4, 3, 5, 1)
    target = target.reshape(batch, -1, 256 * channels)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    mae = (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()
    return mae + ((student - teacher) ** 2).sum() / batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [(8,), (197, 32)])
@pytest.mark.parametrize("batch", [1, 8])
def test_fewer_passes_and_bytes_than_the_formula_as_it_is_usually_written(
    batch: int, features: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    pred = torch.randn(batch, 16, 768).to(dtype).requires_grad_()
    student, teacher = torch.randn(batch, *features).to(dtype).requires_grad_(), torch.randn(batch, *features)
    images, mask = torch.randn(batch, 3, 64, 64), torch.rand(batch, 16).argsort(1) < 12
    operands = (pred, images, mask, student, teacher)
    ours = work_of(lambda: mae_distill_loss(*operands).loss, pred, student)
    theirs = work_of(lambda: eager(*operands), pred, student)
    assert ours.passes <= theirs.passes
    assert ours.moved < 0.97 * theirs.moved


@pytest.mark.parametrize("features", [(8,), (24, 32)])
def test_texts_too(features: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(64, 200, requires_grad=True), torch.randint(200, (64,))
    labels[::3] = -100
    student, teacher = torch.randn(8, *features, requires_grad=True), torch.randn(8, *features)

    def as_usual() -> Tensor:
        mlm = torch.nn.functional.cross_entropy(logits, labels)
        return mlm + ((student - teacher) ** 2).sum() / len(student)

    ours = work_of(lambda: mlm_distill_loss(logits, labels, student, teacher).loss, logits, student)
    theirs = work_of(as_usual, logits, student)
    assert ours.passes <= theirs.passes and ours.moved <= theirs.moved
