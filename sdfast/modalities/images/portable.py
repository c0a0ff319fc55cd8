"""A ViT as one function of pixels, whole batches of one size: for ONNX and torch.export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdfast.modalities.images.model import ViTEncoder
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.modalities.images.reader import Normalise, image_reader
from sdfast.modalities.images.tiles import rows_of_pictures
from sdfast.models.portable import Portable, Tensors, outputs_of


class PortableImages(nn.Module):
    """An encoder, and the classifier on it where there is one, in the plainest way."""

    def __init__(self, encoder: ViTEncoder, classifier: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def forward(self, pixel_values: Tensor) -> Tensors:
        """[B, C, H, W] normalised -> logits [B, classes]; or tokens [B, N, D] and what stands for the image [B, D]."""
        encoder, shape = self.encoder, self.encoder.shape
        view = encoder.view(encoder.embed(pixel_values), layer=len(encoder.blocks))
        tokens = encoder.encode(view)[0]
        normed: Tensor = encoder.norm(tokens)
        if shape.pool in ("mean_then_norm", "raw_mean"):
            image = tokens[:, shape.prefix :].mean(dim=1)
            image = image if shape.pool == "raw_mean" else encoder.norm(image)
        else:
            image = encoder.select(normed, "cls")
        return (normed, image) if self.classifier is None else (self.classifier(image),)


def portable(module: Any, processor: ImageProcessor) -> Portable:
    """A classifier, or the encoder of a masked auto-encoder, as a `Portable`."""
    shape, encoder = module.encoder.shape, module.encoder
    classifier = getattr(module, "classifier", None)
    size = (shape.channels, *shape.image_size)

    def own(pixels: Tensor) -> Tensor:
        found: Tensor = encoder.features(pixels, "cls") if classifier is None else module(pixels)
        return found

    def given(split: Any, rows: Tensor) -> Tensors:
        if split is None:
            return (torch.randn(len(rows), *size, generator=torch.Generator().manual_seed(0)),)
        read = image_reader(rows_of_pictures(split), torch.device("cpu"))
        return (Normalise(processor.mean, processor.std)(read(rows)),)

    about = {
        "pixel_values": "float32 [batch, channels, height, width]: (x - mean) / std of pixels from 0 to 1",
        "channels": shape.channels,
        "height": shape.image_size[0],
        "width": shape.image_size[1],
        "mean": list(processor.mean),
        "std": list(processor.std),
        **({} if processor.pictures is None else {"pictures": processor.pictures}),
    }
    axes = {"pixel_values": {0: "batch"}}
    traced = PortableImages(encoder, classifier)
    return Portable(traced, axes, outputs_of(classifier is not None), own, given, about=about)
