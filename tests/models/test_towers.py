"""Towers without CLS or with norms and activations of their own equal transformers, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from tower_samples import expected_of, save_tower

from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import (
    classifier_from_mae,
    load_classifier,
    load_mae,
    naming_of,
    save_classifier,
    save_encoder,
    save_mae,
)
from sdfast.models.low_rank import add_low_rank
from sdfast.models.peft_folder import Adapter

transformers = pytest.importorskip("transformers")
TIGHT = {"rtol": 0.0, "atol": 1e-9}
ABSOLUTE = {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0}
SAMPLES = [
    pytest.param("CLIPVisionModel", {}, id="clip"),
    pytest.param("CLIPVisionModel", {"hidden_act": "gelu", "layer_norm_eps": 1e-2, "num_channels": 1}, id="clip-gelu"),
    pytest.param("CLIPModel", {}, id="clip-whole"),
    pytest.param("MetaClip2Model", {}, id="metaclip2-whole"),
    pytest.param("SiglipVisionModel", {}, id="siglip"),
    pytest.param("SiglipVisionModel", {"vision_use_head": False, "num_channels": 1}, id="siglip-no-head"),
    pytest.param("SiglipModel", {}, id="siglip-whole"),
    pytest.param("SiglipModel", {"image_size": 30}, id="siglip-cut"),  # as so400m-patch14-384: 384 is 27.4 patches
    pytest.param("IJepaModel", {}, id="ijepa"),
    pytest.param("IJepaModel", {"image_size": [20, 28], "qkv_bias": False}, id="ijepa-wide"),
    pytest.param("ViTMSNModel", {}, id="msn"),
    pytest.param("BeitModel", {**ABSOLUTE, "layer_scale_init_value": 0.5}, id="beit"),
    pytest.param("BeitModel", {**ABSOLUTE, "use_mean_pooling": False}, id="beit-cls"),
    pytest.param("Data2VecVisionForImageClassification", ABSOLUTE, id="data2vec"),
]
WRITTEN = {  # as which classes a tower is written, an encoder and a classifier
    "CLIPVisionModel": ("CLIPVisionModel", "CLIPForImageClassification"),
    "SiglipVisionModel": ("SiglipVisionModel", "SiglipForImageClassification"),
    "IJepaModel": ("IJepaModel", "IJepaForImageClassification"),
    "BeitModel": ("BeitModel", "BeitForImageClassification"),
}
OTHER: dict[str, dict[str, Any]] = {  # than the usual settings
    "CLIPVisionModel": {"hidden_act": "gelu"},
    "SiglipVisionModel": {},
    "IJepaModel": {"qkv_bias": False, "image_size": [20, 28]},
    "BeitModel": ABSOLUTE,
}


def pictures(config: dict[str, Any]) -> Tensor:
    side = config.get("image_size", 28)
    height, width = side if isinstance(side, list) else (side, side)
    size = (3, config.get("num_channels", 3), height, width)
    return torch.randn(size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize(("name", "config"), SAMPLES)
def test_tokens_and_what_is_matched_equal_transformers(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    tower, images = save_tower(name, tmp_path / "m", **config), pictures(config)
    tokens, matched = expected_of(name, tower, images)
    loaded = load_mae(str(tmp_path / "m"))
    encoder = loaded.module.double().eval().encoder
    images = images[..., : loaded.shape.image_size[0], : loaded.shape.image_size[1]]
    torch.testing.assert_close(encoder(images), tokens, **TIGHT)
    torch.testing.assert_close(encoder.features(images, "cls"), matched, **TIGHT)
    torch.testing.assert_close(encoder.features(images, "patch"), tokens[:, -loaded.shape.patches :], **TIGHT)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_folders_load_in_transformers_and_hold_every_tensor(tmp_path: Path, name: str) -> None:
    tower, images = save_tower(name, tmp_path / "m", **OTHER[name]), pictures(OTHER[name])
    tokens, matched = expected_of(name, tower, images)
    loaded = load_mae(str(tmp_path / "m"))
    save_mae(loaded.module, tmp_path / "out", loaded.processor)
    save_encoder(loaded.module, tmp_path / "out" / "encoder", loaded.processor)
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "m" / "model.safetensors")
    kept = {key: tensor for key, tensor in theirs.items() if not key.startswith("head.")}
    assert all(torch.equal(ours.get(f"vision_model.{key}", ours.get(key)), tensor) for key, tensor in kept.items())
    assert load_mae(str(tmp_path / "out")).digest == loaded.digest
    for folder, extra in ((tmp_path / "out", True), (tmp_path / "out" / "encoder", False)):
        model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
        assert type(model).__name__ == WRITTEN[name][0] and not info["missing_keys"]
        assert bool(info["unexpected_keys"]) == extra
        assert all(key.startswith("decoder.") for key in info["unexpected_keys"])
        again = expected_of(name, model.eval(), images)
        torch.testing.assert_close(again, (tokens, matched), **TIGHT)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_classifier_gives_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    save_tower(name, tmp_path / "m", **OTHER[name])
    loaded, images = load_mae(str(tmp_path / "m")), pictures(OTHER[name])
    classifier = classifier_from_mae(loaded.module, 3, 0.1, seed=5)
    save_classifier(classifier, tmp_path / "c", loaded.processor, ["a", "b", "c"], 0.1)
    again, _, names = load_classifier(tmp_path / "c")
    assert names == ["a", "b", "c"]
    state = classifier.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    kind = transformers.AutoModelForImageClassification
    model, info = kind.from_pretrained(tmp_path / "c", output_loading_info=True)
    assert type(model).__name__ == WRITTEN[name][1]
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = model.double().eval()(images).logits
    again = again.double().eval()
    for cls_tail in (True, False):
        torch.testing.assert_close(again(images, cls_tail), expected, **TIGHT)


def test_a_classifier_is_a_start_as_well(tmp_path: Path) -> None:
    """With every tensor of its encoder."""
    save_tower("CLIPVisionModel", tmp_path / "m")
    loaded = load_mae(str(tmp_path / "m"))
    classifier = classifier_from_mae(loaded.module, 3, 0.0, seed=5)
    save_classifier(classifier, tmp_path / "c", loaded.processor, ["a", "b", "c"], 0.0)
    state = load_mae(str(tmp_path / "c")).module.encoder.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.module.encoder.state_dict().items())


@pytest.mark.parametrize("name", ["CLIPVisionModel", "SiglipVisionModel"])
def test_images_that_are_not_square_are_taken_and_equal_transformers(tmp_path: Path, name: str) -> None:
    """Given the positions that were interpolated, as its tower makes none for such images by itself."""
    tower, images = save_tower(name, tmp_path / "m"), pictures({"image_size": [20, 28]})
    loaded = load_mae(str(tmp_path / "m"), image_size=(20, 28))
    assert any("cannot use the model" in note for note in loaded.notes)
    encoder = loaded.module.double().eval().encoder
    tower.embeddings.interpolate_pos_encoding = lambda *_: encoder.position_embeddings
    tokens, matched = expected_of(name, tower, images, interpolate_pos_encoding=True)
    torch.testing.assert_close(encoder(images), tokens, **TIGHT)
    torch.testing.assert_close(encoder.features(images, "cls"), matched, **TIGHT)
    save_mae(loaded.module.float(), tmp_path / "out", loaded.processor)
    assert load_mae(str(tmp_path / "out")).digest == loaded.digest


def test_what_is_not_used_and_what_stands_for_the_image_is_said(tmp_path: Path) -> None:
    save_tower("SiglipModel", tmp_path / "m")
    notes = " ".join(load_mae(str(tmp_path / "m")).notes)
    assert "not used: logit_bias" in notes and "mean of the patches" in notes


def test_an_activation_that_is_not_there_is_named(tmp_path: Path) -> None:
    save_tower("SiglipVisionModel", tmp_path / "m", hidden_act="relu")
    with pytest.raises(UserError, match="activation relu"):
        load_mae(str(tmp_path / "m"))


@pytest.mark.parametrize("setting", ["use_relative_position_bias", "use_shared_relative_position_bias"])
def test_relative_positions_are_refused(tmp_path: Path, setting: str) -> None:
    """As all of the published models have them."""
    save_tower("BeitModel", tmp_path / "m", **{setting: True})
    with pytest.raises(UserError, match=f"relative positions in its attention .{setting}"):
        load_mae(str(tmp_path / "m"))


@pytest.mark.parametrize("name", WRITTEN)
@torch.no_grad()
def test_an_adapter_is_that_of_peft(tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    save_tower(name, tmp_path / "m", **OTHER[name])
    loaded, images = load_mae(str(tmp_path / "m")), pictures(OTHER[name])
    save_encoder(loaded.module, tmp_path / "encoder", loaded.processor)
    ours = loaded.module.double().eval()
    add_low_rank(ours, ("query", "value", "proj", "fc1", "fc2"), rank=2, alpha=3.0, seed=1)
    for parameter in ours.encoder.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    Adapter(ours, naming_of(loaded.shape), encoder_only=True).write(ours, tmp_path / "adapter")
    base = transformers.AutoModel.from_pretrained(tmp_path / "encoder").double()
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens, matched = ours.encoder(images), ours.encoder.features(images, "cls")
    torch.testing.assert_close(expected_of(name, wrapped, images), (tokens, matched), **TIGHT)
