"""Features that are standardised before a head: their moments, and what is left when they are folded into it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from small_stage import SHAPE, initialise
from small_text_stage import SHAPES, texts
from torch import Tensor, nn

from sdfast.modalities.images.model import ViTClassifier
from sdfast.modalities.texts.modern import text_classifier
from sdfast.models.standardised import (
    Moments,
    Standard,
    first_layer,
    fold_standardised,
    mean_and_deviation,
    unstandardised_state,
)
from sdfast.objectives.choose import finish, finished_state

KINDS = ["images", *(kind for kind in SHAPES if kind != "modernbert")]  # whose head has no bias


def case(kind: str) -> tuple[Any, Any]:
    """A classifier in float64 and evaluation mode, and what it can be given."""
    if kind == "images":
        module: Any = ViTClassifier(SHAPE, 4)
        inputs: Any = torch.randn(6, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    else:
        module, inputs = text_classifier(SHAPES[kind], 4), texts(torch.arange(6))
    initialise(module, 2)
    return module.double().eval(), inputs


def standardised(module: Any, inputs: Any) -> dict[str, Tensor]:
    """Standardise what a head is given for the inputs, and what that is."""
    module.standard = Moments(first_layer(module).in_features)
    seen: dict[str, Tensor] = {}
    hook = module.standard.register_forward_hook(lambda _, given, out: seen.update(features=out))
    with torch.no_grad():
        module(inputs)
    hook.remove()
    mean, deviation = mean_and_deviation(module.standard.count, module.standard.sums)
    module.standard = Standard(mean, deviation)
    return seen | {"mean": mean, "deviation": deviation}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_head_says_the_same(kind: str) -> None:
    module, inputs = case(kind)
    plain, names = module(inputs), set(module.state_dict())
    found = standardised(module, inputs)
    features = found["features"].flatten(0, -2)
    given = module.standard(features)
    torch.testing.assert_close(given.mean(dim=0), torch.zeros_like(found["mean"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(given.std(dim=0, correction=0), torch.ones_like(found["mean"]), rtol=0, atol=1e-5)
    wanted, state = module(inputs), finished_state(module.state_dict())
    assert not torch.allclose(wanted, plain)
    shared = copy.deepcopy(module)
    first_layer(shared).weight = first_layer(module).weight
    finish(module)
    assert set(state) == set(module.state_dict()) == names and isinstance(module.standard, nn.Identity)
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    torch.testing.assert_close(module(inputs), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(shared(inputs), wanted, rtol=0, atol=0)  # whose weights are as they were


def test_a_head_without_is_left_alone() -> None:
    module, inputs = case("images")
    before, wanted = dict(module.state_dict()), module(inputs)
    fold_standardised(module)
    assert torch.equal(module(inputs), wanted)
    assert unstandardised_state(before) == before and not any("standard" in name for name in before)


def test_features_that_lie_far_from_0_are_folded_in_float32() -> None:
    """Means two hundred times the deviations, as of a CLS that hardly varies: errors of rounding alone."""
    generator = torch.Generator().manual_seed(1)
    features = 10 + 0.05 * torch.randn(500, 64, generator=generator)
    module: Any = ViTClassifier(SHAPE, 4)
    module.classifier = nn.Linear(64, 4)
    moments = Moments(64)
    for some in features.split(77):
        assert moments(some) is some
    mean, deviation = mean_and_deviation(moments.count, moments.sums)
    np.testing.assert_allclose(mean, features.double().mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, features.double().std(dim=0, correction=0), rtol=1e-9)
    module.standard = Standard(mean.float(), deviation.float())
    with torch.no_grad():
        wanted = module.classifier(module.standard(features))
        fold_standardised(module)
        assert float((module.classifier(features) - wanted).abs().max()) < 2e-3 * float(wanted.std())


def test_what_does_not_vary_is_divided_by_1() -> None:
    rows = torch.tensor([[3.0, 1.0, 0.0, 0.1], [3.0, 1.0 + 1e-6, 0.0, -0.1], [3.0, 1.0, 0.0, 0.3]])
    moments = Moments(4)
    moments(rows)
    mean, deviation = mean_and_deviation(moments.count, moments.sums)
    assert deviation[:3].tolist() == [1, 1, 1] and 0 < float(deviation[3]) < 1
    assert Standard(mean.float(), deviation.float())(rows).abs().max() < 2


def test_features_of_half_precision_are_widened_first() -> None:
    mean = torch.full((4,), 10.0)
    given = torch.full((2, 4), 10.0625, dtype=torch.bfloat16)
    assert torch.equal(Standard(mean, mean / 100)(given), torch.full((2, 4), 0.625))
