"""The row of an image: PIL's conversion and a direct resize, the same numbers as the Hugging Face image processor's."""

from __future__ import annotations

import numpy as np
import pytest
from data_samples import pixels
from PIL import Image

from sdfast.modalities.images.transform import Transform


def test_resize_is_direct_and_bilinear() -> None:
    image = Image.fromarray(pixels(0, 40, 90))
    row = Transform(24, 16).apply(image)
    assert row.shape == (24, 16, 3) and row.dtype == np.uint8
    np.testing.assert_array_equal(row, np.asarray(image.resize((16, 24), Image.Resampling.BILINEAR)))


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = pixels(1, 6, 8)
    np.testing.assert_array_equal(Transform(6, 8).apply(Image.fromarray(image)), image)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_rows_equal_the_hugging_face_processor(mode: str) -> None:
    processors = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    from transformers.image_utils import load_image

    image = Image.fromarray(pixels(2, 50, 37)).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels(3, 50, 37)[..., 0]))
    processor = processors.ViTImageProcessorPil(size={"height": 32, "width": 24}, resample=2)
    expected = processor(load_image(image.copy()), do_rescale=False, do_normalize=False)["pixel_values"][0]
    row = Transform(32, 24).apply(image)
    np.testing.assert_array_equal(row.transpose(2, 0, 1), np.asarray(expected))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_more_than_8_bits_are_not_cut_here(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} has more than 8 bits"):
        Transform(6, 8).apply(Image.new(mode, (8, 6)))


def test_transparency_is_dropped_and_its_colours_kept() -> None:
    image = Image.new("RGBA", (8, 6), (200, 30, 40, 0))
    np.testing.assert_array_equal(Transform(6, 8).apply(image)[0, 0], [200, 30, 40])


def test_one_channel_is_luma() -> None:
    image = Image.fromarray(pixels(4, 6, 8))
    row = Transform(6, 8, 1, (0.5,), (0.5,)).apply(image)
    luma = pixels(4, 6, 8).astype(float) @ [0.299, 0.587, 0.114]
    assert row.shape == (6, 8, 1)
    np.testing.assert_allclose(row[..., 0], luma, atol=1)


def test_json_round_trip() -> None:
    transform = Transform(6, 8, 1, (0.25,), (0.5,), "bicubic")
    assert Transform.from_json(transform.to_json()) == transform


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 0},
        {"channels": 0},
        {"pixels": "uint32"},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5)},
        {"resample": "sharp"},
    ],
)
def test_impossible_transforms_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Transform(**{"height": 6, "width": 8, **wrong})
