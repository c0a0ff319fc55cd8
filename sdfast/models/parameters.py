"""How many numbers a model has, by part, from sizes alone."""

from __future__ import annotations

from sdfast.models.flops import StepSpec
from sdfast.models.vit import TransformerShape, ViTShape


def trained_parameters(step: StepSpec) -> int:
    """Numbers that the step trains."""
    shape = step.shape
    count = encoder_parameters(shape)
    if step.stage == "finetune":
        return count + _heads(step)
    count -= shape.encoder.width * (1 + shape.patches)  # positions are fixed
    if step.masked_view:
        assert shape.decoder is not None
        return count + decoder_parameters(shape) - shape.decoder.width * (1 + shape.patches)
    if step.layer is not None:  # nothing after the matched layer
        unused = (shape.encoder.depth - step.layer) * block_parameters(shape.encoder, shape.qkv_bias)
        count -= unused + 2 * shape.encoder.width
    return count


def encoder_parameters(shape: ViTShape) -> int:
    """Numbers in an encoder, positions included."""
    encoder = shape.encoder
    around = encoder.width * (shape.patch_values + 1 + 1 + 1 + shape.patches + 2)  # patches, CLS, positions, norm
    return around + encoder.depth * block_parameters(encoder, shape.qkv_bias)


def all_parameters(step: StepSpec) -> int:
    """Numbers of the model, trained or not, and of a live teacher."""
    encoder = encoder_parameters(step.shape)
    if step.stage == "finetune":
        return encoder + _heads(step)
    return encoder + decoder_parameters(step.shape) + teacher_parameters(step)


def teacher_parameters(step: StepSpec) -> int:
    """Numbers of the teacher beside the student; 0 where a bank stands for it, or there is none."""
    if step.matched is None or step.banked:
        return 0
    return encoder_parameters(step.shape) + (decoder_parameters(step.shape) if step.match == "predictions" else 0)


def _heads(step: StepSpec) -> int:
    """Numbers of the classifier, and of the contrastive projection."""
    width = step.shape.encoder.width
    projection = (width + 1) * (width + step.projection) if step.projection else 0
    return (width + 1) * step.classes + projection


def decoder_parameters(shape: ViTShape) -> int:
    """Numbers in a decoder and its pixel head, positions included."""
    decoder = shape.decoder
    assert decoder is not None
    inside = decoder.depth * block_parameters(decoder, shape.qkv_bias)
    into = decoder.width * (shape.encoder.width + 1 + 1 + 1 + shape.patches + 2)  # mask token, positions, norm
    return into + inside + (decoder.width + 1) * shape.patch_values


def block_parameters(shape: TransformerShape, qkv_bias: bool) -> int:
    """Numbers in a block."""
    mlp = 2 * shape.width * shape.mlp_width + shape.mlp_width + 3 * shape.width  # and the norm before it
    return attention_parameters(shape, qkv_bias) + mlp


def attention_parameters(shape: TransformerShape, qkv_bias: bool) -> int:
    """Numbers in the first half of a block."""
    return shape.width * (4 * shape.width + 1 + (3 if qkv_bias else 0) + 2)  # and the norm before it


def embedding_parameters(step: StepSpec) -> int:
    """Numbers of the patch embedding, the CLS token and, where they are trained, the positions."""
    shape = step.shape
    rows = shape.patch_values + 2 + (1 + shape.patches if step.stage == "finetune" else 0)
    return shape.encoder.width * rows
