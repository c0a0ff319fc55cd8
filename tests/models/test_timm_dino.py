"""timm's DINOv2 with registers or SwiGLU and DINOv3 equal timm, and are written as transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from test_bad_folders import sentence
from test_timm_checkpoints import save_timm

from sdfast.modalities.images.checkpoint import load_mae, save_encoder, save_mae
from sdfast.modalities.images.families.timm_dino import ARCHITECTURE, HEADS
from sdfast.modalities.images.rotary import axial_turn

timm = pytest.importorskip("timm")
TIGHT = {"rtol": 0.0, "atol": 1e-9}
SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 4, "num_classes": 0}
KINDS = [
    pytest.param("vit_small_patch14_reg4_dinov2", {}, "Dinov2WithRegistersModel", id="registers"),
    pytest.param("vit_giant_patch14_reg4_dinov2", {"mlp_ratio": 4.0}, "Dinov2WithRegistersModel", id="swiglu"),
    pytest.param("vit_giant_patch14_dinov2", {"mlp_ratio": 3.0}, "Dinov2Model", id="swiglu-no-registers"),
    pytest.param("vit_small_patch16_dinov3", {}, "DINOv3ViTModel", id="dinov3"),
    pytest.param("vit_small_patch16_dinov3_qkvb", {"rope_temperature": 50.0}, "DINOv3ViTModel", id="dinov3-biases"),
    pytest.param("vit_small_plus_patch16_dinov3_qkvb", {}, "DINOv3ViTModel", id="dinov3-gated"),
]


def powers_of_two(model: torch.nn.Module) -> None:
    """LayerScale values whose product with any float32 weight is exact."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name:
                parameter.copy_(2.0 ** torch.randint(-6, 2, parameter.shape, generator=generator))


def with_our_angles(model: Any, base: float) -> None:
    """Rotary positions as transformers rounds them, which are compared with timm's own."""

    def embed(shape: list[int]) -> torch.Tensor:
        table = axial_turn((shape[0], shape[1]), 8, base, 0, torch.zeros(1, dtype=torch.float64))
        ours = torch.cat((table.sin, table.cos), dim=1)
        torch.testing.assert_close(ours, theirs(shape).double(), rtol=0.0, atol=1e-5)
        return ours

    theirs, model.rope.get_embed = model.rope.get_embed, embed


@pytest.mark.parametrize("size", [(28, 28), (24, 36)])
@pytest.mark.parametrize(("name", "arguments", "written"), KINDS)
def test_equal_to_timm_and_to_what_is_written(
    tmp_path: Path, name: str, arguments: dict[str, Any], written: str, size: tuple[int, int]
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = save_timm(tmp_path / "m", name=name, change=powers_of_two, **SIZES, img_size=size, **arguments)
    loaded = load_mae(str(tmp_path / "m"))
    theirs.double()
    if "dinov3" in name:
        with_our_angles(theirs, arguments.get("rope_temperature", 100.0))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = theirs.forward_features(images)
    save_mae(loaded.module, tmp_path / "out", loaded.processor)
    save_encoder(loaded.module, tmp_path / "encoder", loaded.processor)
    again = load_mae(str(tmp_path / "out"))
    assert again.digest == loaded.digest and again.shape == loaded.shape
    torch.testing.assert_close(loaded.module.double().eval().encoder(images), expected, **TIGHT)
    if size[0] != size[1] and Version(transformers.__version__) < Version("5.23"):
        return  # 5.17 takes one number as a DINOv3's image_size
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert type(model).__name__ == written and not info["missing_keys"] and not info["unexpected_keys"]
    if "dinov3" in name or size[0] == size[1]:
        torch.testing.assert_close(model.double().eval()(images).last_hidden_state, expected, **TIGHT)


def test_heads_of_every_dinov3_are_timms(tmp_path: Path) -> None:
    names = [name for name in timm.list_models() if ARCHITECTURE.match(name)]
    assert len(names) >= 12
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        match = ARCHITECTURE.match(name)
        assert match and HEADS[match[1]] == model.blocks[0].attn.num_heads
        assert model.norm.eps == 1e-5 and model.rope.temperature == 100.0


def test_what_transformers_could_not_hold_is_one_sentence(tmp_path: Path) -> None:
    name = "vit_small_patch14_reg4_dinov2"
    save_timm(tmp_path / "m", name=name, **SIZES, img_size=28, mlp_ratio=1.5)
    assert "no DINOv2 of transformers has" in sentence(tmp_path / "m")
    save_timm(tmp_path / "n", name="vit_small_patch16_dinov3", **SIZES, img_size=28)
    path = tmp_path / "n/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_args": {**config["model_args"], "rope_rotate_half": False}}))
    assert "rope_rotate_half" in sentence(tmp_path / "n")
