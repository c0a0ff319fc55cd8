"""Fresh weights: positions, new decoders, whole new models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sdfast.modalities.images.checkpoint import decoder_shape_for, fresh_mae, load_mae, save_mae
from sdfast.modalities.images.model import MAEDecoder, ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.models.blocks import TransformerShape
from sdfast.models.initialise import fresh, sincos_positions
from sdfast.models.weights import weights_digest

ENCODER = TransformerShape(768, 12, 12, 3072)


@pytest.mark.parametrize("grid", [(1, 1), (7, 7), (14, 14)])
def test_positions_equal_vit_mae(grid: tuple[int, int]) -> None:
    modeling = pytest.importorskip("transformers.models.vit_mae.modeling_vit_mae")
    expected = modeling.build_2d_sinusoidal_position_embedding(*grid, embed_dim=96, cls_token=True)
    expected = torch.cat((expected[:, 48:], expected[:, :48]), dim=1)  # ViTMAE puts the column first
    torch.testing.assert_close(sincos_positions(grid, 96)[0], expected, rtol=0.0, atol=0.0)


def test_positions_by_hand_on_a_grid_that_is_not_square() -> None:
    positions = sincos_positions((2, 3), 8)
    assert positions.shape == (1, 7, 8)
    assert not positions[0, 0].any()
    row, column = 1, 2
    expected = [wave(place * f) for place in (column, row) for wave in (math.sin, math.cos) for f in (1.0, 0.01)]
    assert positions[0, 1 + row * 3 + column].tolist() == pytest.approx(expected, abs=1e-7)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions((2, 2), 30)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (768, TransformerShape(512, 8, 16, 2048)),  # ViTMAE base
        (1024, TransformerShape(512, 8, 16, 2048)),
        (384, TransformerShape(384, 8, 12, 1536)),
        (192, TransformerShape(192, 8, 6, 768)),
        (100, TransformerShape(100, 8, 2, 400)),
        (30, TransformerShape(28, 8, 1, 112)),
    ],
)
def test_decoder_sizes(width: int, expected: TransformerShape) -> None:
    assert decoder_shape_for(TransformerShape(width, 1, 1, 4 * width)) == expected


def test_fresh_decoder_is_decided_by_its_seed() -> None:
    shape = ViTShape((28, 28), 4, 3, TransformerShape(64, 1, 2, 128), TransformerShape(64, 2, 2, 256))
    first, again, other = (fresh(MAEDecoder, seed, shape) for seed in (1, 1, 2))
    assert weights_digest(first) == weights_digest(again) != weights_digest(other)
    assert abs(float(first.blocks[0].fc1.weight.detach().std()) - 0.02) < 1e-3
    assert float(first.mask_token.detach().abs().max()) > 0
    assert not first.blocks[1].attn.qkv.bias.any() and bool((first.norm.weight == 1).all())
    assert torch.equal(first.position_embeddings, sincos_positions((7, 7), 64))


def test_fresh_mae_starts_as_vit_mae_does() -> None:
    shape = ViTShape((28, 28), 4, 3, TransformerShape(64, 1, 2, 128), TransformerShape(32, 1, 1, 128))
    module = fresh_mae(shape, 0)
    bound = math.sqrt(6 / (64 + 48))  # Xavier-uniform of the kernel as one matrix
    largest = float(module.encoder.patch_embed.weight.detach().abs().max())
    assert 0.99 * bound < largest <= bound
    assert 0.005 < float(module.encoder.cls_token.detach().std()) < 0.04
    assert {name for name, p in module.named_parameters() if not p.requires_grad} == {
        "encoder.position_embeddings",
        "decoder.position_embeddings",
    }
    assert all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())


def test_encoder_only_source_gets_a_seeded_decoder_and_a_warning(hugging_face: Any) -> None:
    _, path = hugging_face("ViTModel")
    first, again, other = (load_mae(str(path), seed=seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert weights_digest(first.module.encoder) == weights_digest(other.module.encoder)
    assert any(note.startswith("warning:") and "no decoder" in note for note in first.notes)
    larger = load_mae(str(path), image_size=56)
    assert torch.equal(larger.module.decoder.position_embeddings, sincos_positions((14, 14), 32))


def test_a_model_without_positions_is_named(tmp_path: Path) -> None:
    shape = ViTShape((8, 8), 4, 3, TransformerShape(8, 1, 1, 16), TransformerShape(8, 1, 1, 16))
    for zero in (False, True):
        module = fresh_mae(shape, seed=0)
        if zero:
            module.encoder.position_embeddings.data.zero_()
        save_mae(module, tmp_path, ImageProcessor(8, 8, (0.5,) * 3, (0.5,) * 3))
        assert any("position embeddings are zero" in note for note in load_mae(str(tmp_path)).notes) is zero
