"""One model of every kind that sdfast takes, small and of the same sizes, as transformers makes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import step_setup
import text_setup
import torch
import transformers
from step_setup import Model
from torch import Tensor

from sdfast.modalities.images.checkpoint import load_mae
from sdfast.modalities.texts.checkpoint import load_mlm

WIDTH, DEPTH, HEADS, SIDE, PATCH = 192, 12, 3, 224, 16  # ViT-Ti/16
TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS, WORDS = 384, 6, 12, 30522  # MiniLM

_STACK = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
_PLAIN = {**_STACK, "image_size": SIDE, "patch_size": PATCH, "intermediate_size": 4 * WIDTH}
_DINO = {**_STACK, "image_size": SIDE, "patch_size": PATCH}
_TEXT_STACK = {"hidden_size": TEXT_WIDTH, "num_hidden_layers": TEXT_DEPTH, "num_attention_heads": TEXT_HEADS}
_TEXT = {**_TEXT_STACK, "intermediate_size": 4 * TEXT_WIDTH, "vocab_size": WORDS}
_DISTIL = {"dim": TEXT_WIDTH, "n_layers": TEXT_DEPTH, "n_heads": TEXT_HEADS, "hidden_dim": 4 * TEXT_WIDTH}

# Configuration, encoder, and settings.
IMAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTConfig", "ViTModel", _PLAIN),
    "dinov2": ("Dinov2Config", "Dinov2Model", _DINO),
    "dinov2, SwiGLU": ("Dinov2Config", "Dinov2Model", {**_DINO, "use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", _DINO),
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel", {**_PLAIN, "num_register_tokens": 4}),
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel", _PLAIN),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel", _PLAIN),
    "ijepa": ("IJepaConfig", "IJepaModel", _PLAIN),
    "beit": ("BeitConfig", "BeitModel", {**_PLAIN, "use_absolute_position_embeddings": True}),
}
# Configuration, masked language model, and settings.
TEXTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForMaskedLM", _TEXT),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", {**_TEXT, "max_position_embeddings": 514}),
    "distilbert": ("DistilBertConfig", "DistilBertForMaskedLM", {**_DISTIL, "vocab_size": WORDS}),
    "electra": ("ElectraConfig", "ElectraForMaskedLM", {**_TEXT, "embedding_size": 128}),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM", {**_TEXT, "pad_token_id": 0}),
    "eurobert": ("EuroBertConfig", "EuroBertForMaskedLM", {**_TEXT, "pad_token_id": 0, "num_key_value_heads": 4}),
}


def _made(config: str, kind: str, settings: dict[str, Any]) -> Any:
    """A model of transformers with new weights, its attention in SDPA and without dropout."""
    torch.manual_seed(0)
    made = getattr(transformers, config)(**settings)
    for name in list(vars(made)):
        if name.endswith(("dropout", "dropout_prob")) and isinstance(getattr(made, name), float):
            setattr(made, name, 0.0)
    model: Any = getattr(transformers, kind)._from_config(made, attn_implementation="sdpa")
    return model


@cache
def image_model(kind: str) -> Any:
    """The encoder of a kind; its weights are also those of the model of that name in `step_setup.MODELS`."""
    step_setup.MODELS[kind] = Model((WIDTH, DEPTH, HEADS), (WIDTH, 8, HEADS), SIDE, PATCH, lambda: model)
    model = _made(*IMAGES[kind])
    return model


@cache
def text_model(kind: str) -> Any:
    """The masked language model of a kind; its sizes are also those of that name in `text_setup.SHAPES`."""
    model = _made(*TEXTS[kind])
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        text_setup.SHAPES[kind] = load_mlm(folder).shape
    return model


def encoder_steps(kind: str, batch: int) -> dict[str, Callable[[], Any]]:
    """The encoder alone, forwards and backwards on whole images: transformers' and ours."""
    theirs = image_model(kind).train()
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_mae(folder).module.encoder.train()
    pixels = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return {
        "transformers": lambda: _backward(theirs(pixels).last_hidden_state, theirs),
        "ours": lambda: _backward(ours(pixels), ours),
    }


def text_encoder_steps(kind: str, texts: int) -> dict[str, Callable[[], Any]]:
    """The same on texts of the lengths of 20 Newsgroups; transformers' are padded."""
    theirs = text_model(kind).base_model.train()
    with TemporaryDirectory() as folder:
        text_model(kind).save_pretrained(folder)
        ours = load_mlm(folder).module.encoder.train()
    batch = text_setup.Point(kind, "distill", "mix", texts, 0.0).batch()
    ids = torch.nn.utils.rnn.pad_sequence(list(batch.ids.split(batch.lengths.tolist())), batch_first=True)
    mask = torch.arange(ids.shape[1]) < batch.lengths[:, None]
    return {
        "transformers": lambda: _backward(theirs(ids, attention_mask=mask).last_hidden_state, theirs),
        "ours": lambda: _backward(ours(batch), ours),
    }


def _backward(states: Tensor, module: torch.nn.Module) -> None:
    states.square().mean().backward()
    module.zero_grad(set_to_none=True)
