"""BERT and RoBERTa in, Hugging Face folders out: the door between checkpoints and `sdfast.models.text`.

Nothing here imports transformers: the files are read and written directly. What a folder holds besides weights (further
settings, the tokenizer's files) is carried along as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdfast.durable import write_bytes, write_json
from sdfast.errors import UserError
from sdfast.models import layout
from sdfast.models.describe import check_budget, unheeded
from sdfast.models.hub import find_model_folder
from sdfast.models.text import NO_DROPOUT, Dropouts, MaskedLanguageModel, TextClassifier, TextShape
from sdfast.models.text_describe import describe_text, text_parameters
from sdfast.models.text_layout import HEADS, NAMINGS, with_new_names
from sdfast.models.tokenizer_files import cut_at, read_tokenizer_files
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

_NAMES = {"bert": "Bert", "roberta": "Roberta"}  # of transformers' classes
_REPLACED = (
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "torch_dtype",
    "transformers_version",
)
_STD = 0.02  # of new weights


@dataclass(frozen=True)
class Companions:
    """What a model folder holds besides weights, written back as it came.

    Attributes:
        config: of `config.json`; what a module itself decides is replaced when it is written.
        tokenizer: content of the tokenizer's files by name; empty when there are none.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class PretrainedMLM:
    """A masked language model ready to train: float32, on the CPU.

    Attributes:
        module: encoder and head.
        shape: their sizes (also `module.shape`).
        dropouts: those of the checkpoint's configuration, which the module has unless others were asked for.
        companions: to be written beside the trained model.
        name: what the user called it.
        digest: `weights_digest(module)`.
        fresh_head: whether the head is newly made, and should be trained first with the encoder frozen.
        notes: sentences for the user: what was not used, replaced or newly made.
    """

    module: MaskedLanguageModel
    shape: TextShape
    dropouts: Dropouts
    companions: Companions
    name: str
    digest: str
    fresh_head: bool = False
    notes: list[str] = field(default_factory=list)


def load_mlm(spec: str, *, dropouts: Dropouts | None = None, seed: int = 0) -> PretrainedMLM:
    """Load a pre-trained BERT or RoBERTa as a masked language model.

    Takes `RobertaForMaskedLM`, `BertForMaskedLM`, and encoders with another head or none: those get a new head, and a
    note says so.

    Args:
        spec: a folder, or a Hugging Face hub id.
        dropouts: of the module; those of the checkpoint's configuration when None.
        seed: of the new head, if one is needed.

    Raises:
        UserError: one sentence that names the file or tensor and what to do.
    """
    folder = find_model_folder(str(spec))
    config = read_config(folder)
    shape, published = describe_text(config, folder)
    weights = with_new_names(read_weights(folder))
    check_budget(text_parameters(shape), shape.encoder.depth, weights, folder / "config.json")
    fresh = not any(name.startswith(HEADS[shape.kind]) for name in weights.tensors)
    weights = _without_tied(weights, shape)
    expected = _expected_shapes(shape)
    wanted = {name: size for name, size in expected.items() if not (fresh and name.startswith("head."))}
    state = layout.read_state(weights, NAMINGS[shape.kind], wanted)
    notes = [*weights.notes, *_unused_note(weights, shape, wanted), *unheeded(config, {"initializer_range": _STD})]
    if config.get("tie_word_embeddings") is False:
        notes.append("not followed: tie_word_embeddings=False of config.json; the head shares the embeddings' matrix.")
    if fresh:
        state.update({f"head.{name}": tensor for name, tensor in _fresh_head(shape, seed).items()})
        notes.append(
            f"warning: {spec} has no language-model head, so a new one was made (seed {seed}): it has to be trained"
            " before the encoder is, on as much text as there is."
        )
    companions = Companions(config, read_tokenizer_files(folder))
    if not companions.tokenizer:
        notes.append(f"warning: {folder} has no tokenizer (tokenizer.json or vocab.txt).")
    module = filled(MaskedLanguageModel, state, shape, published if dropouts is None else dropouts)
    digest = weights_digest(module)
    return PretrainedMLM(module, shape, published, companions, str(spec), digest, fresh, notes)


def save_mlm(
    module: MaskedLanguageModel,
    directory: Path,
    companions: Companions,
    dropouts: Dropouts,
    max_length: int | None = None,
) -> None:
    """Write a folder that transformers' `AutoModelForMaskedLM` (4 and 5) and `load_mlm` read.

    The values of the weights and their dtype are kept bit for bit. `dropouts` go into the configuration, `max_length`
    into the tokenizer's files (see `cut_at`), which are written as they came when it is None.
    """
    shape = module.shape
    config = {"architectures": [f"{_NAMES[shape.kind]}ForMaskedLM"], **_common_config(shape, dropouts)}
    tensors = layout.write_state(module.state_dict(), NAMINGS[shape.kind])
    _write_folder(directory, config, tensors, companions, max_length)


def fresh_mlm(shape: TextShape, seed: int, dropouts: Dropouts = NO_DROPOUT) -> MaskedLanguageModel:
    """A whole masked language model with new weights; float32 on the CPU, decided by `seed` alone."""
    return filled(MaskedLanguageModel, _fresh(_expected_shapes(shape), seed), shape, dropouts)


def text_classifier_from_mlm(mlm: MaskedLanguageModel, classes: int, dropouts: Dropouts, seed: int) -> TextClassifier:
    """A classifier that starts from the encoder of `mlm` (copied) with a new head.

    The head's two matrices are normal(0, 0.02), decided by `seed` alone, its biases zero: BERT's pooler is not taken
    over, as masked language models do not train it.

    Returns:
        The classifier on the device and in the dtype of `mlm`.
    """
    state = {name: tensor.clone() for name, tensor in mlm.state_dict().items() if name.startswith("encoder.")}
    like = state["encoder.norm.bias"]
    width = mlm.shape.encoder.width
    sizes = {"dense.weight": (width, width), "dense.bias": (width,)}
    sizes |= {"classifier.weight": (classes, width), "classifier.bias": (classes,)}
    head = _fresh({name: torch.Size(size) for name, size in sizes.items()}, seed)
    state |= {name: tensor.to(like) for name, tensor in head.items()}
    return filled(TextClassifier, state, mlm.shape, classes, dropouts)


def save_text_classifier(
    module: TextClassifier,
    directory: Path,
    companions: Companions,
    class_names: Sequence[str],
    dropouts: Dropouts,
    max_length: int | None = None,
) -> None:
    """Write a folder that transformers' `AutoModelForSequenceClassification` and `load_text_classifier` read.

    `max_length` is that of the documents it was trained on, see `save_mlm`.

    Raises:
        UserError: the class names are not distinct or not as many as the classifier's outputs.
    """
    names = [str(name) for name in class_names]
    if len(names) != module.classifier.out_features or len(set(names)) != len(names):
        raise UserError(
            f"a classifier with {module.classifier.out_features} outputs needs as many distinct class names, "
            f"not {names}."
        )
    shape = module.shape
    config = {
        "architectures": [f"{_NAMES[shape.kind]}ForSequenceClassification"],
        **_common_config(shape, dropouts),
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    tensors = layout.write_state(module.state_dict(), NAMINGS[shape.kind])
    _write_folder(directory, config, tensors, companions, max_length)


def load_text_classifier(directory: Path) -> tuple[TextClassifier, Companions, list[str]]:
    """Read a folder of `RobertaForSequenceClassification` or `BertForSequenceClassification`.

    Returns:
        The classifier (float32, CPU, training mode), what else the folder holds, and the class names by output.

    Raises:
        UserError: the folder is none of a classifier, or broken; the message names the file or tensor.
    """
    directory = Path(directory)
    config = read_config(directory)
    shape, dropouts = describe_text(config, directory)
    weights = with_new_names(read_weights(directory))
    check_budget(text_parameters(shape), shape.encoder.depth, weights, directory / "config.json")
    last = {"bert": "classifier.weight", "roberta": "classifier.out_proj.weight"}[shape.kind]
    if last not in weights.tensors:
        raise UserError(
            f"{directory} holds no {_NAMES[shape.kind]}ForSequenceClassification: give the model of a fine-tuned"
            " classifier."
        )
    classes = len(weights.tensors[last])
    with torch.device("meta"):
        expected = layout.shapes_of(TextClassifier(shape, classes))
    state = layout.read_state(weights, NAMINGS[shape.kind], expected)
    names = class_names(config, classes, directory)
    module = filled(TextClassifier, state, shape, classes, dropouts)
    return module, Companions(config, read_tokenizer_files(directory)), names


def _expected_shapes(shape: TextShape) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return layout.shapes_of(MaskedLanguageModel(shape))


def _without_tied(weights: Weights, shape: TextShape) -> Weights:
    """Without the copies of the word embeddings and the biases that some files hold as the head's last layer.

    Raises:
        UserError: they are no copies.
    """
    head, prefix = HEADS[shape.kind], NAMINGS[shape.kind].prefix
    tensors, files = dict(weights.tensors), dict(weights.files)
    words = "embeddings.word_embeddings.weight"
    words = prefix + words if prefix + words in tensors else words
    for copy, original in ((f"{head}decoder.weight", words), (f"{head}decoder.bias", f"{head}bias")):
        if copy not in tensors:
            continue
        tensor, file = tensors.pop(copy), files.pop(copy)
        if original not in tensors and copy.endswith("bias"):
            tensors[original], files[original] = tensor, file
        elif original in tensors and not torch.equal(tensor, tensors[original]):
            raise UserError(
                f"the tensor '{copy}' in {file} is not '{original}': sdfast has heads tied to the embeddings only."
            )
    return replace(weights, tensors=tensors, files=files)


def _unused_note(weights: Weights, shape: TextShape, wanted: Mapping[str, torch.Size]) -> list[str]:
    naming = NAMINGS[shape.kind]
    targets = {name: naming.target(name) for name in layout.ignored_tensors(weights, naming)}
    unused = [name for name, target in targets.items() if target is None or target.name not in wanted]
    unused = [name for name in unused if not name.endswith("position_ids")]
    if not unused:
        return []
    return [f"not used: {', '.join(unused[:4])}{' and more' if len(unused) > 4 else ''} of the checkpoint."]


def _fresh_head(shape: TextShape, seed: int) -> dict[str, Tensor]:
    prefix = "head."
    sizes = {
        name.removeprefix(prefix): size for name, size in _expected_shapes(shape).items() if name.startswith(prefix)
    }
    return _fresh(sizes, seed)


def _fresh(sizes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """Matrices normal(0, 0.02), biases zero, LayerNorms one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, size in sizes.items():
        if name.endswith("bias"):
            state[name] = torch.zeros(size)
        elif len(size) == 1:
            state[name] = torch.ones(size)
        else:
            state[name] = torch.empty(size).normal_(0.0, _STD, generator=generator)
    return state


def _common_config(shape: TextShape, dropouts: Dropouts) -> dict[str, Any]:
    return {
        "model_type": shape.kind,
        "attention_probs_dropout_prob": dropouts.attention,
        "classifier_dropout": dropouts.classifier,
        "hidden_act": "gelu",
        "hidden_dropout_prob": dropouts.hidden,
        "hidden_size": shape.encoder.width,
        "intermediate_size": shape.encoder.mlp_width,
        "layer_norm_eps": shape.norm_eps,
        "max_position_embeddings": shape.positions,
        "num_attention_heads": shape.encoder.heads,
        "num_hidden_layers": shape.encoder.depth,
        "pad_token_id": shape.pad_id,
        "tie_word_embeddings": True,
        "type_vocab_size": shape.types,
        "vocab_size": shape.vocabulary,
    }


def _write_folder(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    companions: Companions,
    max_length: int | None,
) -> None:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in companions.config.items() if key not in (*_REPLACED, *config)}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_weights(directory / SAFETENSORS_FILE, tensors)
    files = companions.tokenizer if max_length is None else cut_at(companions.tokenizer, max_length)
    for name, content in files.items():
        write_bytes(directory / name, content)
    write_json(directory / "config.json", {"initializer_range": _STD, **config, **kept, "torch_dtype": dtype})
