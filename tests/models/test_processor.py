"""preprocessor_config.json in and out, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sdfast.errors import UserError
from sdfast.modalities.images.processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor


@pytest.mark.parametrize(
    "processor",
    [
        ImageProcessor(28, 28, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
        ImageProcessor(20, 36, IMAGENET_MEAN, IMAGENET_STD),
        ImageProcessor(28, 28, (0.3,), (0.35,)),
    ],
)
def test_auto_image_processor_does_the_same(tmp_path: Path, processor: ImageProcessor) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor.to_json()))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    raw = torch.randint(0, 256, (len(processor.mean), processor.height, processor.width), dtype=torch.uint8)
    expected = theirs(raw, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.mean, processor.std))
    torch.testing.assert_close((raw / 255 - mean) / std, expected, rtol=0.0, atol=2e-6)
    assert ImageProcessor.from_json(processor.to_json()) == processor
    assert (theirs.resample, theirs.do_resize) == (2, True)  # bilinear
    assert (theirs.size["height"], theirs.size["width"]) == (processor.height, processor.width)


@pytest.mark.parametrize(
    ("value", "model_type", "expected"),
    [
        ({}, "vit_mae", ImageProcessor(224, 224, IMAGENET_MEAN, IMAGENET_STD)),
        ({}, "dinov2", ImageProcessor(224, 224, IMAGENET_MEAN, IMAGENET_STD)),
        ({}, "vit", ImageProcessor(224, 224, (0.5,) * 3, (0.5,) * 3)),
        ({"image_processor_type": "ViTImageProcessor"}, "vit_mae", ImageProcessor(224, 224, (0.5,) * 3, (0.5,) * 3)),
        # as facebook/vit-mae-base has it
        (
            {
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "ViTFeatureExtractor",
                "image_mean": list(IMAGENET_MEAN),
                "image_std": list(IMAGENET_STD),
                "resample": 2,
                "size": 224,
            },
            "vit_mae",
            ImageProcessor(224, 224, IMAGENET_MEAN, IMAGENET_STD),
        ),
        ({"do_normalize": False, "size": [32, 48]}, "vit", ImageProcessor(32, 48, (0.0,) * 3, (1.0,) * 3)),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 98, "width": 112}},
            "vit",
            ImageProcessor(98, 112, (0.5,) * 3, (0.5,) * 3),
        ),
    ],
)
def test_what_is_missing_is_filled(value: dict[str, Any], model_type: str, expected: ImageProcessor) -> None:
    assert ImageProcessor.from_json(value, model_type) == expected


@pytest.mark.parametrize("class_name", ["ViTImageProcessor", "BitImageProcessor", "DeiTImageProcessor"])
def test_defaults_of_the_classes_are_those_of_transformers(class_name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, class_name)()
    ours = ImageProcessor.from_json({"image_processor_type": class_name}, "vit")
    assert (list(ours.mean), list(ours.std)) == (list(theirs.image_mean), list(theirs.image_std))


@pytest.mark.parametrize("rescale", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_another_pixel_scale_is_folded_into_mean_and_deviation(rescale: dict[str, Any]) -> None:
    processor = ImageProcessor.from_json({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], **rescale})
    factor = rescale.get("rescale_factor", 1.0)
    for channel, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), strict=True)):
        ours = (200 / 255 - processor.mean[channel]) / processor.std[channel]
        assert ours == pytest.approx((200 * factor - mean) / std, rel=1e-12)


def test_other_channels_and_sizes() -> None:
    colour = ImageProcessor(28, 28, (0.1, 0.2, 0.6), (0.2, 0.3, 0.4))
    grey = colour.with_channels(1)
    assert grey.mean == pytest.approx((0.3,)) and grey.std == pytest.approx((0.3,))
    assert grey.with_channels(3).mean == grey.mean * 3
    assert colour.with_channels(3) is colour
    assert colour.with_channels(5).mean == (0.1, 0.2, 0.6, 0.1, 0.2) and colour.with_channels(2).std == (0.2, 0.3)
    assert colour.with_size(20, 24) == ImageProcessor(20, 24, colour.mean, colour.std)
    assert ImageProcessor(1, 1, (0.1,) * 3, (0.7,) * 3).with_channels(1).mean == (0.1,)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"image_mean": "grey"}, "image_mean"),
        ({"image_mean": []}, "image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"image_std": [0.5, float("nan"), 0.5]}, "image_std"),
        ({"image_mean": [0.5]}, "as many values"),
        ({"size": {"height": 28}}, "size"),
        ({"size": -1}, "size"),
        ({"size": "large"}, "size"),
        ({"rescale_factor": 0}, "rescale_factor"),
    ],
)
def test_wrong_values_are_named(value: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        ImageProcessor.from_json(value)
