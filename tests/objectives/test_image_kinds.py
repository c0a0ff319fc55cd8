"""Encoders that are no plain ViT: shortcuts change nothing, and a stage that was stopped goes on bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import small_stage
import torch
from resuming import check_resumes
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
    "DINOv2 with registers": replace(small_stage.SHAPE, registers=2),
    "DINOv3": replace(
        small_stage.SHAPE,
        encoder=replace(ENCODER, style=Style("silu", gated=True, key_bias=False)),
        learned_positions=False,
        rotary=100.0,
        registers=2,
    ),
    "BEiT": replace(PLAIN, encoder=replace(ENCODER, style=Style(key_bias=False)), pool="mean_then_norm"),
}


@pytest.mark.parametrize(
    ("shape", "scenario"),
    [
        *((shape, scenario) for shape in ("CLIP", "SigLIP", "BEiT") for scenario in (DISTILL, PATCHES, BERNOULLI)),
        ("SigLIP", ALL_TOKENS),
        *((shape, scenario) for shape in ("DINOv2 with registers", "DINOv3") for scenario in (DISTILL, BERNOULLI)),
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


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "CLIP's classifier"])
def test_a_stopped_stage_goes_on_bit_for_bit(shape: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(small_stage, "SHAPE", SHAPES[shape])
    check_resumes(lambda folder: small_stage.trainer_of(small_stage.objective_of("distill"), folder), tmp_path)


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
