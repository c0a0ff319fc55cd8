"""Pre-trained ViTs in, Hugging Face folders out: the one door between checkpoints and the model of images.

Nothing here imports transformers: reading and writing the files directly keeps the start of a command short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.errors import UserError
from sdfast.modalities.images import adapt
from sdfast.modalities.images.families import (
    DECODER,
    FAMILIES,
    SHAPE,
    TABLE,
    VIT,
    VIT_MAE,
    ImageSource,
    describe,
    of_classifier,
    trained_with,
)
from sdfast.modalities.images.model import MAEDecoder, MaskedAutoencoder, ViTClassifier, ViTEncoder, ViTShape
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.models import layout
from sdfast.models.blocks import TransformerShape
from sdfast.models.folder import (
    ONE_CLASS,
    SHARE,
    STACK,
    Pretrained,
    classifier_on,
    config_of,
    config_of_classes,
    write_folder,
)
from sdfast.models.found import Told
from sdfast.models.hub import find_model_folder
from sdfast.models.initialise import STD, fresh
from sdfast.models.weights import filled, sizes_of, weights_digest

_HEAD = "classifier.weight"
_GREY_AS_RGB = "sdfast_grey_as_rgb"  # in config.json: three input channels that see the luma of a one-channel model
_DECODER_WIDTH, _DECODER_DEPTH, _DECODER_HEAD_WIDTH = 512, 8, 32  # ViTMAE base: 512 wide, 8 blocks, 16 heads


@dataclass
class PretrainedMAE(Pretrained[MaskedAutoencoder]):
    """A masked auto-encoder ready to train, encoder and decoder.

    Attributes:
        processor: how its images are made.
        trained_with: keys of `pretrain` and the values that the checkpoint was pre-trained with, see `trained_with`.
        fresh_decoder: whether the decoder is newly made.
    """

    processor: ImageProcessor
    trained_with: Mapping[str, Any]
    fresh_decoder: bool = False


def load_mae(
    spec: str,
    *,
    image_size: tuple[int, int] | int | None = None,
    channels: int | None = None,
    seed: int = 0,
    told: Told | None = None,
) -> PretrainedMAE:
    """Load a pre-trained ViT as a masked auto-encoder.

    Takes `ViTMAEForPreTraining` (encoder and decoder), and encoders alone: `ViTMAEModel`, `ViTModel` with or without a
    head, DINOv2 (LayerScale folded), timm's plain ViTs, and files of weights alone with the names of
    facebookresearch/mae. An encoder alone gets a new decoder, and a note says so.
    Position embeddings stay fixed in the result, as in ViTMAE, whatever they were in the source.

    Args:
        spec: a folder, a file of weights alone, or a Hugging Face hub id.
        image_size: height and width, or one number for a square; the checkpoint's own when None.
        channels: any number; the checkpoint's own when None.
        seed: of the new decoder, if one is needed.
        told: what a file of weights alone does not say.

    Raises:
        UserError: one sentence that names the file or tensor and what to do.
    """
    source = describe(find_model_folder(str(spec)), told, image_size)
    shape, naming = source.shape, source.family.naming
    if shape.decoder is not None:
        sizes = sizes_of(MaskedAutoencoder, shape)
    else:
        sizes = {f"encoder.{name}": size for name, size in sizes_of(ViTEncoder, shape).items()}
    state, shape = _without_rgb(layout.read_state(source.weights, naming, sizes), source)
    notes = [*source.weights.notes, *source.notes, *layout.unused_note(source.weights, naming, state)]
    wanted = (source.processor.height, source.processor.width) if image_size is None else image_size
    size = (wanted, wanted) if isinstance(wanted, int) else (int(wanted[0]), int(wanted[1]))
    state, shape, changes = adapt.adapt_state(state, shape, size, shape.channels if channels is None else channels)
    notes += changes
    fresh_decoder = shape.decoder is None
    if fresh_decoder:
        decoder = decoder_shape_for(shape.encoder)
        shape = replace(shape, decoder=decoder)
        state |= {f"decoder.{name}": tensor for name, tensor in fresh(MAEDecoder, seed, shape).state_dict().items()}
        notes.append(
            f"warning: {spec} has no decoder, so a new one was made ({decoder.width} wide, {decoder.depth} blocks,"
            f" {decoder.heads} heads, seed {seed}): it has to be trained before the encoder is, in"
            " pretrain.head_steps steps."
        )
    module = filled(MaskedAutoencoder, state, shape)
    if shape.learned_positions and not module.encoder.position_embeddings.any():
        notes.append(
            "warning: all position embeddings are zero, so the model cannot tell where a patch lies"
            " (transformers 5 leaves them so in a ViTMAE that is newly made from its configuration)."
        )
    processor = source.processor.with_channels(shape.channels).with_size(*shape.image_size)
    own = trained_with(source.config.values, source.config.path)
    return PretrainedMAE(module, shape, str(spec), weights_digest(module), notes, processor, own, fresh_decoder)


def fresh_mae(shape: ViTShape, seed: int) -> MaskedAutoencoder:
    """A whole masked auto-encoder with new weights; float32 on the CPU, decided by `seed` alone."""
    return fresh(MaskedAutoencoder, seed, shape)


def decoder_shape_for(encoder: TransformerShape) -> TransformerShape:
    """Sizes of a new decoder: ViTMAE base's (8 blocks, 512 wide, 32 features a head), never wider than the encoder."""
    width = max(4, min(_DECODER_WIDTH, encoder.width) // 4 * 4)
    heads = next(n for n in range(max(1, width // _DECODER_HEAD_WIDTH), 0, -1) if width % n == 0)
    return TransformerShape(width=width, depth=_DECODER_DEPTH, heads=heads, mlp_width=4 * width)


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

    An encoder that a ViTMAE cannot have (`ViTShape.kind`) is written as transformers' model of its kind, with the
    decoder's tensors and sizes beside, which transformers does not use.
    """
    shape, masking = module.shape, {"mask_ratio": mask_ratio, "norm_pix_loss": norm_pix_loss}
    further = {**config_of(shape.decoder, *DECODER), **masking}
    if _is_own(shape):
        tensors = _bare(_own_tensors(module.state_dict(), shape), shape)
        _write_own(directory, FAMILIES[shape.kind].model, shape, tensors, processor, **further)
        return
    tensors = layout.write_state(module.state_dict(), VIT_MAE)
    _write(directory, "vit_mae", "ForPreTraining", shape, tensors, processor, **further)


def save_encoder(module: MaskedAutoencoder, directory: Path, processor: ImageProcessor) -> None:
    """Write the encoder alone, as a folder that `transformers.AutoModel` makes a plain `ViTModel` of.

    That of `save_mae` becomes a `ViTMAEModel`, which masks patches at random in evaluation mode too. The last hidden
    state is that of `module.encoder` given the whole image. `pooler_output` is the CLS token: the pooler, which is no
    part of a masked auto-encoder and which transformers would make anew, is written as the identity. The encoder of
    grey images takes RGB ones, as in `save_classifier`.
    """
    state = {name: tensor for name, tensor in module.state_dict().items() if name.startswith("encoder.")}
    state, shape, processor, marks = _for_rgb(state, module.shape, processor)
    if _is_own(shape):
        tensors = _bare(_own_tensors(state, shape), shape)
        _write_own(directory, FAMILIES[shape.kind].model, shape, tensors, processor, **marks)
        return
    tensors = layout.write_state(state, VIT)
    tensors = {name.removeprefix(VIT.prefix): tensor for name, tensor in tensors.items()}
    like, width = state["encoder.norm.bias"], shape.encoder.width
    tensors["pooler.dense.weight"] = torch.eye(width).to(like)
    tensors["pooler.dense.bias"] = torch.zeros_like(like)
    further = {"pooler_act": "linear", "pooler_output_size": width, **marks}
    _write(directory, "vit", "Model", shape, tensors, processor, **further)


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
    return classifier_on(ViTClassifier, mae, seed, of_classifier(mae.shape), classes, dropout)


def save_classifier(
    module: ViTClassifier,
    directory: Path,
    processor: ImageProcessor,
    class_names: Sequence[str],
    dropout: float,
    problem: str = ONE_CLASS,
) -> None:
    """Write a folder that `transformers.ViTForImageClassification.from_pretrained` and `load_classifier` read.

    A classifier of grey images is written with three input channels that see an RGB image's luma, as transformers'
    pipelines turn every image into RGB; on a grey image it gives the same logits (to rounding), and `load_classifier`
    restores the one-channel weights bit for bit. `problem` is its `problem_type`.

    Raises:
        UserError: the class names are not distinct or not as many as the classifier's outputs.
    """
    classes = config_of_classes(class_names, module.classifier.out_features, problem)
    state, shape, processor, marks = _for_rgb(dict(module.state_dict()), module.shape, processor)
    if _is_own(shape):
        family, tensors = FAMILIES[shape.kind], _own_tensors(state, shape)
        further = {"hidden_dropout_prob": dropout, **classes, **marks}
        _write_own(directory, family.classifier or family.model, shape, tensors, processor, family.whole, **further)
        return
    tensors, further = layout.write_state(state, VIT), {"encoder_stride": shape.patch_size, **classes, **marks}
    _write(directory, "vit", "ForImageClassification", shape, tensors, processor, dropout, **further)


def load_classifier(directory: Path) -> tuple[ViTClassifier, ImageProcessor, list[str]]:
    """Read a folder of `ViTForImageClassification`.

    Returns:
        The classifier (float32, CPU, training mode), how its images are made, and the class names by output.

    Raises:
        UserError: the folder is none of a classifier, or broken; the message names the file or tensor.
    """
    source = describe(Path(directory))
    source = replace(source, shape=of_classifier(source.shape))
    if source.family.beside_mean:
        _without_mean(source)
    name = source.family.name if _is_own(source.shape) else "ViT"
    state, names = source.classifier(ViTClassifier, f"{name}ForImageClassification")
    state, shape = _without_rgb(state, source)
    module = filled(ViTClassifier, state, shape, len(names), source.config.get("hidden_dropout_prob", SHARE, 0.0))
    return module, source.processor.with_channels(shape.channels), names


def _without_rgb(state: dict[str, Tensor], source: ImageSource) -> tuple[dict[str, Tensor], ViTShape]:
    """The tensors and sizes of a source, those of a model of grey images as they were: the inverse of `_for_rgb`."""
    if source.config.values.get(_GREY_AS_RGB) is not True or source.shape.channels != 3:
        return state, source.shape
    weight = adapt.rgb_weights_for_grey(state["encoder.patch_embed.weight"])
    return {**state, "encoder.patch_embed.weight": weight}, replace(source.shape, channels=1)


def _for_rgb(
    state: dict[str, Tensor], shape: ViTShape, processor: ImageProcessor
) -> tuple[dict[str, Tensor], ViTShape, ImageProcessor, dict[str, Any]]:
    """An encoder for RGB images, and what marks one that was for grey ones in its configuration."""
    if shape.channels != 1:
        return state, shape, processor, {}
    weight = adapt.grey_weights_for_rgb(state["encoder.patch_embed.weight"])
    state = {**state, "encoder.patch_embed.weight": weight}
    return state, replace(shape, channels=3), processor.with_channels(3), {_GREY_AS_RGB: True}


def naming_of(shape: ViTShape) -> layout.Naming:
    """The names in the folder of a classifier, and of an encoder alone, of a shape.

    Without those of a classifier where transformers has none that is given what ours is.
    """
    if not _is_own(shape):
        return VIT
    family = FAMILIES[shape.kind].of(shape)
    if not family.beside_mean and family.classifier is not None:
        return family.naming
    names = {name: theirs for name, theirs in family.naming.names.items() if name != "classifier"}
    return replace(family.naming, names=names)


def _is_own(shape: ViTShape) -> bool:
    """Whether a model of this shape is written as what it is, not as ViTMAE and ViT."""
    return FAMILIES[shape.kind].config is not None


def _own_tensors(state: Mapping[str, Tensor], shape: ViTShape) -> dict[str, Tensor]:
    """Tensors by the names of the model's own class, and those that only it has."""
    family, like = FAMILIES[shape.kind].of(shape), state["encoder.norm.weight"]
    tensors = layout.write_state(state, family.naming)
    if family.beside_mean and _HEAD in tensors:
        tensors[_HEAD] = F.pad(tensors[_HEAD], (0, shape.encoder.width))
    return tensors | {family.naming.prefix + name: tensor for name, tensor in family.unused(shape, like).items()}


def _without_mean(source: ImageSource) -> None:
    """Leave out of a classifier the columns for the mean of the patches' tokens, which must be zero."""
    tensors, width = source.weights.tensors, source.shape.encoder.width
    weight = tensors.get(_HEAD)
    if weight is None or weight.shape[1:] != (2 * width,):
        return
    if weight[:, width:].any():
        raise UserError(
            f"the classifier in {source.weights.folder} looks at the mean of the patches' tokens beside the CLS token:"
            " sdfast has classifiers of the CLS token, so give its encoder as the model and fine-tune it."
        )
    tensors[_HEAD] = weight[:, :width]


def _bare(tensors: Mapping[str, Tensor], shape: ViTShape) -> Mapping[str, Tensor]:
    """Names as in the encoder's own class, which is no part of another."""
    family = FAMILIES[shape.kind].of(shape)
    if not family.bare:
        return tensors
    return {name.removeprefix(family.naming.prefix): tensor for name, tensor in tensors.items()}


def _write_own(
    directory: Path,
    head: str,
    shape: ViTShape,
    tensors: Mapping[str, Tensor],
    processor: ImageProcessor,
    whole: str = "",
    **further: Any,
) -> None:
    """Write a folder of a model as what it is, or as the `whole` that it is the tower of.

    `further` is what its configuration has beside sizes.
    """
    family = FAMILIES[shape.kind]
    assert family.config is not None
    config = {**config_of(shape.encoder, *family.stack), **family.config(shape), "initializer_range": STD}
    names = {"architectures": [f"{family.name}{head}"], "model_type": whole or shape.kind}
    config = dict(sorted(config.items()))
    if whole:
        config = {TABLE: {"model_type": shape.kind, **config}}
    config = {**names, **config, **further}
    write_folder(directory, config, tensors, {"preprocessor_config.json": processor.to_json()})


def _write(
    directory: Path,
    kind: str,
    head: str,
    shape: ViTShape,
    tensors: Mapping[str, Tensor],
    processor: ImageProcessor,
    dropout: float = 0.0,
    **further: Any,
) -> None:
    """Write a folder of a family and a head of transformers; `further` is what its configuration has beside sizes."""
    common = {
        **config_of(shape.encoder, *STACK),
        **config_of(shape, *SHAPE),
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": dropout,
        "initializer_range": STD,
    }
    names = {"architectures": [f"{FAMILIES[kind].name}{head}"], "model_type": kind}
    config = {**names, **dict(sorted(common.items())), **further}
    write_folder(directory, config, tensors, {"preprocessor_config.json": processor.to_json()})
