"""R3F against its two divergences and two separate passes; R4F's head against its singular values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_stage import IMAGES, LABELS, objective_of

from sdfast.config import FinetuneConfig
from sdfast.data.order import Batch
from sdfast.modalities.images.model import View, ViTClassifier
from sdfast.objectives.classification import Classification
from sdfast.regularizers.choose import on_loss
from sdfast.regularizers.r3f import R3F, add_spectral_norm, fold_spectral_norm, folded_state, symmetric_kl

BATCH = Batch(0, torch.arange(6))
WHOLE = slice(0, 6)


def objective(r3f: R3F | None, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Classification:
    made = objective_of("finetune", dtype, dropout=dropout, r3f=r3f)
    assert isinstance(made, Classification)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter *= 8  # so that noise shows in the output
    made.module.train()
    return made


def test_the_divergences_are_two() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (3 * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = left.softmax(1), right.softmax(1)
    expected = F.kl_div(q.log(), p, reduction="sum") + F.kl_div(p.log(), q, reduction="sum")
    torch.testing.assert_close(symmetric_kl(left, right), expected)
    assert symmetric_kl(left, left) == 0
    torch.testing.assert_close(symmetric_kl(left, right), symmetric_kl(right, left))
    half = symmetric_kl(left.bfloat16(), right.bfloat16())
    assert half.dtype == torch.float32


def test_by_hand() -> None:
    """p = (1/2, 1/2), q = (3/4, 1/4): sum (p - q)(log p - log q) = log(3) / 4."""
    left, right = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 1.0]]).log()
    assert float(symmetric_kl(left, right)) == pytest.approx(0.25 * torch.tensor(3.0).log().item(), rel=1e-6)


@pytest.mark.parametrize("cls_tail", [True, False])
def test_loss_and_gradients_are_those_of_two_passes(cls_tail: bool) -> None:
    r3f = R3F(weight=0.7, eps=3.0)
    ours = objective(r3f)
    ours.shortcuts = type(ours.shortcuts)(cls_tail=cls_tail)
    drawn = ours.draw(BATCH)
    torch.manual_seed(3)
    parts = ours.loss(IMAGES[:6], BATCH, drawn, WHOLE)
    parts["loss"].backward()

    other = objective(None).module
    assert isinstance(other, ViTClassifier)
    pixels = ours.views.normalise(IMAGES[:6])
    pixels = torch.where(drawn[:, None, None, None], pixels.flip(-1), pixels)
    torch.manual_seed(3)
    shape = other.shape
    noise = torch.empty(6, shape.patches, shape.encoder.width, dtype=torch.float64).normal_(0, 3.0)

    def logits(patches: torch.Tensor) -> torch.Tensor:
        encoder = other.encoder
        cls = (encoder.cls_token + encoder.position_embeddings[:, :1]).expand(6, -1, -1)
        tokens = torch.cat((cls, patches + encoder.position_embeddings[:, 1:]), dim=1)
        return other.classifier(encoder.encode(View(tokens))[0][:, 0])

    patches = F.conv2d(pixels, other.encoder.patch_embed.weight, other.encoder.patch_embed.bias, stride=4)
    patches = patches.flatten(2).transpose(1, 2)
    clean, noised = logits(patches), logits(patches.detach().clone() + noise)
    p, q = clean.softmax(1), noised.softmax(1)
    task = F.cross_entropy(clean, LABELS[:6])
    smooth = (F.kl_div(q.log(), p, reduction="sum") + F.kl_div(p.log(), q, reduction="sum")) / 6
    assert smooth > 5e-4 * task
    (task + 0.7 * smooth).backward()
    torch.testing.assert_close(parts["loss"], task + 0.7 * smooth)
    torch.testing.assert_close(parts["loss_task"], task)
    torch.testing.assert_close(parts["loss_r3f"], 0.7 * smooth)
    for (name, one), two in zip(ours.module.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_the_noised_pass_does_not_reach_the_embedding_and_both_reach_the_positions() -> None:
    module = objective(None).module
    assert isinstance(module, ViTClassifier)
    noise = torch.ones(2, module.shape.patches, module.shape.encoder.width, dtype=torch.float64)
    pixels = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    for chosen, reaches in ((0, True), (1, False)):
        module.zero_grad()
        module(pixels, True, noise).chunk(2)[chosen].sum().backward()
        grad = module.encoder.patch_embed.weight.grad
        assert (grad is not None and bool(grad.any())) is reaches
        position_grad = module.encoder.position_embeddings.grad
        assert position_grad is not None and position_grad.any()


def test_dropout_differs_between_the_passes() -> None:
    dropping = objective(R3F(eps=0.0), dropout=0.3)
    assert dropping.loss(IMAGES[:6], BATCH, dropping.draw(BATCH), WHOLE)["loss_r3f"] > 1e-6
    without = objective(R3F(eps=0.0))
    assert without.loss(IMAGES[:6], BATCH, without.draw(BATCH), WHOLE)["loss_r3f"] < 1e-20


def test_noise_is_as_wide_as_asked() -> None:
    size, device = (200, 50), torch.device("cpu")
    normal = R3F(eps=0.01).draw(size, device, torch.float64)
    assert float(normal.std()) == pytest.approx(0.01, rel=0.05) and abs(float(normal.mean())) < 1e-3
    uniform = R3F(eps=0.01, noise="uniform").draw(size, device, torch.float64)
    assert float(uniform.abs().max()) == pytest.approx(0.01, rel=0.01) and float(uniform.abs().max()) <= 0.01


def test_micro_batches_sum_to_the_whole() -> None:
    r3f = R3F(eps=0.0)  # noise differs between draws, its divergences do not
    ours = objective(r3f)
    drawn = ours.draw(BATCH)
    whole = ours.loss(IMAGES[:6], BATCH, drawn, WHOLE)
    parts = [ours.loss(IMAGES[:6][part], BATCH, drawn, part) for part in (slice(0, 2), slice(2, 6))]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


def test_strength_0_has_no_second_pass() -> None:
    for name in ("r3f", "r4f"):
        assert on_loss(FinetuneConfig.model_validate({"regularizer": name, "r3f": {"weight": 0}})) is None
        chosen = on_loss(FinetuneConfig.model_validate({"regularizer": name, "r3f": {"noise": "uniform"}}))
        assert chosen == R3F(noise="uniform")
    assert on_loss(FinetuneConfig()) is None


def test_the_head_of_r4f_has_spectral_norm_one() -> None:
    head = torch.nn.Linear(24, 5)
    raw = head.weight.detach().clone()
    add_spectral_norm(head, seed=1)
    head.train()
    for _ in range(200):
        found = head.weight
    top = torch.linalg.matrix_norm(raw.double(), 2)
    torch.testing.assert_close(found.detach().double(), raw.double() / top, rtol=1e-4, atol=1e-5)
    x, y = torch.randn(3, 24), torch.randn(3, 5)
    (head(x) * y).sum().backward()
    (original,) = [value for name, value in head.named_parameters() if "original" in name]
    free = raw.clone().requires_grad_()  # the gradient goes through the singular value too
    (F.linear(x, free / torch.linalg.matrix_norm(free, 2), head.bias.detach()) * y).sum().backward()
    torch.testing.assert_close(original.grad, free.grad, rtol=1e-3, atol=1e-4)
    last = head.eval().weight.detach().clone()
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    folded = folded_state(state, "head")
    assert set(folded) == {"head.weight", "head.bias"} and torch.equal(folded["head.weight"], last)
    assert folded_state(folded, "head") is folded
    fold_spectral_norm(head)
    assert set(dict(head.named_parameters())) == {"weight", "bias"} and not dict(head.named_buffers())
    assert torch.equal(head.weight, last)


def test_the_head_of_r4f_is_reproducible_and_keeps_its_precision_under_autocast() -> None:
    heads = []
    for _ in range(2):
        torch.manual_seed(7)
        head = torch.nn.Linear(8, 3)
        state = torch.get_rng_state()
        add_spectral_norm(head, seed=1)
        assert torch.equal(torch.get_rng_state(), state)
        heads.append(head)
    assert torch.equal(*(head.weight for head in heads))  # each look is an iteration
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (head.weight for head in heads)
        assert first.dtype == torch.float32 and torch.equal(first, second)
        assert heads[0](torch.randn(2, 8)).dtype == torch.bfloat16
