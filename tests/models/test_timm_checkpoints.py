"""timm's plain ViTs, saved by timm in the layout of its hub repositories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import load_mae

timm = pytest.importorskip("timm")
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5, "img_size": 28, "patch_size": 4}


@torch.no_grad()
def save_timm(
    folder: Path,
    safe: Any = True,
    name: str = "vit_base_patch16_224",
    change: Callable[[torch.nn.Module], None] | None = None,
    **arguments: Any,
) -> torch.nn.Module:
    from timm.models._hub import save_for_hf

    model = timm.create_model(name, **arguments)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if change is not None:
        change(model)
    # timm.push_to_hf_hub does not write img_size of a model made with another one; the caller gives it
    arguments = {key: value for key, value in arguments.items() if key != "pretrained_cfg"}
    save_for_hf(model, folder, model_args=arguments, safe_serialization=safe)
    return model.eval()


@pytest.mark.parametrize(
    ("safe", "extra"),
    [
        (True, {}),
        (False, {}),
        (True, {"in_chans": 1}),
        (True, {"num_classes": 0}),
        (True, {"qkv_bias": False}),
    ],
)
def test_features_equal_timm(tmp_path: Path, pixels: Tensor, safe: Any, extra: dict[str, Any]) -> None:
    theirs = save_timm(tmp_path / "m", safe, **SMALL, **extra)
    images = pixels[:, : extra.get("in_chans", 3)]
    loaded = load_mae(str(tmp_path / "m"))
    expected = theirs.double().forward_features(images)
    torch.testing.assert_close(loaded.module.double().encoder(images), expected, rtol=0.0, atol=1e-10)
    assert loaded.shape.norm_eps == 1e-6
    assert any("no decoder" in note for note in loaded.notes)


def test_layer_scale_is_folded(tmp_path: Path, pixels: Tensor) -> None:
    theirs = save_timm(tmp_path / "m", **SMALL, init_values=0.5)
    expected = theirs.double().forward_features(pixels)
    features = load_mae(str(tmp_path / "m")).module.double().encoder(pixels)
    torch.testing.assert_close(features, expected, rtol=0.0, atol=2e-6)


def test_mean_and_deviation_come_from_pretrained_cfg(tmp_path: Path) -> None:
    published = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 28, 28)}
    save_timm(tmp_path / "m", **SMALL, pretrained_cfg=published)
    processor = load_mae(str(tmp_path / "m")).processor
    assert (processor.mean, processor.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (processor.height, processor.width) == (28, 28)


def test_heads_by_architecture_when_the_config_has_no_model_args(tmp_path: Path, pixels: Tensor) -> None:
    """As published: `timm/vit_base_patch16_224.mae` and its like name the architecture only."""
    theirs = save_timm(tmp_path / "m", name="vit_tiny_patch16_224", depth=1, num_classes=0)
    config = json.loads((tmp_path / "m/config.json").read_text())
    del config["model_args"]
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    loaded = load_mae(str(tmp_path / "m"))
    assert loaded.shape.encoder.heads == theirs.blocks[0].attn.num_heads == 3
    images = torch.nn.functional.interpolate(pixels[:1], size=224)
    expected = theirs.double().forward_features(images)
    torch.testing.assert_close(loaded.module.double().encoder(images), expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ({"reg_tokens": 2}, "registers or SwiGLU"),
        ({"pre_norm": True, "qkv_bias": False}, "norm_pre"),
        ({"qk_norm": True}, "k_norm"),
        ({"class_token": False, "global_pool": "avg"}, "fc_norm and no cls_token"),
        ({"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, "of 2 tokens and no cls_token"),
        ({"global_pool": "avg", "fc_norm": True, "qkv_bias": False}, "fc_norm"),
        ({"act_layer": "quick_gelu"}, "quick_gelu"),
        ({"act_layer": "relu"}, "act_layer=relu"),
        ({"final_norm": False}, "norm.weight"),
    ],
)
def test_variants_that_are_no_plain_vit_are_named(tmp_path: Path, extra: dict[str, Any], part: str) -> None:
    save_timm(tmp_path / "m", **SMALL, **extra)
    with pytest.raises(UserError, match=part):
        load_mae(str(tmp_path / "m"))


def test_unknown_heads_and_other_families_are_named(tmp_path: Path) -> None:
    save_timm(tmp_path / "m", **SMALL)
    path = tmp_path / "m/config.json"
    config = json.loads(path.read_text())
    del config["model_args"]["num_heads"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="num_heads under model_args"):
        load_mae(str(tmp_path / "m"))
    path.write_text(json.dumps({**config, "architecture": "swin_tiny_patch4_window7_224"}))
    with pytest.raises(UserError, match="swin_tiny"):
        load_mae(str(tmp_path / "m"))
