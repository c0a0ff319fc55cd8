"""Pre-trained models in, Hugging Face folders out: the one door between checkpoints and `sdfast.models.vit`.

Nothing here imports transformers: reading and writing the files directly keeps the start of a command short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdfast.durable import write_json
from sdfast.errors import UserError
from sdfast.models import adapt, layout
from sdfast.models.describe import Source, describe
from sdfast.models.hub import find_model_folder
from sdfast.models.initialise import decoder_shape_for, fresh_decoder
from sdfast.models.processor import ImageProcessor
from sdfast.models.vit import MaskedAutoencoder, ViTClassifier, ViTShape
from sdfast.models.weights import (
    SAFETENSORS_FILE,
    Weights,
    class_names,
    filled,
    read_config,
    read_weights,
    weights_digest,
    write_weights,
)

__all__ = [
    "PretrainedMAE",
    "classifier_from_mae",
    "load_classifier",
    "load_mae",
    "save_classifier",
    "save_encoder",
    "save_mae",
    "weights_digest",
]

_GREY_AS_RGB = "sdfast_grey_as_rgb"  # in config.json: three input channels that see the luma of a one-channel model


@dataclass
class PretrainedMAE:
    """A masked auto-encoder ready to train: float32, on the CPU.

    Attributes:
        module: encoder and decoder.
        shape: their sizes (also `module.shape`).
        processor: how its images are made.
        name: what the user called it.
        digest: `weights_digest(module)`: the content, whatever it is called and wherever it lies.
        notes: sentences for the user: what was adapted, replaced or newly made.
        trained_with: keys of `pretrain` and the values that the checkpoint was pre-trained with, see `trained_with`.
    """

    module: MaskedAutoencoder
    shape: ViTShape
    processor: ImageProcessor
    name: str
    digest: str
    notes: list[str] = field(default_factory=list)
    trained_with: Mapping[str, Any] = field(default_factory=dict)


def load_mae(
    spec: str, *, image_size: tuple[int, int] | int | None = None, channels: int | None = None, seed: int = 0
) -> PretrainedMAE:
    """Load a pre-trained ViT as a masked auto-encoder.

    Takes `ViTMAEForPreTraining` (encoder and decoder), and encoders alone: `ViTMAEModel`, `ViTModel` with or without a
    head, DINOv2 (LayerScale folded), timm's plain ViTs. An encoder alone gets a new decoder, and a note says so.
    Position embeddings stay fixed in the result, as in ViTMAE, whatever they were in the source.

    Args:
        spec: a folder, or a Hugging Face hub id.
        image_size: height and width, or one number for a square; the checkpoint's own when None.
        channels: 1 or 3; the checkpoint's own when None.
        seed: of the new decoder, if one is needed.

    Raises:
        UserError: one sentence that names the file or tensor and what to do.
    """
    source, weights, state, shape = _read_encoder_and_decoder(find_model_folder(str(spec)))
    notes = [*weights.notes, *source.notes]
    if unused := layout.ignored_tensors(weights, source.naming):
        notes.append(f"not used: {', '.join(unused[:4])}{' and more' if len(unused) > 4 else ''} of the checkpoint.")
    wanted = (source.processor.height, source.processor.width) if image_size is None else image_size
    size = (wanted, wanted) if isinstance(wanted, int) else (int(wanted[0]), int(wanted[1]))
    state, shape, changes = adapt.adapt_state(state, shape, size, shape.channels if channels is None else channels)
    notes += changes
    if shape.decoder is None:
        shape = replace(shape, decoder=decoder_shape_for(shape.encoder))
        state.update({f"decoder.{name}": tensor for name, tensor in fresh_decoder(shape, seed).state_dict().items()})
        notes.append(_new_decoder_note(spec, shape, seed))
    module = filled(MaskedAutoencoder, state, shape)
    if not module.encoder.position_embeddings.any():
        notes.append(
            "warning: all position embeddings are zero, so the model cannot tell where a patch lies"
            " (transformers 5 leaves them so in a ViTMAE that is newly made from its configuration)."
        )
    processor = source.processor.with_channels(shape.channels).with_size(*shape.image_size)
    return PretrainedMAE(
        module, shape, processor, str(spec), weights_digest(module), notes, trained_with=source.trained_with
    )


def save_mae(
    module: MaskedAutoencoder,
    directory: Path,
    processor: ImageProcessor,
    *,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
) -> None:
    """Write a folder that `transformers.ViTMAEForPreTraining.from_pretrained` (4 and 5) and `load_mae` read.

    The files are `config.json`, `model.safetensors` and `preprocessor_config.json`; the values of the weights and their
    dtype are kept bit for bit. `mask_ratio` and `norm_pix_loss` are how the model was trained, for the configuration.
    """
    shape = module.shape
    decoder = shape.decoder
    assert decoder is not None  # a MaskedAutoencoder has one
    config = {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **_common_config(shape, 0.0),
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": decoder.mlp_width,
        "mask_ratio": mask_ratio,
        "norm_pix_loss": norm_pix_loss,
    }
    _write_folder(directory, config, layout.write_state(module.state_dict(), layout.VIT_MAE), processor)


def save_encoder(module: MaskedAutoencoder, directory: Path, processor: ImageProcessor) -> None:
    """Write the encoder alone, as a folder that `transformers.AutoModel` makes a plain `ViTModel` of.

    That of `save_mae` becomes a `ViTMAEModel`, which masks patches at random in evaluation mode too. The last hidden
    state is that of `module.encoder` given the whole image. `pooler_output` is the CLS token: the pooler, which is no
    part of a masked auto-encoder and which transformers would make anew, is written as the identity. The encoder of
    grey images takes RGB ones, as in `save_classifier`.
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if name.startswith("encoder.")}
    state, shape, processor, marks = _for_rgb(state, module.shape, processor)
    tensors = layout.write_state(state, layout.VIT)
    tensors = {name.removeprefix(layout.VIT.prefix): tensor for name, tensor in tensors.items()}
    like, width = state["encoder.norm.bias"], shape.encoder.width
    tensors["pooler.dense.weight"] = torch.eye(width).to(like)
    tensors["pooler.dense.bias"] = torch.zeros_like(like)
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        **_common_config(shape, 0.0),
        "pooler_act": "linear",
        "pooler_output_size": width,
        **marks,
    }
    _write_folder(directory, config, tensors, processor)


def classifier_from_mae(mae: MaskedAutoencoder, classes: int, dropout: float, seed: int) -> ViTClassifier:
    """A classifier that starts from the encoder of `mae` (copied) with a new head.

    The head's weight is normal(0, 0.02), decided by `seed` alone, its bias zero (fidelity 1.3); position embeddings
    become trainable.

    Args:
        mae: the masked auto-encoder; left as it is.
        classes: number of outputs.
        dropout: probability, after the embeddings, the attention projections and the MLPs.
        seed: of the head.

    Returns:
        The classifier on the device and in the dtype of `mae`.
    """
    shape = replace(mae.shape, decoder=None)
    state = {name: tensor.clone() for name, tensor in mae.state_dict().items() if name.startswith("encoder.")}
    like = state["encoder.cls_token"]
    head = torch.empty(classes, shape.encoder.width).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
    state["classifier.weight"] = head.to(like)
    state["classifier.bias"] = torch.zeros(classes).to(like)
    return filled(ViTClassifier, state, shape, classes, dropout)


def save_classifier(
    module: ViTClassifier, directory: Path, processor: ImageProcessor, class_names: Sequence[str], dropout: float
) -> None:
    """Write a folder that `transformers.ViTForImageClassification.from_pretrained` and `load_classifier` read.

    A classifier of grey images is written with three input channels that see an RGB image's luma, as transformers'
    pipelines turn every image into RGB; on a grey image it gives the same logits (to rounding), and `load_classifier`
    restores the one-channel weights bit for bit.

    Raises:
        UserError: the class names are not distinct or not as many as the classifier's outputs.
    """
    names = [str(name) for name in class_names]
    if len(names) != module.classifier.out_features or len(set(names)) != len(names):
        raise UserError(
            f"a classifier with {module.classifier.out_features} outputs needs as many distinct class names, "
            f"not {names}."
        )
    state, shape, processor, marks = _for_rgb(dict(module.state_dict()), module.shape, processor)
    head = {name: state.pop(name) for name in ("classifier.weight", "classifier.bias")}
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        **_common_config(shape, dropout),
        "encoder_stride": shape.patch_size,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "single_label_classification",
        **marks,
    }
    _write_folder(directory, config, {**layout.write_state(state, layout.VIT), **head}, processor)


def load_classifier(directory: Path) -> tuple[ViTClassifier, ImageProcessor, list[str]]:
    """Read a folder of `ViTForImageClassification`.

    Returns:
        The classifier (float32, CPU, training mode), how its images are made, and the class names by output.

    Raises:
        UserError: the folder is none of a classifier, or broken; the message names the file or tensor.
    """
    directory = Path(directory)
    config = read_config(directory)
    source, weights, state, shape = _read_encoder_and_decoder(directory)
    if source.naming is not layout.VIT or "classifier.weight" not in weights.tensors:
        raise UserError(f"{directory} holds no ViTForImageClassification: give the model of a fine-tuned classifier.")
    classes = len(weights.tensors["classifier.weight"])
    expected = {
        "classifier.weight": torch.Size((classes, shape.encoder.width)),
        "classifier.bias": torch.Size((classes,)),
    }
    state.update(layout.read_tensors(weights, expected))
    names = class_names(config, classes, directory)
    dropout = config.get("hidden_dropout_prob", 0.0)
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"hidden_dropout_prob in {directory / 'config.json'} must be from 0 to 1, not {dropout!r}.")
    module = filled(ViTClassifier, state, shape, classes, float(dropout))
    return module, source.processor.with_channels(shape.channels), names


def _read_encoder_and_decoder(folder: Path) -> tuple[Source, Weights, dict[str, Tensor], ViTShape]:
    """What the folder is, its raw tensors, and ours: encoder and, if there is one, decoder."""
    config = read_config(folder)
    weights = read_weights(folder)
    source = describe(config, weights)
    state = layout.read_state(weights, source.naming, _expected_shapes(source.shape))
    shape = source.shape
    if config.get(_GREY_AS_RGB) is True and shape.channels == 3:
        state["encoder.patch_embed.weight"] = adapt.rgb_weights_for_grey(state["encoder.patch_embed.weight"])
        shape = replace(shape, channels=1)
    return source, weights, state, shape


def _for_rgb(
    state: dict[str, Tensor], shape: ViTShape, processor: ImageProcessor
) -> tuple[dict[str, Tensor], ViTShape, ImageProcessor, dict[str, Any]]:
    """An encoder for RGB images, and what marks one that was for grey ones in its configuration."""
    if shape.channels != 1:
        return state, shape, processor, {}
    weight = adapt.grey_weights_for_rgb(state["encoder.patch_embed.weight"])
    state = {**state, "encoder.patch_embed.weight": weight}
    return state, replace(shape, channels=3), processor.with_channels(3), {_GREY_AS_RGB: True}


def _expected_shapes(shape: ViTShape) -> dict[str, torch.Size]:
    with torch.device("meta"):
        module = MaskedAutoencoder(shape) if shape.decoder is not None else ViTClassifier(shape, 1)
    return {name: size for name, size in layout.shapes_of(module).items() if not name.startswith("classifier.")}


def _common_config(shape: ViTShape, dropout: float) -> dict[str, Any]:
    height, width = shape.image_size
    return {
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": dropout,
        "hidden_size": shape.encoder.width,
        "image_size": height if height == width else [height, width],
        "initializer_range": 0.02,
        "intermediate_size": shape.encoder.mlp_width,
        "layer_norm_eps": shape.norm_eps,
        "num_attention_heads": shape.encoder.heads,
        "num_channels": shape.channels,
        "num_hidden_layers": shape.encoder.depth,
        "patch_size": shape.patch_size,
        "qkv_bias": shape.qkv_bias,
    }


def _write_folder(
    directory: Path, config: dict[str, Any], tensors: dict[str, Tensor], processor: ImageProcessor
) -> None:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config["torch_dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_weights(directory / SAFETENSORS_FILE, tensors)
    write_json(directory / "preprocessor_config.json", processor.to_json())
    write_json(directory / "config.json", config)


def _new_decoder_note(spec: str, shape: ViTShape, seed: int) -> str:
    decoder = shape.decoder
    assert decoder is not None
    return (
        f"warning: {spec} has no decoder, so a new one was made ({decoder.width} wide, {decoder.depth} blocks, "
        f"{decoder.heads} heads, seed {seed}): further pre-training trains it from nothing, so give it more steps than "
        "a full MAE checkpoint needs."
    )
