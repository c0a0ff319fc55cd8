"""The lean modules with weights loaded by sdfast equal transformers' own modules, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdfast.modalities.images.checkpoint import load_classifier, load_mae

TIGHT = {"rtol": 0.0, "atol": 1e-10}
VARIANTS = [
    pytest.param({}, id="usual"),
    pytest.param({"num_channels": 1}, id="grey"),
    pytest.param({"layer_norm_eps": 1e-2}, id="eps"),
    pytest.param({"qkv_bias": False}, id="no-qkv-bias"),
]


def mae_loss(prediction: Tensor, images: Tensor, mask: Tensor, patch: int) -> Tensor:
    """He et al. 2022: squared error to a patch's normalised pixels (unbiased variance), mean over masked patches."""
    batch, channels, height, width = images.shape
    target = images.view(batch, channels, height // patch, patch, width // patch, patch)
    target = target.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True, unbiased=True) + 1e-6).sqrt()
    return (((prediction - target) ** 2).mean(-1) * mask).sum() / mask.sum()


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_encoder_prediction_and_loss_equal_vit_mae(
    hugging_face: Any, pixels: Tensor, variant: dict[str, Any]
) -> None:
    theirs, path = hugging_face("ViTMAEForPreTraining", **variant)
    images = pixels[:, : variant.get("num_channels", 3)]
    noise = torch.rand(3, 49, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    visible = noise.argsort(dim=1)[:, :12]  # int(49 * 0.25)
    mask = torch.ones(3, 49, dtype=torch.float64).scatter(1, visible, 0.0)
    expected = theirs.double()(images, noise=noise)
    expected_tokens = theirs.vit(images, noise=noise).last_hidden_state

    ours = load_mae(str(path)).module.double().eval()
    tokens = ours.encoder(images, visible)
    prediction = ours.decoder(tokens, visible)

    torch.testing.assert_close(tokens, expected_tokens, **TIGHT)
    torch.testing.assert_close(prediction, expected.logits, **TIGHT)
    assert torch.equal(mask, expected.mask.double())
    torch.testing.assert_close(mae_loss(prediction, images, mask, 4), expected.loss, **TIGHT)


def test_the_decoders_last_norm_has_the_epsilon_of_the_others_as_in_transformers(hugging_face: Any) -> None:
    theirs, path = hugging_face("ViTMAEForPreTraining", layer_norm_eps=1e-3)  # 4.17 had 1e-5 there, whatever this is
    decoder = load_mae(str(path)).module.decoder
    assert decoder.norm.eps == theirs.decoder.decoder_norm.eps == decoder.blocks[0].norm1.eps == 1e-3


def test_all_token_features_are_in_patch_order(hugging_face: Any, pixels: Tensor) -> None:
    theirs, path = hugging_face("ViTMAEModel", mask_ratio=0.0)
    shuffled = theirs.double()(pixels)  # ViTMAEModel shuffles even when it masks nothing
    order = shuffled.ids_restore.unsqueeze(-1).expand(-1, -1, 32)
    expected = torch.cat((shuffled.last_hidden_state[:, :1], shuffled.last_hidden_state[:, 1:].gather(1, order)), dim=1)
    features = load_mae(str(path)).module.double().encoder(pixels)
    torch.testing.assert_close(features, expected, **TIGHT)
    assert not torch.allclose(features, shuffled.last_hidden_state)


def test_gradients_equal_vit_mae(hugging_face: Any, pixels: Tensor) -> None:
    theirs, path = hugging_face("ViTMAEForPreTraining")
    noise = torch.rand(3, 49, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    visible = noise.argsort(dim=1)[:, :12]
    mask = torch.ones(3, 49, dtype=torch.float64).scatter(1, visible, 0.0)
    theirs.double()(pixels, noise=noise).loss.backward()
    ours = load_mae(str(path)).module.double()
    mae_loss(ours.decoder(ours.encoder(pixels, visible), visible), pixels, mask, 4).backward()

    attention = theirs.vit.layers[0].attention
    expected_qkv = torch.cat([getattr(attention, f"{part}_proj").weight.grad for part in "qkv"])
    torch.testing.assert_close(ours.encoder.blocks[0].attn.qkv.weight.grad, expected_qkv, **TIGHT)
    torch.testing.assert_close(ours.encoder.cls_token.grad, theirs.vit.embeddings.cls_token.grad, **TIGHT)
    torch.testing.assert_close(ours.decoder.mask_token.grad, theirs.decoder.mask_token.grad, **TIGHT)
    for side in (ours.encoder, ours.decoder):
        assert side.position_embeddings.grad is None
    frozen = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.position_embeddings", "decoder.position_embeddings"}


def test_padding_of_visible_patches_changes_nothing(hugging_face: Any, pixels: Tensor) -> None:
    _, path = hugging_face("ViTMAEForPreTraining")
    ours = load_mae(str(path)).module.double()
    visible = torch.stack([torch.randperm(49, generator=torch.Generator().manual_seed(row))[:12] for row in range(3)])
    tokens = ours.encoder(pixels, visible)
    padded = torch.cat((visible, torch.zeros(3, 5, dtype=torch.int64)), dim=1)
    valid = torch.arange(17).expand(3, -1) < 12
    padded_tokens = ours.encoder(pixels, padded, valid)
    torch.testing.assert_close(padded_tokens[:, :13], tokens, **TIGHT)
    torch.testing.assert_close(ours.decoder(padded_tokens, padded, valid), ours.decoder(tokens, visible), **TIGHT)


@pytest.mark.parametrize("class_name", ["ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_vit_features(hugging_face: Any, pixels: Tensor, class_name: str, variant: dict[str, Any]) -> None:
    theirs, path = hugging_face(class_name, encoder_stride=4, **variant)
    images = pixels[:, : variant.get("num_channels", 3)]
    body = theirs.double() if class_name == "ViTModel" else theirs.double().vit
    loaded = load_mae(str(path))
    features = loaded.module.double().encoder(images)
    torch.testing.assert_close(features, body(images).last_hidden_state, **TIGHT)
    assert any("no decoder" in note for note in loaded.notes)


def _powers_of_two(theirs: torch.nn.Module) -> None:
    """LayerScale values whose product with any float32 weight is exact."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("lambda1"):
                signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2.0 - 1
                parameter.copy_(signs * 2.0 ** torch.randint(-6, 2, parameter.shape, generator=generator))


@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-10), (False, 2e-6)])
@pytest.mark.parametrize("class_name", ["Dinov2Model", "Dinov2ForImageClassification"])
def test_dinov2_features_with_folded_layer_scale(
    hugging_face: Any, pixels: Tensor, class_name: str, exact: bool, tolerance: float
) -> None:
    theirs, path = hugging_face(class_name)
    if exact:
        _powers_of_two(theirs)
        theirs.save_pretrained(path)
    body = theirs.double() if class_name == "Dinov2Model" else theirs.double().dinov2
    features = load_mae(str(path)).module.double().encoder(pixels)
    torch.testing.assert_close(features, body(pixels).last_hidden_state, rtol=0.0, atol=tolerance)


def test_dinov2_is_used_at_the_size_of_its_processor(hugging_face: Any, pixels: Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    theirs, path = hugging_face("Dinov2Model", image_size=56)
    processor = transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(path)
    loaded = load_mae(str(path))
    assert loaded.shape.image_size == (28, 28)
    assert any("interpolated" in note for note in loaded.notes)
    assert any("centre crop" in note for note in loaded.notes)
    with torch.no_grad():
        expected = theirs(pixels.float()).last_hidden_state
        features = loaded.module.encoder(pixels.float())
    torch.testing.assert_close(features, expected, rtol=0.0, atol=1e-5)


def test_classifier_logits(hugging_face: Any, pixels: Tensor) -> None:
    names = {0: "oak", 1: "elm", 2: "fir", 3: "yew", 4: "ash"}
    theirs, path = hugging_face("ViTForImageClassification", id2label=names, label2id={v: k for k, v in names.items()})
    ours, processor, class_names = load_classifier(path)
    torch.testing.assert_close(ours.double().eval()(pixels), theirs.double()(pixels).logits, **TIGHT)
    assert class_names == ["oak", "elm", "fir", "yew", "ash"]
    assert processor.mean == (0.5, 0.5, 0.5)


def _rewritten(path: Any, rename: Any) -> str:
    file = path / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return load_mae(str(path)).digest


def test_all_generations_of_names_load_alike(hugging_face: Any) -> None:
    theirs, path = hugging_face("ViTMAEForPreTraining")
    digest = load_mae(str(path)).digest
    # transformers 4: decoder.decoder_layers.N, attention.attention.query
    assert _rewritten(path, lambda name: name.replace("decoder_encoder.layer.", "decoder_layers.")) == digest
    # transformers 5 in memory: layers.N.attention.q_proj
    save_file(theirs.state_dict(), path / "model.safetensors")
    assert any("q_proj" in name for name in theirs.state_dict())
    assert load_mae(str(path)).digest == digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_load_as_float32(hugging_face: Any, dtype: torch.dtype) -> None:
    theirs, path = hugging_face("ViTMAEForPreTraining", dtype=dtype)
    module = load_mae(str(path)).module
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}
    assert torch.equal(
        module.encoder.patch_embed.weight, theirs.vit.embeddings.patch_embeddings.projection.weight.float()
    )
    assert torch.equal(module.decoder.pred.weight, theirs.decoder.decoder_pred.weight.float())


def test_sharded_and_torch_files_load_alike(hugging_face: Any) -> None:
    theirs, path = hugging_face("ViTMAEForPreTraining")
    digest = load_mae(str(path)).digest
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save({"model": tensors}, path / "pytorch_model.bin")
    assert load_mae(str(path)).digest == digest
    (path / "pytorch_model.bin").unlink()
    theirs.save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("model-*.safetensors"))) > 1
    assert load_mae(str(path)).digest == digest


def test_loading_leaves_the_file_and_the_random_state_alone(hugging_face: Any) -> None:
    _, path = hugging_face("ViTModel")
    before = (path / "model.safetensors").read_bytes()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    module = load_mae(str(path)).module
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(9.0)
    assert (path / "model.safetensors").read_bytes() == before
