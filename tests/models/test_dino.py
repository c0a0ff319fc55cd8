"""DINOv2 with registers or SwiGLU and DINOv3 equal transformers' modules in float64, and come back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dino_samples import KINDS, images_of, make, of_visible
from packaging.version import Version
from safetensors.torch import load_file, save_file
from test_against_transformers import mae_loss
from test_bad_folders import edit_config, sentence

from sdfast.modalities.images.checkpoint import (
    classifier_from_mae,
    load_classifier,
    load_mae,
    naming_of,
    save_classifier,
    save_encoder,
    save_mae,
)
from sdfast.models.low_rank import TARGETS, add_low_rank, merge_low_rank
from sdfast.models.peft_folder import Adapter
from sdfast.models.weights import sizes_of, weights_digest

transformers = pytest.importorskip("transformers")
TIGHT = {"rtol": 0.0, "atol": 1e-9}
ALL = pytest.mark.parametrize("kind", KINDS)
NAMES = ["oak", "elm", "fir"]


def loaded(kind: Any, folder: Path, unexpected: str | None = None) -> Any:
    """transformers' model, of whose tensors none is missing, and none too many but those that begin as said."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert all(unexpected and name.startswith(unexpected) for name in report["unexpected_keys"])
    return model.double().eval()


@ALL
@pytest.mark.parametrize("size", [(28, 28), (36, 20)])
def test_hidden_states(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    theirs, images = make(kind, tmp_path), images_of(size)
    ours = load_mae(str(tmp_path), image_size=size).module.double().encoder
    expected = theirs(images).last_hidden_state
    torch.testing.assert_close(ours(images), expected, **TIGHT)


@pytest.mark.parametrize("kind", ["registers-swiglu", "dinov3"])
def test_any_layer_scale_is_folded_to_a_rounding(tmp_path: Path, kind: str) -> None:
    theirs, images = make(kind, tmp_path, exact=False), images_of((28, 28))
    ours = load_mae(str(tmp_path)).module.double().encoder(images)
    torch.testing.assert_close(ours, theirs(images).last_hidden_state, rtol=0.0, atol=2e-6)


@ALL
def test_masked_encoder_sees_patches_at_their_places(tmp_path: Path, kind: str) -> None:
    theirs, images = make(kind, tmp_path), images_of((28, 28))
    visible = torch.rand(3, 49, generator=torch.Generator().manual_seed(3)).argsort(dim=1)[:, :12]
    ours = load_mae(str(tmp_path)).module.double().encoder
    torch.testing.assert_close(ours(images, visible), of_visible(theirs, images, visible), **TIGHT)
    padded = torch.cat((visible, torch.zeros(3, 4, dtype=torch.int64)), dim=1)
    valid = torch.arange(16).expand(3, -1) < 12
    count = ours(images, visible).shape[1]
    torch.testing.assert_close(ours(images, padded, valid)[:, :count], ours(images, visible), **TIGHT)


@ALL
def test_reconstruction_of_a_saved_model_is_that_of_vit_mae_s_decoder(tmp_path: Path, kind: str) -> None:
    """ViTMAE's decoder of transformers, with the tensors `decoder.*`, on CLS and visible patches: no registers."""
    theirs, images = make(kind, tmp_path / "source"), images_of((28, 28))
    ours = load_mae(str(tmp_path / "source"))
    save_mae(ours.module, tmp_path / "ours", ours.processor)
    written = load_file(tmp_path / "ours/model.safetensors")
    config = json.loads((tmp_path / "ours/config.json").read_text())
    sizes = {key: value for key, value in config.items() if key.startswith("decoder_")}
    common = {key: config[key] for key in ("hidden_size", "image_size", "patch_size", "num_attention_heads")}
    more = {"num_hidden_layers": 1, "layer_norm_eps": config["layer_norm_eps"], "norm_pix_loss": True}
    more["qkv_bias"] = config.get("qkv_bias", config.get("query_bias"))
    mae = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**common, **sizes, **more))
    mae.save_pretrained(tmp_path / "mae")
    tensors = load_file(tmp_path / "mae/model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")}
    kept |= {name: tensor for name, tensor in written.items() if name.startswith("decoder.")}
    save_file(kept, tmp_path / "mae/model.safetensors", {"format": "pt"})
    mae = loaded(transformers.ViTMAEForPreTraining, tmp_path / "mae")
    order = torch.rand(3, 49, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    visible = order[:, :12]
    tokens = of_visible(theirs, images, visible)
    seen = torch.cat((tokens[:, :1], tokens[:, -12:]), dim=1)
    with torch.no_grad():
        expected = mae.decoder(seen, order.argsort(dim=1)).logits
    module = ours.module.double()
    prediction = module.decoder(module.encoder(images, visible), visible)
    torch.testing.assert_close(prediction, expected, **TIGHT)
    mask = torch.ones(3, 49, dtype=torch.float64).scatter(1, visible, 0.0)
    encoded = SimpleNamespace(last_hidden_state=seen, ids_restore=order.argsort(dim=1), mask=mask)
    mae.vit.forward = lambda *_, **__: SimpleNamespace(**vars(encoded), hidden_states=None, attentions=None)
    torch.testing.assert_close(mae_loss(prediction, images, mask, 4), mae(images).loss, **TIGHT)


@ALL
def test_a_saved_model_loads_in_transformers_and_comes_back(tmp_path: Path, kind: str) -> None:
    theirs, images = make(kind, tmp_path / "source"), images_of((28, 28))
    first = load_mae(str(tmp_path / "source"))
    save_mae(first.module, tmp_path / "mae", first.processor)
    again = load_mae(str(tmp_path / "mae"))
    assert again.digest == first.digest == weights_digest(again.module) and again.shape == first.shape
    assert not any("decoder" in note for note in again.notes)
    save_encoder(first.module, tmp_path / "encoder", first.processor)
    expected = theirs(images).last_hidden_state
    for folder, unexpected in (("mae", "decoder."), ("encoder", None)):
        model = loaded(transformers.AutoModel, tmp_path / folder, unexpected)
        assert type(model) is type(theirs)
        torch.testing.assert_close(model(images).last_hidden_state, expected, **TIGHT)
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / folder)
        assert (processor.size["height"], processor.size["width"]) == (28, 28)
    encoder = load_mae(str(tmp_path / "encoder")).module.encoder.state_dict()
    for name, tensor in first.module.encoder.state_dict().items():
        assert torch.equal(tensor, encoder[name]), name
    written = load_file(tmp_path / "encoder/model.safetensors")
    for name, tensor in load_file(tmp_path / "source/model.safetensors").items():
        folded = any(word in name for word in ("scale", "o_proj", "output.dense", "fc2", "weights_out", "down_proj"))
        if not folded and "mask_token" not in name:
            assert torch.equal(written[name], tensor), name


def fine_tuned(folder: Path, kind: str) -> Any:
    make(kind, folder)
    start = load_mae(str(folder))
    module = classifier_from_mae(start.module, len(NAMES), 0.0, seed=2).eval()
    with torch.no_grad():
        module.classifier.bias.add_(torch.arange(3.0))
    save_classifier(module, folder / "classifier", start.processor, NAMES, dropout=0.0)
    return module


@ALL
def test_a_classifier_comes_back_and_is_a_start(tmp_path: Path, kind: str) -> None:
    module = fine_tuned(tmp_path, kind)
    again, processor, names = load_classifier(tmp_path / "classifier")
    assert weights_digest(again) == weights_digest(module) and names == NAMES and processor.height == 28
    start = load_mae(str(tmp_path / "classifier"))
    assert torch.equal(start.module.encoder.cls_token, module.encoder.cls_token)
    assert any("classifier" in note for note in start.notes)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("dinov3")])
def test_a_classifier_gives_the_same_logits_in_transformers(tmp_path: Path, kind: str) -> None:
    """Theirs looks at CLS beside the mean of the patches, whose columns are zero."""
    module, images = fine_tuned(tmp_path, kind), images_of((28, 28))
    theirs = loaded(transformers.AutoModelForImageClassification, tmp_path / "classifier")
    torch.testing.assert_close(theirs(images).logits, module.double()(images), **TIGHT)
    assert theirs.config.id2label == dict(enumerate(NAMES))
    weight = "classifier.weight"
    tensors = load_file(tmp_path / "classifier/model.safetensors")
    assert tensors[weight].shape == (3, 64)
    tensors[weight][:, -1] = 1.0
    save_file(tensors, tmp_path / "classifier/model.safetensors", {"format": "pt"})
    assert "mean of the patches" in sentence(tmp_path / "classifier", load_classifier)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("dinov3")])
def test_a_classifier_of_dinov3_is_an_encoder_and_a_layer_beside_it(tmp_path: Path, kind: str) -> None:
    module, images = fine_tuned(tmp_path, kind), images_of((28, 28))
    encoder = loaded(transformers.AutoModel, tmp_path / "classifier", "classifier.")
    head = load_file(tmp_path / "classifier/model.safetensors")
    weight, bias = (head[f"classifier.{leaf}"].double() for leaf in ("weight", "bias"))
    logits = encoder(images).pooler_output @ weight.T + bias
    torch.testing.assert_close(module.double()(images), logits, **TIGHT)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "classifier").id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("dinov3", {"value_bias": False}, "query_bias"),
        ("dinov3", {"hidden_act": "relu"}, "relu"),
        ("dinov3", {"rope_theta": -1}, "rope_theta"),
        ("dinov3", {"num_attention_heads": 16}, "multiple of 4"),
        ("registers", {"hidden_act": "relu"}, "relu"),
    ],
)
def test_what_is_not_taken_is_one_sentence(tmp_path: Path, kind: str, change: dict[str, Any], said: str) -> None:
    make(kind, tmp_path)
    edit_config(tmp_path, **change)
    assert said in sentence(tmp_path)


def test_sizes_are_those_that_the_processor_makes(tmp_path: Path) -> None:
    """DINOv2 is published with positions for 518 and used at 224; DINOv3 has none to interpolate."""
    for kind in ("registers", "dinov3"):
        make(kind, tmp_path / kind, image_size=56)
        processor = transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
        processor.save_pretrained(tmp_path / kind)
        loaded = load_mae(str(tmp_path / kind))
        assert loaded.shape.image_size == (28, 28)
        assert any("interpolated" in note for note in loaded.notes) == (kind == "registers")


def test_coordinates_are_not_moved_in_training_and_that_is_said(tmp_path: Path) -> None:
    make("dinov3", tmp_path)
    assert any("pos_embed_rescale=2.0" in note for note in load_mae(str(tmp_path)).notes)
    edit_config(tmp_path, pos_embed_rescale=None)
    assert not any("pos_embed" in note for note in load_mae(str(tmp_path)).notes)


@ALL
def test_an_adapter_of_lora_is_pefts(tmp_path: Path, kind: str) -> None:
    """With norms and the last block trained in full; then merged."""
    peft = pytest.importorskip("peft")
    if not kind.startswith("dinov3") and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("an adapter has the names that modules of DINOv2 have in memory since")
    make(kind, tmp_path)
    loaded = load_mae(str(tmp_path))
    save_encoder(loaded.module, tmp_path / "encoder", loaded.processor)
    ours, images = loaded.module.double().eval(), images_of((28, 28))
    add_low_rank(ours, TARGETS, rank=2, alpha=3.0, seed=1, norms=True, full_blocks=1)
    with torch.no_grad():
        for parameter in ours.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wanted = ours.encoder(images)
    naming = naming_of(loaded.shape)
    assert "classifier" not in naming.names  # transformers has none that looks at CLS alone
    Adapter(ours, naming, encoder_only=True).write(ours, tmp_path / "adapter")
    base = transformers.AutoModel.from_pretrained(tmp_path / "encoder").double().eval()
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(wrapped(images).last_hidden_state, wanted, **TIGHT)
    merge_low_rank(ours)
    torch.testing.assert_close(ours.encoder(images), wanted, **TIGHT)
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == sizes_of(type(ours), loaded.shape)
