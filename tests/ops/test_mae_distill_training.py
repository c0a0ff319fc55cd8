"""The loss inside what trainers do: autocast, checkpointing, accumulation, DDP, hooks, no_grad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mae_distill_cases import Case, build
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdfast.losses import MaeDistillLoss, mae_distill_loss
from sdfast.ops import registry

BACKENDS = ("reference", "native")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    reason = registry.why_not("mae_distill", request.param, "cpu")
    if reason is not None:
        pytest.skip(reason)
    return request.param


class Student(nn.Module):
    """A decoder and an encoder head of one linear layer each, and the loss."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decoder, self.encoder = nn.Linear(12, 12), nn.Linear(12, 7)
        self.loss = MaeDistillLoss(patch_size=2, backend=backend)

    def forward(self, hidden: torch.Tensor, images: torch.Tensor, mask: torch.Tensor, teacher: torch.Tensor) -> Any:
        return self.loss(self.decoder(hidden), images, mask, self.encoder(hidden[:, 0]), teacher).loss


def batch(size: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(size, 6, 12, generator=generator)
    images = torch.randn(size, 3, 4, 6, generator=generator)
    mask = (torch.rand(size, 6, generator=generator).argsort(1) < 4).float()  # the same count in every sample
    return hidden, images, mask, torch.randn(size, 7, generator=generator)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_accumulated_micro_batches_equal_the_batch(backend: str) -> None:
    whole, parts = Student(backend), Student(backend)
    whole(*batch()).backward()
    for half in (slice(0, 2), slice(2, 4)):
        (parts(*[t[half] for t in batch()]) / 2).backward()
    for ours, theirs in zip(gradients(parts), gradients(whole), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_autocast(backend: str) -> None:
    """Low-precision layers, float32 arithmetic in the loss; the same numbers as with the reference."""
    expected, model = Student("reference"), Student(backend)
    for m in (expected, model):
        with torch.autocast("cpu", torch.bfloat16):
            loss = m(*batch())
        assert loss.dtype == torch.float32
        loss.backward()
    for ours, theirs in zip(gradients(model), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_inputs(backend: str, use_reentrant: bool) -> None:
    plain, model = Student(backend), Student(backend)
    plain(*batch()).backward()
    hidden, images, mask, teacher = batch()
    hidden.requires_grad_()  # reentrant checkpointing needs an input with a gradient
    pred = checkpoint(model.decoder, hidden, use_reentrant=use_reentrant)
    student = checkpoint(model.encoder, hidden[:, 0], use_reentrant=use_reentrant)
    model.loss(pred, images, mask, student, teacher).loss.backward()
    for ours, theirs in zip(gradients(model), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_checkpointing_over_the_loss_itself(backend: str) -> None:
    plain, model = Student(backend), Student(backend)
    plain(*batch()).backward()
    checkpoint(model, *batch(), use_reentrant=False).backward()
    for ours, theirs in zip(gradients(model), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_data_parallel_wrappers_and_hooks(backend: str, wrapper: str, tmp_path: Path) -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    plain, model = Student(backend), Student(backend)
    plain(*batch()).backward()
    seen: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        if wrapper == "ddp":
            nn.parallel.DistributedDataParallel(model)(*batch()).backward()
        else:
            from torch.distributed.fsdp import fully_shard

            fully_shard(model, mesh=distributed.init_device_mesh("cpu", (1,)))(*batch()).backward()
        made = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients(model)]
    finally:
        distributed.destroy_process_group()
    if wrapper == "ddp":  # FSDP replaces the parameters, and their hooks
        assert sorted(seen) == sorted(name for name, _ in model.named_parameters())
    for ours, theirs in zip(made, gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_gradient_hook_sees_and_may_change_the_gradient(backend: str) -> None:
    arguments = build(Case("hook"))
    arguments["pred"].register_hook(lambda grad: grad * 10)
    mae_distill_loss(**arguments, backend=backend).loss.backward()
    plain = build(Case("hook"))
    mae_distill_loss(**plain, backend="reference").loss.backward()
    torch.testing.assert_close(arguments["pred"].grad, plain["pred"].grad * 10)


def test_no_gradient_is_made_when_none_is_wanted(backend: str) -> None:
    arguments = build(Case("evaluation"))
    with torch.no_grad():
        output = mae_distill_loss(**arguments, backend=backend)
    assert not output.loss.requires_grad
    with torch.inference_mode():
        again = mae_distill_loss(**arguments, backend=backend)
    assert again.loss.item() == output.loss.item()


def test_the_inputs_are_left_as_they_are(backend: str) -> None:
    arguments = build(Case("untouched", image_dtype=torch.uint8, bank=7))
    before = {k: v.detach().clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    (mae_distill_loss(**arguments, backend=backend).loss * 3).backward()
    for name, value in before.items():
        assert torch.equal(arguments[name].detach(), value), name
