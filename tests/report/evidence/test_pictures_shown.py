"""Pictures with hidden patches, and features after each block of the encoders of images."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sdfast.losses import mae_distill_loss
from sdfast.modalities.images.checkpoint import fresh_mae
from sdfast.modalities.images.model import ViTShape
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.images.shown import MaskedPictures, encoded, layer_features, looks_of, picture
from sdfast.models.blocks import Style, TransformerShape

SHAPE = ViTShape((16, 24), 4, 3, TransformerShape(32, 3, 2, 64), TransformerShape(16, 1, 2, 32))
STYLED = replace(SHAPE, encoder=replace(SHAPE.encoder, style=Style("gelu_tanh")))
KINDS = {
    "ViT": SHAPE,
    "grey": replace(SHAPE, channels=1),
    "five bands": replace(SHAPE, channels=5),
    "SigLIP": replace(STYLED, cls=False, pool="mean"),
    "CLIP's classifier": replace(STYLED, pre_norm=True, patch_bias=False, pool="raw_mean"),
    "BEiT": replace(STYLED, pool="mean_then_norm"),
    "DINOv3": replace(STYLED, learned_positions=False, rotary=100.0, registers=2),
}


def rows_of(shape: ViTShape, count: int = 5, dtype: str = "uint8") -> NDArray[Any]:
    drawn = np.random.default_rng(3).integers(0, 256, (count, *shape.image_size, shape.channels))
    return drawn.astype(dtype)


def normalise_of(shape: ViTShape) -> Normalise:
    return Normalise((0.4,) * shape.channels, (0.3,) * shape.channels)


def hidden_pictures(shape: ViTShape, norm_pix: tuple[bool, bool] = (True, True), kind: str = "fixed") -> MaskedPictures:
    return MaskedPictures(rows_of(shape), normalise_of(shape), shape, (7, 0.6, kind), norm_pix)


def opened(encoded_picture: str) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded_picture))).convert("RGB"))


@pytest.mark.parametrize("kind", ["fixed", "bernoulli"])
@pytest.mark.parametrize("name", KINDS)
def test_visible_patches_stay_as_they_are_and_hidden_ones_do_not(name: str, kind: str) -> None:
    shape = KINDS[name]
    examples = hidden_pictures(shape, kind=kind)
    with torch.inference_mode():
        found, _ = examples.restored(fresh_mae(shape, 0).eval(), given=False)
    shown = examples.shown()
    for number, (one, row) in enumerate(zip(found, shown, strict=True)):
        hidden = examples.mask.mask[number].view(*shape.grid).numpy().repeat(4, 0).repeat(4, 1)
        original, masked = opened(row["original"]), opened(row["masked"])
        assert (one[~hidden] == original[~hidden][:, : one.shape[2]]).all()
        assert (masked[hidden] == 128).all() and (masked[~hidden] == original[~hidden]).all()
        assert 0 < hidden.mean() < 1 and (one[hidden] != original[hidden][:, : one.shape[2]]).any()


@pytest.mark.parametrize(("run", "given"), [(True, True), (False, False)])
def test_the_error_is_the_loss_of_the_run(run: bool, given: bool) -> None:
    examples, module = hidden_pictures(SHAPE, (run, given)), fresh_mae(SHAPE, 0).eval()
    pixels, mask = normalise_of(SHAPE)(torch.from_numpy(rows_of(SHAPE))), examples.mask
    with torch.no_grad():
        predicted = module.decoder(module.encoder(pixels, mask.visible_ids), mask.visible_ids)
        out = mae_distill_loss(predicted, pixels, patch_size=4, norm_pix=run, mask=mask.mask)
        _, error = examples.restored(module, given=False)
    assert error == pytest.approx(float(out.mae), rel=1e-5)


def test_a_right_prediction_gives_the_picture_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches normalised and back, bands and places: a model that is right shows the original."""
    from sdfast.ops.mae_distill.reference import normalised, patchify

    for norm_pix in (True, False):
        examples, module = hidden_pictures(SHAPE, (norm_pix, norm_pix)), fresh_mae(SHAPE, 0).eval()
        truth = normalised(patchify(normalise_of(SHAPE)(torch.from_numpy(rows_of(SHAPE))), 4), norm_pix)
        monkeypatch.setattr(module.decoder, "forward", lambda *_, truth=truth: truth)
        with torch.inference_mode():
            found, error = examples.restored(module, given=True)
        assert error < 1e-8
        for one, row in zip(found, rows_of(SHAPE), strict=True):
            assert np.abs(one.astype(int) - row).max() <= 1


def test_the_mask_is_the_same_whatever_the_model() -> None:
    one, other = hidden_pictures(SHAPE), hidden_pictures(KINDS["SigLIP"])
    assert torch.equal(one.mask.mask, other.mask.mask)


def test_a_grey_picture_in_colours_stays_grey() -> None:
    rows = rows_of(SHAPE)
    rows[:] = rows[:, :, :, :1]
    examples = MaskedPictures(rows, normalise_of(SHAPE), SHAPE, (7, 0.6, "fixed"), (True, True))
    with torch.inference_mode():
        found, _ = examples.restored(fresh_mae(SHAPE, 0).eval(), given=False)
    assert {one.shape[2] for one in found} == {1}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_pictures_of_any_bands_and_type_are_seen(channels: int, dtype: str) -> None:
    row = rows_of(replace(SHAPE, channels=channels), 1, "float32")[0]
    row = (row / 255 if dtype == "float16" else row * 3 if dtype == "uint16" else row).astype(dtype)
    shown = opened(picture(row))
    assert shown.shape == (16, 24, 3) and shown.min() < 20 and shown.max() > 235
    assert bool(looks_of(channels)) == (channels not in (1, 3))


def test_large_pictures_are_made_small() -> None:
    large = np.random.default_rng(0).integers(0, 256, (300, 900, 3)).astype(np.uint8)
    assert opened(encoded(large)).shape == (75, 224, 3)


@pytest.mark.parametrize("name", KINDS)
def test_features_of_every_block_are_those_of_the_encoder(name: str) -> None:
    shape = KINDS[name]
    encoder, images = fresh_mae(shape, 1).eval().encoder, rows_of(shape, 70)
    rows = torch.tensor([*range(69, -1, -1)])
    with torch.inference_mode():
        found, what = layer_features(encoder, images, rows, normalise_of(shape))
        pixels = normalise_of(shape)(torch.from_numpy(images[rows.numpy()]))
        for layer in range(1, 3):
            torch.testing.assert_close(found[layer - 1], encoder.features(pixels, "cls", layer), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[-1], encoder.features(pixels, "cls"), rtol=1e-4, atol=1e-5)
    assert found.shape == (3, 70, 32) and what.startswith("CLS" if shape.pool == "cls" else "mean")


def test_files_of_pictures_hold_no_more_than_the_picture(tmp_path: Path) -> None:
    small = rows_of(SHAPE, 1)[0]
    assert (opened(picture(small)) == small).all() and len(picture(small)) < 4000
