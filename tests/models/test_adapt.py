"""Other image sizes and channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdfast.errors import UserError
from sdfast.modalities.images.adapt import (
    check_image_size,
    grey_weights_for_rgb,
    prediction_for,
    resize_positions,
    rgb_weights_for_grey,
)
from sdfast.modalities.images.checkpoint import load_mae

FIRST_TWO = {"rtol": 0.0, "atol": 1e-6}


@pytest.mark.parametrize("size", [(56, 56), (20, 20), (28, 56), (112, 7 * 4)])
def test_positions_of_the_encoder_are_interpolated_as_transformers_does(hugging_face: Any, size: Any) -> None:
    theirs, path = hugging_face("ViTModel")
    loaded = load_mae(str(path), image_size=size)
    patches = torch.empty(1, 1 + loaded.shape.patches, 32)
    expected = theirs.embeddings.interpolate_pos_encoding(patches, *size)
    torch.testing.assert_close(loaded.module.encoder.position_embeddings, expected, **FIRST_TWO)
    assert loaded.shape.image_size == (loaded.processor.height, loaded.processor.width) == size
    assert any("interpolated" in note and "28 x 28" in note for note in loaded.notes)
    assert any("not square" in note for note in loaded.notes) == (size[0] != size[1])
    with torch.no_grad():
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        expected_features = theirs(images, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(loaded.module.encoder(images), expected_features, rtol=0.0, atol=2e-5)


def test_decoder_positions_are_interpolated_in_two_dimensions(hugging_face: Any) -> None:
    """A plane that rises along one side only stays so: nothing runs over the ends of the rows."""
    theirs, path = hugging_face("ViTMAEForPreTraining")
    ramp = torch.arange(7.0).repeat(7)[None, :, None].expand(1, 49, 24)  # the column number
    with torch.no_grad():
        theirs.decoder.decoder_pos_embed[:, 1:] = ramp
    theirs.save_pretrained(path)
    module = load_mae(str(path), image_size=56).module
    grid = module.decoder.position_embeddings[0, 1:].view(14, 14, 24)
    torch.testing.assert_close(grid, grid[:1].expand_as(grid), **FIRST_TWO)
    assert bool((grid[0].diff(dim=0) > 0).all())
    assert torch.equal(module.decoder.position_embeddings[:, :1], theirs.decoder.decoder_pos_embed[:, :1])
    assert not module.decoder.position_embeddings.requires_grad
    images = torch.randn(2, 3, 56, 56)
    visible = torch.arange(40).expand(2, -1)
    assert module.decoder(module.encoder(images, visible), visible).shape == (2, 196, 48)


def test_a_square_of_the_same_number_of_patches_is_still_reshaped() -> None:
    positions = torch.randn(1, 17, 8)
    assert not torch.equal(resize_positions(positions, (4, 4), (2, 8)), positions)
    assert resize_positions(positions, (4, 4), (2, 8)).shape == positions.shape
    torch.testing.assert_close(resize_positions(positions, (4, 4), (4, 4)), positions, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "fits"),
    [((30, 28), "28 x 28 and 32 x 28"), ((2, 2), "4 x 4"), ((0, 28), "4 x 28"), ((29, 31), "28 x 28 and 32 x 32")],
)
def test_sizes_that_do_not_fit_name_the_nearest(size: tuple[int, int], fits: str) -> None:
    with pytest.raises(UserError, match=f"{size[0]} x {size[1]} is not a multiple.*patch size 4.*{fits}\\."):
        check_image_size(size, 4)
    check_image_size((28, 32), 4)


def test_colour_model_on_grey_images(hugging_face: Any, pixels: Tensor) -> None:
    """A grey image gives the features of the RGB image with equal channels, and the mean of its predictions."""
    _, path = hugging_face("ViTMAEForPreTraining")
    colour, grey = load_mae(str(path)), load_mae(str(path), channels=1)
    assert grey.shape.channels == 1 and len(grey.processor.mean) == 1
    assert any(note.startswith("channels 3 -> 1") for note in grey.notes)
    images, visible = pixels[:, :1].float(), torch.arange(12).expand(3, -1)
    with torch.no_grad():
        rgb = images.expand(-1, 3, -1, -1)
        torch.testing.assert_close(grey.module.encoder(images), colour.module.encoder(rgb), rtol=0.0, atol=1e-5)
        full = colour.module.decoder(colour.module.encoder(rgb, visible), visible)
        single = grey.module.decoder(grey.module.encoder(images, visible), visible)
    torch.testing.assert_close(single, full.view(3, 49, 16, 3).mean(-1), rtol=0.0, atol=1e-5)


def test_grey_model_on_colour_images(hugging_face: Any, pixels: Tensor) -> None:
    _, path = hugging_face("ViTMAEForPreTraining", num_channels=1)
    grey, colour = load_mae(str(path)), load_mae(str(path), channels=3)
    assert any(note.startswith("channels 1 -> 3") for note in colour.notes)
    assert colour.processor.mean == grey.processor.mean * 3
    images, visible = pixels[:, :1].float(), torch.arange(12).expand(3, -1)
    with torch.no_grad():
        rgb = images.expand(-1, 3, -1, -1)
        torch.testing.assert_close(colour.module.encoder(rgb), grey.module.encoder(images), rtol=0.0, atol=1e-5)
        full = colour.module.decoder(colour.module.encoder(rgb, visible), visible)
        single = grey.module.decoder(grey.module.encoder(images, visible), visible)
    expected = single.unsqueeze(-1).expand(-1, -1, -1, 3).flatten(2)
    torch.testing.assert_close(full, expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4, 5, 8])
def test_any_number_of_channels_as_timm_adapts_them(hugging_face: Any, channels: int) -> None:
    """And a decoder whose band c predicts what it predicted of band c modulo 3."""
    manipulate = pytest.importorskip("timm.models._manipulate", reason="timm is not installed")
    _, path = hugging_face("ViTMAEForPreTraining")
    colour, bands = load_mae(str(path)), load_mae(str(path), channels=channels)
    before, after = colour.module.encoder.patch_embed.weight.data, bands.module.encoder.patch_embed.weight.data
    torch.testing.assert_close(after, manipulate.adapt_input_conv(channels, before), rtol=1e-6, atol=0.0)
    for old, new in zip(colour.module.decoder.pred.parameters(), bands.module.decoder.pred.parameters(), strict=True):
        pixels = [new.view(16, channels, -1)[:, band] for band in range(channels)]
        for band, values in enumerate(pixels):
            assert torch.equal(values, old.view(16, 3, -1)[:, band % 3])
    assert bands.processor.mean == tuple(colour.processor.mean[band % 3] for band in range(channels))
    assert f"channels 3 -> {channels}: the input weights were repeated in turn, times 3 / {channels}" in bands.notes[-1]


def test_prediction_rows_are_channel_fastest() -> None:
    bias = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 60.0])  # two pixels of three channels
    assert prediction_for(bias, 3, 1).tolist() == [3.0, 30.0]
    assert prediction_for(torch.tensor([3.0, 30.0]), 1, 3).tolist() == [3.0, 3.0, 3.0, 30.0, 30.0, 30.0]


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e6])
def test_grey_weights_stored_for_rgb_come_back_bit_for_bit(scale: float) -> None:
    weight = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * scale
    weight[0, 0, 0, :3] = torch.tensor([0.0, 1.0, -2.0])
    stored = grey_weights_for_rgb(weight)
    assert torch.equal(rgb_weights_for_grey(stored), weight)
    for channel, share in enumerate((0.299, 0.587, 0.114)):  # ITU-R 601 luma
        torch.testing.assert_close(stored[:, channel], weight[:, 0] * share, rtol=1e-5, atol=0.0)
