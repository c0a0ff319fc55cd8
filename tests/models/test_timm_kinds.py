"""timm's ViTs with other patches, norms, activations and no CLS equal timm, and are written as what holds them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_timm_checkpoints import SMALL, save_timm
from torch import Tensor

from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import load_mae, save_encoder, save_mae
from sdfast.modalities.images.families import timm as family
from sdfast.models.folder import Settings

timm = pytest.importorskip("timm")
TIGHT = {"rtol": 0.0, "atol": 1e-9}
SIZES = {key: value for key, value in SMALL.items() if key not in ("patch_size", "img_size")} | {"num_classes": 0}
KINDS = [
    pytest.param("vit_base_patch8_224", {"img_size": (24, 32)}, "ViTModel", id="patches-of-8"),
    pytest.param("vit_base_patch32_224", {"img_size": (64, 96)}, "ViTModel", id="patches-of-32"),
    pytest.param("vit_huge_patch14_224", {"img_size": 28}, "ViTModel", id="patches-of-14"),
    pytest.param("deit3_small_patch16_224", {"img_size": (32, 64)}, "ViTModel", id="cls-without-position"),
    pytest.param("flexivit_small", {"img_size": 48}, "ViTModel", id="flexivit"),
    pytest.param("vit_base_patch32_clip_224", {"img_size": 64}, "CLIPVisionModel", id="clip"),
    pytest.param("vit_base_patch16_clip_quickgelu_224", {"img_size": 64}, "CLIPVisionModel", id="clip-quick"),
    pytest.param("vit_base_patch16_siglip_224", {"img_size": 32}, "SiglipVisionModel", id="siglip"),
    pytest.param("vit_base_patch32_siglip_256", {"img_size": 64}, "SiglipVisionModel", id="siglip-tanh"),
    pytest.param("vit_so400m_patch14_siglip_gap_384", {"img_size": 34}, "SiglipVisionModel", id="siglip-cut"),
    pytest.param("vit_base_patch16_gap_224", {"img_size": (64, 32)}, "IJepaModel", id="no-cls"),
    pytest.param("vit_medium_patch16_gap_240", {"img_size": 32}, "IJepaModel", id="no-cls-no-bias"),
    pytest.param("vit_base_patch16_224", {"global_pool": "avg", "img_size": 32}, "BeitModel", id="fc-norm"),
    pytest.param("vit_wee_patch16_reg1_gap_256", {"img_size": 32}, "BeitModel", id="one-register"),
]


def powers_of_two(model: torch.nn.Module) -> None:
    """LayerScale values whose product with any float32 weight is exact."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.copy_(2.0 ** torch.randint(-6, 2, parameter.shape, generator=generator))


@pytest.mark.parametrize(("name", "arguments", "written"), KINDS)
def test_equal_to_timm_and_to_what_is_written(
    tmp_path: Path, name: str, arguments: dict[str, Any], written: str
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = save_timm(tmp_path / "m", name=name, change=powers_of_two, **SIZES, **arguments)
    loaded = load_mae(str(tmp_path / "m"))
    height, width = theirs.patch_embed.img_size
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    tokens = theirs.double().forward_features(images)
    averaged = written in ("IJepaModel", "BeitModel", "SiglipVisionModel")
    matched: Tensor = theirs.fc_norm(tokens[:, theirs.num_prefix_tokens :].mean(dim=1)) if averaged else tokens[:, 0]
    expected = theirs.fc_norm(tokens)
    save_mae(loaded.module, tmp_path / "out", loaded.processor)
    save_encoder(loaded.module, tmp_path / "out" / "encoder", loaded.processor)
    assert load_mae(str(tmp_path / "out")).digest == loaded.digest
    encoder = loaded.module.double().eval().encoder
    seen = images[..., : loaded.shape.image_size[0], : loaded.shape.image_size[1]]
    torch.testing.assert_close(encoder(seen), expected, **TIGHT)
    torch.testing.assert_close(encoder.features(seen, "cls"), matched, **TIGHT)
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "out" / "encoder", output_loading_info=True)
    assert type(model).__name__ == written and not info["missing_keys"] and not info["unexpected_keys"]
    written_tokens = model.double().eval()(seen).last_hidden_state
    norm = model.post_layernorm if written == "CLIPVisionModel" else torch.nn.Identity()
    torch.testing.assert_close(norm(written_tokens), tokens, **TIGHT)


def test_what_the_tensors_do_not_show_is_as_in_timm(tmp_path: Path) -> None:
    """Heads, epsilon and activation of every architecture of timm that has plain blocks."""
    names = [name for module in ("vision_transformer", "deit") for name in timm.list_models(module=module)]
    nothing, compared = Settings({}, tmp_path), 0
    for name in filter(re.compile(r"(vit|deit3?|flexivit)_").match, names):
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        block = model.blocks[0]
        kinds = tuple(type(getattr(block, part, None)).__name__ for part in ("attn", "mlp", "norm1"))
        if type(block).__name__ != "Block" or kinds != ("Attention", "Mlp", "LayerNorm") or not hasattr(model, "norm"):
            continue
        if name.startswith("vit_intern"):  # it has no last norm, and is refused
            continue
        activation = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}[type(block.mlp.act).__name__]
        found = (family._heads(nothing, name, model.embed_dim), family._eps(nothing, name))
        assert (*found, family._activation(nothing, name)) == (block.attn.num_heads, block.norm1.eps, activation), name
        compared += 1
    assert compared > 100


def test_norms_after_the_layers_are_refused_by_name(tmp_path: Path) -> None:
    save_timm(tmp_path / "m", name="vit_base_patch16_rpn_224", img_size=32, **SIZES)
    with pytest.raises(UserError, match="norms come after"):
        load_mae(str(tmp_path / "m"))
