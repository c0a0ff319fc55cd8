"""RecAdam against its definition, written out parameter by parameter in float64, and against AdamW."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_stage import objective_of

from sdfast.config import FinetuneConfig
from sdfast.engine.optim import build_optimizer, is_decayed, set_learning_rate
from sdfast.modalities.images.model import ViTClassifier
from sdfast.regularizers.choose import advice, on_optimizer
from sdfast.regularizers.recadam import Annealing, Pull, RecAdam

LR, EPS, DECAY, GAMMA = 1e-3, 1e-4, 0.1, 300.0  # an epsilon that can be seen
ANNEALINGS = [Annealing(), Annealing("sigmoid", 0.7, 5), Annealing("linear", t0=8, w=0.8), Annealing("constant")]


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (5,), (2, 3, 2), ())
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def gradients(step: int, like: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in like]


def train(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: int) -> list[torch.Tensor]:
    for step in range(steps):
        for parameter, grad in zip(params, gradients(step, params), strict=True):
            parameter.grad = grad
        optimizer.step()
    return [parameter.detach().clone() for parameter in params]


def anneal(annealing: Annealing, t: int) -> float:
    w = annealing.w
    if annealing.kind == "sigmoid":
        return w / (1 + math.exp(-annealing.k * (t - annealing.t0)))
    return w * min(1, t / annealing.t0) if annealing.kind == "linear" else w


def by_definition(
    start: torch.Tensor, grads: list[torch.Tensor], betas: tuple[float, float], decay: float, pull: Any
) -> torch.Tensor:
    """One parameter after all steps; `pull` is (anchor, annealing), or None for a new head."""
    theta, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, grad in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * grad
        v = betas[1] * v + (1 - betas[1]) * grad * grad
        size = LR * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        share = 1.0 if pull is None else anneal(pull[1], t)
        theta = theta - size * share * m / (v.sqrt() + EPS)
        if pull is not None:
            theta = theta - LR * (pull[1].w - share) * GAMMA * (theta - pull[0])
        theta = theta - LR * decay * theta
    return theta


@pytest.mark.parametrize("annealing", ANNEALINGS, ids=str)
def test_steps_are_those_of_the_definition(annealing: Annealing) -> None:
    params = parameters()
    starts = [each.detach().clone() for each in params]
    anchors = [each + 0.3 for each in starts]  # elsewhere, so that the pull acts in the first step too
    groups = [
        {"params": params[:1], "weight_decay": DECAY, "anchors": anchors[:1]},
        {"params": params[1:2], "weight_decay": 0.0, "anchors": anchors[1:2]},
        {"params": params[2:], "weight_decay": DECAY, "anchors": None},
    ]
    found = train(RecAdam(groups, LR, (0.9, 0.99), EPS, GAMMA, annealing), params, 12)
    for number, value in enumerate(found):
        pull = (anchors[number], annealing) if number < 2 else None
        grads = [gradients(step, params)[number] for step in range(12)]
        decay = 0.0 if number == 1 else DECAY
        expected = by_definition(starts[number], grads, (0.9, 0.99), decay, pull)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)


def test_rates_in_tensors_as_on_a_gpu_give_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found, of_cpu = [], RecAdam._rates
    for as_tensors in (False, True):
        params = parameters()
        groups = [
            {"params": params[:2], "weight_decay": DECAY, "anchors": [each.detach() + 0.3 for each in params[:2]]},
            {"params": params[2:], "weight_decay": DECAY},
        ]
        optimizer = RecAdam(groups, LR, (0.9, 0.99), EPS, GAMMA, Annealing("sigmoid", 0.7, 5))
        if as_tensors:
            monkeypatch.setattr(
                RecAdam, "_rates", lambda *a: [torch.tensor(r, dtype=torch.float64) for r in of_cpu(*a)]
            )
        found.append(train(optimizer, params, 9))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.gpu
def test_a_captured_step_reads_its_rates_on_the_device() -> None:
    """Against the CPU, whose rates are numbers: lambda, bias corrections and learning rate move on in a graph."""
    device = torch.device("cuda")
    annealing = Annealing("sigmoid", 0.7, 6)
    on_cpu, on_gpu = parameters(torch.float32), [torch.nn.Parameter(p.to(device)) for p in parameters(torch.float32)]

    def made(params: list[torch.nn.Parameter], lr: Any) -> RecAdam:
        group = {"params": params, "weight_decay": DECAY, "anchors": [each.detach() + 0.3 for each in params]}
        return RecAdam([group], lr, (0.9, 0.99), EPS, GAMMA, annealing)

    cpu, gpu = made(on_cpu, LR), made(on_gpu, torch.tensor(LR, device=device))
    for parameter in on_gpu:
        parameter.grad = torch.zeros_like(parameter)
    graph = torch.cuda.CUDAGraph()
    for step in range(12):
        for optimizer in (cpu, gpu):
            set_learning_rate(optimizer, LR / (1 + step))
        for one, other, grad in zip(on_cpu, on_gpu, gradients(step, on_cpu), strict=True):
            one.grad = grad
            assert other.grad is not None
            other.grad.copy_(grad)
        cpu.step()
        if step < 3:
            gpu.step()
            continue
        if step == 3:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                gpu.step()
        graph.replay()
    for one, other in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(other.detach().cpu(), one.detach(), rtol=1e-5, atol=1e-6)


def test_one_step_by_hand() -> None:
    """betas 0: m = g, v = g^2; lambda = 1/2 at t = t0: 1 - 0.01 * 0.5 * 4 / 4, 1/20 of the way back, then the decay."""
    theta = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    group = {"params": [theta], "weight_decay": 0.5, "anchors": [torch.zeros(1, dtype=torch.float64)]}
    optimizer = RecAdam([group], 0.01, (0.0, 0.0), 0.0, 10.0, Annealing("sigmoid", 1.0, 1))
    theta.grad = torch.tensor([4.0], dtype=torch.float64)
    optimizer.step()
    assert theta.item() == pytest.approx((1 - 0.005) * (1 - 0.05) * (1 - 0.005), rel=1e-15)


def test_without_a_gradient_the_pull_decays_as_a_product() -> None:
    """theta_T - theta* = (theta_0 - theta*) prod (1 - eta gamma (w - lambda(t))): the closed form of the quadratic."""
    theta, anchor = torch.nn.Parameter(torch.ones(3, dtype=torch.float64)), torch.full((3,), 0.25, dtype=torch.float64)
    annealing = Annealing("sigmoid", 0.5, 6)
    optimizer = RecAdam([{"params": [theta], "anchors": [anchor]}], LR, (0.9, 0.999), 1e-8, GAMMA, annealing)
    for _ in range(20):
        theta.grad = torch.zeros_like(theta)
        optimizer.step()
    left = math.prod(1 - LR * GAMMA * (1 - anneal(annealing, t)) for t in range(1, 21))
    torch.testing.assert_close(theta.detach() - anchor, torch.full_like(anchor, 0.75 * left), rtol=1e-12, atol=0)


def test_constant_annealing_is_adamw_bit_for_bit() -> None:
    """Where the operations are the same: no decay (it comes at another place), no bias correction (epsilon's place)."""
    params, others = parameters(torch.float32), parameters(torch.float32)
    anchors = [each.detach() + 1 for each in params]
    optimizer = RecAdam([{"params": params, "anchors": anchors}], LR, (0.0, 0.0), EPS, GAMMA, Annealing("constant"))
    adamw = torch.optim.AdamW(others, lr=LR, betas=(0.0, 0.0), eps=EPS, weight_decay=0.0, fused=True)
    for one, other in zip(train(optimizer, params, 5), train(adamw, others, 5), strict=True):
        assert torch.equal(one, other)


def test_constant_annealing_is_adamw_with_an_epsilon_that_is_corrected() -> None:
    params, others = parameters(), parameters()
    optimizer = RecAdam([{"params": params, "anchors": params}], LR, (0.9, 0.999), 0.0, GAMMA, Annealing("constant"))
    adamw = torch.optim.AdamW(others, lr=LR, betas=(0.9, 0.999), eps=0.0, weight_decay=0.0)
    for one, other in zip(train(optimizer, params, 20), train(adamw, others, 20), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_annealing_does_not_overflow() -> None:
    steps = torch.tensor([1.0, 1e7], dtype=torch.float64)
    assert Annealing("sigmoid", 1.0, 10**6).at(steps).tolist() == [0.0, 1.0]
    assert Annealing("linear", t0=0).at(steps).tolist() == [1.0, 1.0]


def test_the_encoder_is_pulled_and_decayed_by_the_fine_tuning_rule_and_the_head_is_new() -> None:
    module = objective_of("finetune").module
    assert isinstance(module, ViTClassifier)
    config = FinetuneConfig.model_validate({"regularizer": "recadam", "weight_decay": 0.3})
    pull = on_optimizer(config, module)
    assert isinstance(pull, Pull)
    optimizer = build_optimizer(module.named_parameters(), config, "finetune", regularizer=pull)
    assert isinstance(optimizer, RecAdam) and len(optimizer.param_groups) == 4
    where = {
        id(parameter): (group["weight_decay"], None if group["anchors"] is None else group["anchors"][place])
        for group in optimizer.param_groups
        for place, parameter in enumerate(group["params"])
    }
    for name, parameter in module.named_parameters():
        decay, anchor = where[id(parameter)]
        assert decay == (0.3 if is_decayed(name, parameter, "finetune") else 0.0)
        assert (anchor is None) == name.startswith("classifier.")
        if anchor is not None:
            assert torch.equal(anchor, parameter) and anchor.data_ptr() != parameter.data_ptr()
    set_learning_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_a_missing_gradient_is_no_silent_step() -> None:
    params = parameters()
    params[0].grad = torch.ones_like(params[0])
    with pytest.raises(RuntimeError, match="no gradient"):
        RecAdam([{"params": params}], LR, (0.9, 0.999), EPS, GAMMA, Annealing()).step()


def test_settings_that_diverge_or_never_begin_are_said() -> None:
    def said(**more: Any) -> list[str]:
        return advice(FinetuneConfig.model_validate({"regularizer": "recadam", **more}))

    assert said() == []
    assert "overshoots" in said(lr=3e-4)[0] and "1.5" in said(lr=3e-4)[0]
    assert "diverges" in said(lr=1e-3)[0]
    assert "t0=1000 is not reached in 150 steps" in said(steps=150)[0]
    assert advice(FinetuneConfig(lr=1.0, steps=1)) == []
