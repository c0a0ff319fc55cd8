"""MARS-PGM: rows within their radius, shrunk towards the anchor one by one, and otherwise left alone."""

from __future__ import annotations

import pytest
import torch
from small_stage import objective_of

from sdfast.config import FinetuneConfig
from sdfast.engine.optim import build_optimizer
from sdfast.modalities.images.model import ViTClassifier
from sdfast.regularizers.choose import on_optimizer
from sdfast.regularizers.mars import Constraint, Mars


def pair(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.nn.Parameter, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    anchor = torch.randn(shape, generator=generator, dtype=dtype)
    size = torch.linspace(0.01, 9, shape[0], dtype=dtype).view(-1, *(1 for _ in shape[1:]))
    return torch.nn.Parameter(anchor + size * torch.randn(shape, generator=generator, dtype=dtype)), anchor


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 2), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_row_is_what_the_definition_says(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, anchor = pair(shape, dtype)
    before, radius = weight.detach().clone(), 2.0
    Mars([Constraint(weight, anchor, radius)]).project()
    shrunk = 0
    for row in range(shape[0]):
        t = before[row] - anchor[row]
        norm = float(t.abs().sum())
        if norm <= radius:
            assert torch.equal(weight[row], before[row])  # bit for bit
        else:
            shrunk += 1
            torch.testing.assert_close(weight[row].detach(), anchor[row] + t / max(1.0, norm / radius))
            assert float((weight[row].detach() - anchor[row]).abs().sum()) == pytest.approx(radius, rel=1e-5)
    assert 0 < shrunk < shape[0]


def test_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([[4.0, 1.0], [0.5, -1.0], [0.0, 8.0]]))
    anchor = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    Mars([Constraint(weight, anchor, 2.0)]).project()
    # row 0: t = (3, 1), norm 4, halved; row 1: norm 1.5, kept; row 2: t = (0, 6), a third of it
    assert weight.tolist() == [[2.5, 0.5], [0.5, -1.0], [0.0, 4.0]]


def test_projecting_twice_is_projecting_once() -> None:
    weight, anchor = pair((6, 5))
    mars = Mars([Constraint(weight, anchor, 1.5)])
    mars.project()
    once = weight.detach().clone()
    mars.project()
    torch.testing.assert_close(weight.detach(), once, rtol=1e-14, atol=0)


def test_an_infinite_radius_changes_nothing_and_none_is_refused() -> None:
    weight, anchor = pair((6, 5), torch.float32)
    before = weight.detach().clone()
    Mars([Constraint(weight, anchor, float("inf"))]).project()
    assert torch.equal(weight, before)
    for radius in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            Mars([Constraint(weight, anchor, radius)])


def test_after_every_step_the_encoder_is_near_its_start_and_the_head_near_zero() -> None:
    module = objective_of("finetune").module
    assert isinstance(module, ViTClassifier)
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    config = FinetuneConfig.model_validate(
        {"regularizer": "mars", "lr": 0.05, "mars": {"radius": 0.1, "head_radius": 0.15}}
    )
    mars = on_optimizer(config, module)
    assert isinstance(mars, Mars)
    optimizer = build_optimizer(module.named_parameters(), config, "finetune", regularizer=mars)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        bound = set()
        for name, value in module.named_parameters():
            drift = value.detach() - (0 if name == "classifier.weight" else start[name])
            linear = name.endswith("weight") and value.ndim > 1
            radius = 0.15 if name == "classifier.weight" else 0.1
            norm = float(drift.flatten(1).abs().sum(1).max()) if value.ndim > 1 else float(drift.abs().sum())
            if linear:
                assert norm <= radius * (1 + 1e-5), name
                bound.add(name)
            else:
                assert norm > 0.15, name  # biases, LayerNorms, CLS and positions are free
        assert {"encoder.patch_embed.weight", "encoder.blocks.0.attn.qkv.weight", "classifier.weight"} <= bound
        assert len(bound) == 2 + 4 * 2
