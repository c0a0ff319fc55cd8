"""Shortcuts change nothing either where no CLS token stands for an image, or what does comes before the last norm."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_stage
import torch
from test_shortcuts import NO_SHORTCUTS, SCENARIOS, Scenario, distance, trajectory, ways

from sdfast.modalities.images.model import ViTClassifier, ViTShape
from sdfast.models.blocks import Style, TransformerShape

DISTILL, PATCHES, ALL_TOKENS, BERNOULLI, FINETUNE = (SCENARIOS[number] for number in (1, 2, 3, 4, 7))
ENCODER = TransformerShape(32, 2, 2, 64, Style("gelu_tanh"))
PLAIN = replace(small_stage.SHAPE, encoder=ENCODER)
SHAPES = {
    "CLIP": replace(PLAIN, pre_norm=True, patch_bias=False),
    "CLIP's classifier": replace(PLAIN, pre_norm=True, patch_bias=False, pool="raw_mean"),
    "SigLIP": replace(PLAIN, cls=False, pool="mean"),
    "BEiT": replace(PLAIN, encoder=replace(ENCODER, style=Style(key_bias=False)), pool="mean_then_norm"),
}


@pytest.mark.parametrize(
    ("shape", "scenario"),
    [
        *((shape, scenario) for shape in ("CLIP", "SigLIP", "BEiT") for scenario in (DISTILL, PATCHES, BERNOULLI)),
        ("SigLIP", ALL_TOKENS),
        *((shape, FINETUNE) for shape in ("CLIP's classifier", "SigLIP", "BEiT")),
    ],
    ids=str,
)
def test_steps_in_float64(shape: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_stage, "SHAPE", SHAPES[shape])
    run = trajectory.__wrapped__  # the cache knows nothing of the shape
    plain = run(scenario, NO_SHORTCUTS, attention="reference", steps=8)
    assert plain[1].keys() >= {"encoder.norm.weight"} and len(plain[0]) == 8
    for shortcuts in ways(scenario):
        losses, weights = distance(run(scenario, shortcuts, steps=8), plain)
        assert losses <= 1e-9 and weights <= 1e-9, f"{shortcuts}: loss {losses:.3g}, weight {weights:.3g}"


def test_the_norm_that_nothing_reads_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_stage, "SHAPE", SHAPES["CLIP's classifier"])
    state = trajectory.__wrapped__(FINETUNE, steps=3)[1]
    start = small_stage.objective_of("finetune", torch.float64).module.state_dict()
    moved = {name for name in state if not torch.equal(state[name], start[name])}
    assert moved == set(state) - {"encoder.norm.weight", "encoder.norm.bias"}


def test_what_stands_for_an_image_comes_before_the_norm() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 16, 16)
    found = {}
    for pool in ("mean", "mean_then_norm", "raw_mean"):
        shape: ViTShape = replace(PLAIN, pool=pool)
        classifier = ViTClassifier(shape, 3).eval()
        small_stage.initialise(classifier, 2)
        encoder = classifier.encoder
        raw = encoder.encode(encoder.view(encoder.embed(pixels), layer=2))[0][:, 1:]
        expected = {
            "mean": encoder.norm(raw).mean(1),
            "mean_then_norm": encoder.norm(raw.mean(1)),
            "raw_mean": raw.mean(1),
        }
        torch.testing.assert_close(classifier(pixels), classifier.classifier(expected[pool]))
        found[pool] = classifier(pixels)
    assert not torch.allclose(found["mean"], found["mean_then_norm"])
