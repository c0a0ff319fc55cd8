"""What is not taken says what it is, and what is taken of the same kind of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_bad_folders import sentence

from sdfast.modalities.choose import modality_of
from sdfast.modalities.images.families import FAMILIES as IMAGES
from sdfast.modalities.texts.families import FAMILIES as TEXTS
from sdfast.models import kinds


def refused(tmp_path: Path, config: dict[str, Any]) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return sentence(tmp_path, lambda spec: modality_of(Path(spec)))


ALL_IMAGES, ALL_TEXTS = "of image models sdfast takes vit_mae, ", "of text models sdfast takes bert, "
NO_TEXTS, NO_IMAGES = "of text models", "of image models"
CASES = [
    ("resnet", "a convolutional network", ALL_IMAGES, NO_TEXTS),
    ("swinv2", "windows", ALL_IMAGES, NO_TEXTS),
    ("vitdet", "relative positions", ALL_IMAGES, NO_TEXTS),
    ("videomae", "videos", ALL_IMAGES, NO_TEXTS),
    ("sam", "segments", ALL_IMAGES, NO_TEXTS),
    ("gpt2", "causal attention", ALL_TEXTS, NO_IMAGES),
    ("llama", "causal attention", ALL_TEXTS, NO_IMAGES),
    ("t5", "an encoder with a decoder", ALL_TEXTS, NO_IMAGES),
    ("deberta-v2", "relative positions", ALL_TEXTS, NO_IMAGES),
    ("longformer", "a window", ALL_TEXTS, NO_IMAGES),
    ("albert", "share their weights", ALL_TEXTS, NO_IMAGES),
    ("mamba", "recurrent", ALL_TEXTS, NO_IMAGES),
    ("whisper", "a model of sound", ALL_IMAGES, "not there"),
    ("whisper", "a model of sound", ALL_TEXTS, "not there"),
    ("llava", "reads images and writes text", ALL_TEXTS, "not there"),
]


@pytest.mark.parametrize(("kind", "what", "taken", "absent"), CASES)
def test_kinds_that_are_known(tmp_path: Path, kind: str, what: str, taken: str, absent: str) -> None:
    text = refused(tmp_path, {"model_type": kind})
    assert f"describes a {kind} model, " in text and what in text and taken in text and absent not in text


@pytest.mark.parametrize(
    ("config", "parts", "absent"),
    [
        ({"vocab_size": 5}, ("a new model: of text models",), NO_IMAGES),
        ({"image_size": 5}, ("a new model: of image models",), NO_TEXTS),
        ({"patch_size": 5}, ("a new model: of image models",), NO_TEXTS),
        ({}, (NO_IMAGES, NO_TEXTS), ","),
        ({"vocab_size": 5, "image_size": 5}, (NO_IMAGES, NO_TEXTS), "not there"),
        ({"vocab_size": 5, "is_encoder_decoder": True}, ("an encoder with a decoder",), NO_IMAGES),
        ({"vocab_size": 5, "architectures": ["NewForCausalLM"]}, ("causal attention",), NO_IMAGES),
        ({"text_config": {}, "vision_config": {}}, ("a whole of several models", NO_IMAGES, NO_TEXTS), "not there"),
        ({"architectures": 3, "vocab_size": None}, ("of text models",), NO_IMAGES),
        ({"_diffusers_version": "0.3", "in_channels": 4}, ("a part of a diffusion model",), "not there"),
    ],
)
def test_kinds_that_nobody_knows(tmp_path: Path, config: dict[str, Any], parts: tuple[str, ...], absent: str) -> None:
    text = refused(tmp_path, {"model_type": "new", **config})
    assert "describes a new model" in text and all(part in text for part in parts)
    assert absent == "," or absent not in text


def test_the_lists_are_the_tables(tmp_path: Path) -> None:
    text = refused(tmp_path, {"model_type": "new"})
    names = [*list(IMAGES), *list(TEXTS)]
    assert all(f" {name}" in text for name in names)


def test_what_is_taken_is_described_as_nothing_else() -> None:
    assert set(kinds._OF_TYPE).isdisjoint({*IMAGES, *TEXTS})


def test_kinds_are_those_of_transformers() -> None:
    auto = pytest.importorskip("transformers.models.auto.configuration_auto")
    if not {"gemma4", "gte", "molmo2"} <= set(auto.CONFIG_MAPPING_NAMES):
        pytest.skip("an older transformers, which has not all of them")
    assert set(kinds._OF_TYPE) <= set(auto.CONFIG_MAPPING_NAMES)


def test_each_kind_is_in_one_row_that_says_what_it_is() -> None:
    assert sum(len(names.split()) for names in kinds._TYPES.values()) == len(kinds._OF_TYPE)
    assert set(kinds._TYPES) <= set(kinds._WHAT) and set(kinds._ARCHITECTURES) <= set(kinds._WHAT)


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("resnet50", "a convolutional network"),
        ("resnest14d", "a convolutional network"),
        ("convnextv2_tiny", "a convolutional network"),
        ("swin_tiny_patch4_window7_224", "stages or windows"),
        ("eva02_base_patch14_224", "relative positions"),
        ("unheard_of", ""),
    ],
)
def test_architectures_of_timm(architecture: str, what: str) -> None:
    words = kinds.timm_words(architecture)
    assert what in words and bool(words) == bool(what)


def test_parts_of_diffusers(tmp_path: Path) -> None:
    text = refused(tmp_path, {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.3"})
    assert "describes a UNet2DConditionModel model, a part of a diffusion model" in text
