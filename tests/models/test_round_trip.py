"""What sdfast writes: loads in transformers without a missing or unexpected key, and in sdfast bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from test_bad_folders import edit_config
from torch import Tensor

from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import (
    classifier_from_mae,
    fresh_mae,
    load_classifier,
    load_mae,
    save_classifier,
    save_encoder,
    save_mae,
)
from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier, ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.models.blocks import TransformerShape
from sdfast.models.weights import weights_digest

TIGHT = {"rtol": 0.0, "atol": 1e-10}
PROCESSOR = ImageProcessor(28, 28, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
GREY = ImageProcessor(28, 28, (0.3,), (0.35,))
NAMES = ["oak", "elm", "fir", "yew", "ash"]


def scrambled_mae(channels: int = 3, seed: int = 1, **shape: Any) -> MaskedAutoencoder:
    sizes: dict[str, Any] = {"image_size": (28, 28), "norm_eps": 1e-5, **shape}
    encoder, decoder = TransformerShape(32, 2, 4, 48), TransformerShape(24, 2, 3, 40)
    module = fresh_mae(ViTShape(patch_size=4, channels=channels, encoder=encoder, decoder=decoder, **sizes), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def scrambled_classifier(channels: int = 3, **shape: Any) -> ViTClassifier:
    return classifier_from_mae(scrambled_mae(channels, **shape), len(NAMES), 0.1, seed=2)


def loaded_cleanly(kind: Any, folder: Path) -> torch.nn.Module:
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if len(value)} == {}
    return model.double().eval()


@pytest.mark.parametrize("shape", [{}, {"channels": 1}, {"qkv_bias": False}, {"norm_eps": 1e-2}])
def test_mae_in_transformers(tmp_path: Path, pixels: Tensor, shape: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    ours = scrambled_mae(**shape)
    save_mae(ours, tmp_path, GREY if shape.get("channels") == 1 else PROCESSOR)
    images = pixels[:, : ours.shape.channels]
    noise = torch.rand(3, 49, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    visible = noise.argsort(dim=1)[:, :12]

    theirs = loaded_cleanly(transformers.ViTMAEForPreTraining, tmp_path)
    output = theirs(images, noise=noise)
    ours.double()
    torch.testing.assert_close(ours.decoder(ours.encoder(images, visible), visible), output.logits, **TIGHT)
    assert theirs.config.norm_pix_loss and theirs.config.mask_ratio == 0.75
    loaded_cleanly(transformers.AutoModelForPreTraining, tmp_path)


@pytest.mark.parametrize(
    "shape", [{}, {"qkv_bias": False}, {"norm_eps": 1e-2}, {"image_size": (28, 56)}, {"channels": 1}]
)
def test_encoder_in_transformers(tmp_path: Path, pixels: Tensor, shape: dict[str, Any]) -> None:
    """`AutoModel` gives every token of the clean image, twice the same; of the whole MAE it gives other things."""
    transformers = pytest.importorskip("transformers")
    ours = scrambled_mae(**shape)
    grey = shape.get("channels") == 1
    save_encoder(ours, tmp_path, GREY if grey else PROCESSOR)
    theirs = loaded_cleanly(transformers.AutoModel, tmp_path)
    assert type(theirs).__name__ == "ViTModel"
    images = torch.nn.functional.interpolate(pixels[:, : ours.shape.channels], size=ours.shape.image_size)
    wanted = ours.double().encoder(images)
    seen = images.expand(-1, 3, -1, -1)
    output = theirs(seen)
    torch.testing.assert_close(output.last_hidden_state, wanted, **({"rtol": 0.0, "atol": 1e-6} if grey else TIGHT))
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert torch.equal(theirs(seen).last_hidden_state, output.last_hidden_state)
    size = transformers.AutoImageProcessor.from_pretrained(tmp_path).size
    assert (size["height"], size["width"]) == (28, 28)
    loaded_without_head = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=4)
    assert torch.equal(loaded_without_head.vit.layernorm.weight.double(), ours.encoder.norm.weight)


def test_encoder_of_images_of_another_size(tmp_path: Path, pixels: Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    save_mae(scrambled_mae(), tmp_path, PROCESSOR)
    ours = load_mae(str(tmp_path), image_size=(36, 20))
    save_encoder(ours.module, tmp_path / "encoder", ours.processor)
    theirs = loaded_cleanly(transformers.AutoModel, tmp_path / "encoder")
    images = torch.nn.functional.interpolate(pixels, size=(36, 20))
    torch.testing.assert_close(theirs(images).last_hidden_state, ours.module.double().encoder(images), **TIGHT)


@pytest.mark.parametrize("channels", [3, 1])
def test_encoder_bit_for_bit(tmp_path: Path, channels: int) -> None:
    ours = scrambled_mae(channels)
    save_encoder(ours, tmp_path, PROCESSOR if channels == 3 else GREY)
    again = load_mae(str(tmp_path))
    assert again.processor == (PROCESSOR if channels == 3 else GREY) and again.shape.channels == channels
    for name, tensor in ours.encoder.state_dict().items():
        assert torch.equal(tensor, again.module.encoder.state_dict()[name]), name


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({"norm_pix_loss": False, "mask_ratio": 0.5}, {"norm_pix": False, "mask_ratio": 0.5}),
        ({"norm_pix_loss": True, "mask_ratio": 0.0}, {"norm_pix": True}),
    ],
)
def test_how_a_checkpoint_was_pre_trained_is_known(tmp_path: Path, settings: Any, own: dict[str, Any]) -> None:
    save_mae(scrambled_mae(), tmp_path, PROCESSOR, **settings)
    assert load_mae(str(tmp_path)).trained_with == own


@pytest.mark.parametrize("missing", ["norm_pix_loss", "mask_ratio"])
def test_what_a_configuration_leaves_out_is_as_transformers_fills_it(tmp_path: Path, missing: str) -> None:
    transformers = pytest.importorskip("transformers")
    save_mae(scrambled_mae(), tmp_path, PROCESSOR, mask_ratio=0.6)
    edit_config(tmp_path, **{missing: None})
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    expected = {"norm_pix": theirs.norm_pix_loss, "mask_ratio": theirs.mask_ratio}
    assert load_mae(str(tmp_path)).trained_with == expected


def test_settings_that_have_no_place_are_said(tmp_path: Path) -> None:
    save_mae(scrambled_mae(), tmp_path, PROCESSOR)
    edit_config(tmp_path, hidden_dropout_prob=0.1, initializer_range=0.01, attention_probs_dropout_prob=0.0)
    (note,) = load_mae(str(tmp_path)).notes
    assert "hidden_dropout_prob=0.1, initializer_range=0.01" in note and "attention" not in note
    edit_config(tmp_path, hidden_dropout_prob=0.0, initializer_range=0.02)
    path = tmp_path / "preprocessor_config.json"
    processor = json.loads(path.read_text())
    path.write_text(json.dumps({**processor, "resample": 1, "size": {"height": 32, "width": 40}, "crop_pct": 0.9}))
    notes = " ".join(load_mae(str(tmp_path)).notes)
    assert "Lanczos interpolation" in notes and "a centre crop" in notes
    assert "images of 32 x 40" in notes and "28 x 28 were taken" in notes
    path.write_text(json.dumps({**processor, "do_flip_channel_order": True}))
    with pytest.raises(UserError, match=r"do_flip_channel_order .* BGR"):
        load_mae(str(tmp_path))


def test_mae_bit_for_bit(tmp_path: Path) -> None:
    ours = scrambled_mae()
    save_mae(ours, tmp_path, PROCESSOR)
    again = load_mae(str(tmp_path))
    assert again.notes == []
    assert again.processor == PROCESSOR
    assert again.shape == ours.shape == again.module.shape
    assert again.digest == weights_digest(ours) == weights_digest(again.module)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
    first = (tmp_path / "model.safetensors").read_bytes()
    save_mae(again.module, tmp_path / "second", PROCESSOR)
    assert (tmp_path / "second/model.safetensors").read_bytes() == first


def test_mae_file_has_the_names_of_transformers_4(tmp_path: Path) -> None:
    """The names that the modules of transformers 4 have, and that 5 renames while loading."""
    save_mae(scrambled_mae(), tmp_path, PROCESSOR)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    block = {
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
        "layernorm_before",
        "layernorm_after",
    }
    leaves = ("weight", "bias")
    expected = {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}
    expected |= {"decoder.mask_token", "decoder.decoder_pos_embed"}
    plain = ["vit.embeddings.patch_embeddings.projection", "vit.layernorm"]
    plain += ["decoder.decoder_embed", "decoder.decoder_norm", "decoder.decoder_pred"]
    plain += [f"vit.encoder.layer.{n}.{part}" for n in range(2) for part in block]
    plain += [f"decoder.decoder_layers.{n}.{part}" for n in range(2) for part in block]
    assert names == expected | {f"{stem}.{leaf}" for stem in plain for leaf in leaves}


@pytest.mark.parametrize("shape", [{}, {"qkv_bias": False}, {"image_size": (28, 56)}])
def test_classifier_in_transformers(tmp_path: Path, pixels: Tensor, shape: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    ours = scrambled_classifier(**shape)
    save_classifier(ours, tmp_path, PROCESSOR, NAMES, dropout=0.1)
    theirs = loaded_cleanly(transformers.AutoModelForImageClassification, tmp_path)
    assert type(theirs).__name__ == "ViTForImageClassification"
    assert theirs.config.hidden_dropout_prob == 0.1
    assert theirs.config.id2label == dict(enumerate(NAMES))
    assert theirs.config.label2id == {name: number for number, name in enumerate(NAMES)}
    images = torch.nn.functional.interpolate(pixels, size=ours.shape.image_size)
    torch.testing.assert_close(ours.double().eval()(images), theirs(images).logits, **TIGHT)


def test_dropout_acts_where_transformers_has_it(tmp_path: Path) -> None:
    """Same count and probability of dropouts (their random streams cannot be compared)."""
    transformers = pytest.importorskip("transformers")
    ours = scrambled_classifier()
    save_classifier(ours, tmp_path, PROCESSOR, NAMES, dropout=0.1)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    acted = {"ours": 0, "theirs": 0}
    for side, model in (("ours", ours), ("theirs", theirs)):
        for module in model.train().modules():
            if isinstance(module, torch.nn.Dropout):
                assert module.p == 0.1
                module.register_forward_hook(lambda *_, side=side: acted.__setitem__(side, acted[side] + 1))
        model(torch.zeros(1, 3, 28, 28))
    assert acted["ours"] == acted["theirs"] == 5


@pytest.mark.parametrize("channels", [3, 1])
def test_classifier_bit_for_bit(tmp_path: Path, channels: int) -> None:
    ours = scrambled_classifier(channels)
    processor = PROCESSOR if channels == 3 else GREY
    save_classifier(ours, tmp_path, processor, NAMES, dropout=0.25)
    again, again_processor, names = load_classifier(tmp_path)
    assert names == NAMES
    assert again_processor == processor
    assert again.encoder.dropout.p == 0.25
    assert weights_digest(again) == weights_digest(ours)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_class_names_survive_any_spelling(tmp_path: Path) -> None:
    names = ["n°1", "a/b", '"x"', "10", "犬"]
    save_classifier(scrambled_classifier(), tmp_path, PROCESSOR, names, dropout=0.0)
    assert load_classifier(tmp_path)[2] == names
    for wrong in (["a"], ["a", "a", "b", "c", "d"]):
        with pytest.raises(UserError, match="5 outputs"):
            save_classifier(scrambled_classifier(), tmp_path, PROCESSOR, wrong, dropout=0.0)


@pytest.mark.parametrize("channels", [3, 1])
def test_pipeline_agrees(tmp_path: Path, channels: int) -> None:
    """`transformers.pipeline` on files of the model's size, RGB and grey, gives our probabilities."""
    transformers, image = pytest.importorskip("transformers"), pytest.importorskip("PIL.Image")
    processor = PROCESSOR if channels == 3 else GREY
    ours = scrambled_classifier(channels).eval()
    save_classifier(ours, tmp_path / "model", processor, NAMES, dropout=0.1)
    pipe = transformers.pipeline("image-classification", model=str(tmp_path / "model"), top_k=len(NAMES))
    raw = torch.randint(0, 256, (4, 28, 28, channels), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    mean, std = torch.tensor(processor.mean), torch.tensor(processor.std)
    with torch.no_grad():
        probabilities = ours(((raw / 255 - mean) / std).permute(0, 3, 1, 2)).softmax(-1)
    for row, expected in zip(raw, probabilities, strict=True):
        path = tmp_path / "image.png"
        image.fromarray(row.numpy() if channels == 3 else row[:, :, 0].numpy()).save(path)
        answer = pipe(str(path))
        assert answer[0]["label"] == NAMES[int(expected.argmax())]
        scores = torch.tensor([{item["label"]: item["score"] for item in answer}[name] for name in NAMES])
        torch.testing.assert_close(scores, expected, rtol=0.0, atol=1e-5)


def test_grey_classifier_is_one_channel_again_as_a_starting_point(tmp_path: Path) -> None:
    ours = scrambled_classifier(1)
    save_classifier(ours, tmp_path, GREY, NAMES, dropout=0.0)
    assert json.loads((tmp_path / "config.json").read_text())["num_channels"] == 3
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_mean"] == [0.3] * 3
    start = load_mae(str(tmp_path))
    assert start.shape.channels == 1 and start.processor == GREY
    assert torch.equal(start.module.encoder.patch_embed.weight, ours.encoder.patch_embed.weight)
    assert any("classifier.weight" in note for note in start.notes)


def test_classifier_from_mae_copies_the_encoder_and_draws_the_head() -> None:
    mae = scrambled_mae()
    before = weights_digest(mae)
    torch.manual_seed(3)
    expected_draw = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (classifier_from_mae(mae, 1000, 0.1, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.rand(2), expected_draw)  # the global generator is not touched
    assert weights_digest(first) == weights_digest(second) != weights_digest(other)
    assert abs(float(first.classifier.weight.detach().std()) - 0.02) < 5e-4
    assert abs(float(first.classifier.weight.detach().mean())) < 5e-4
    assert not first.classifier.bias.any()
    assert first.encoder.position_embeddings.requires_grad
    with torch.no_grad():
        for name, tensor in first.encoder.state_dict().items():
            assert torch.equal(tensor, mae.encoder.state_dict()[name])
            tensor.zero_()
    assert weights_digest(mae) == before


def test_digest_sees_content_only(tmp_path: Path) -> None:
    module = scrambled_mae()
    digest = weights_digest(module)
    assert len(digest) == 64 and digest == weights_digest(scrambled_mae())
    assert digest != weights_digest(scrambled_mae(norm_eps=1e-6))  # same tensors, another function
    state = module.state_dict()
    assert weights_digest(state) == weights_digest(dict(reversed(list(state.items()))))
    swapped = {
        **state,
        "decoder.norm.weight": state["decoder.norm.bias"],
        "decoder.norm.bias": state["decoder.norm.weight"],
    }
    assert weights_digest(swapped) != weights_digest(state)
    assert weights_digest({"a": torch.zeros(2, 3)}) != weights_digest({"a": torch.zeros(3, 2)})
    assert weights_digest({"a": torch.zeros(2)}) != weights_digest({"a": torch.zeros(4, dtype=torch.float16)})
    with torch.no_grad():
        module.decoder.pred.bias[-1] += 1e-3
    assert weights_digest(module) != digest


def test_loading_and_saving_import_no_large_library(tmp_path: Path) -> None:
    save_mae(scrambled_mae(), tmp_path / "a", PROCESSOR)
    script = (
        "import sys; from sdfast.modalities.images.checkpoint import load_mae, save_mae; "
        f"m = load_mae({str(tmp_path / 'a')!r}); save_mae(m.module, {str(tmp_path / 'b')!r}, m.processor); "
        "print([name for name in ('transformers', 'timm', 'PIL', 'torchvision', 'triton') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
    assert load_mae(str(tmp_path / "b")).digest == load_mae(str(tmp_path / "a")).digest
