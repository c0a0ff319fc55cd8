"""BERT and its kin in, Hugging Face folders out: the door between checkpoints and the model of texts.

Nothing here imports transformers: the files are read and written directly. What a folder holds besides weights (further
settings, the tokenizer's files) is carried along as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sdfast.errors import UserError
from sdfast.modalities.texts.families import FAMILIES, TextFamily, TextSource, describe
from sdfast.modalities.texts.model import NO_DROPOUT, Dropouts, MaskedLanguageModel, TextClassifier, TextShape
from sdfast.modalities.texts.modern import masked_model, text_classifier
from sdfast.models import layout
from sdfast.models.folder import (
    ONE_CLASS,
    THRESHOLD,
    Pretrained,
    classifier_on,
    config_of,
    config_of_classes,
    write_folder,
)
from sdfast.models.hub import TOKENIZER_FILES, find_model_folder
from sdfast.models.initialise import STD, fresh, fresh_state
from sdfast.models.weights import Weights, filled, sizes_of, unreadable, weights_digest
from sdfast.regular import read_regular

_TOKENIZER_CONFIG, _FAST_TOKENIZER = "tokenizer_config.json", "tokenizer.json"
_LARGEST_FILE = 1 << 28
_REPLACED = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    THRESHOLD,
    "torch_dtype",
    "transformers_version",
)


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
class PretrainedMLM(Pretrained[MaskedLanguageModel]):
    """A masked language model ready to train, encoder and head.

    Attributes:
        dropouts: those of the checkpoint's configuration, which the module has unless others were asked for.
        companions: to be written beside the trained model.
        fresh_head: whether the head is newly made, and should be trained first with the encoder frozen.
        tokenizer: the tokenizer of `companions`, where a run has loaded it.
    """

    dropouts: Dropouts
    companions: Companions
    fresh_head: bool
    tokenizer: Any = field(default=None, repr=False, compare=False)


def load_mlm(spec: str, *, dropouts: Dropouts | None = None, seed: int = 0) -> PretrainedMLM:
    """Load a pre-trained text model as a masked language model.

    Takes `RobertaForMaskedLM`, `BertForMaskedLM` and the like, and encoders with another head or none, as ELECTRA's
    discriminators: those get a new head, and a note says so.

    Args:
        spec: a folder, or a Hugging Face hub id.
        dropouts: of the module; those of the checkpoint's configuration when None.
        seed: of the new head, if one is needed.

    Raises:
        UserError: one sentence that names the file or tensor and what to do.
    """
    source = describe(find_model_folder(str(spec)))
    family, shape, weights, published = source.family, source.shape, source.weights, source.dropouts
    weights = weights if shape.pre_norm is not None and not shape.pre_norm.tied else _without_tied(weights, family)
    sizes = sizes_of(masked_model, shape)
    head = {name: size for name, size in sizes.items() if name.startswith("head.")}
    has_own = any(family.naming.sources(name)[0].startswith(family.head) for name in head)
    fresh_head = has_own and not any(name.startswith(family.head) for name in weights.tensors)
    head = head if fresh_head else {}
    state = layout.read_state(weights, family.naming, {name: size for name, size in sizes.items() if name not in head})
    notes = [*weights.notes, *layout.unused_note(weights, family.naming, state), *source.notes]
    if fresh_head:
        state |= fresh_state(head, seed)
        notes.append(
            f"warning: {spec} has no language-model head, so a new one was made (seed {seed}): it has to be trained"
            " before the encoder is, on as much text as there is."
        )
    companions = _companions(source)
    if not companions.tokenizer:
        notes.append(
            f"warning: {weights.folder} has no tokenizer (tokenizer.json, vocab.txt or a sentencepiece model)."
        )
    module = filled(masked_model, state, shape, published if dropouts is None else dropouts)
    digest = weights_digest(module)
    return PretrainedMLM(module, shape, str(spec), digest, notes, published, companions, fresh_head)


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
    _write(directory, "ForMaskedLM", module, companions, dropouts, max_length)


def save_encoder(module: MaskedLanguageModel, directory: Path, companions: Companions, dropouts: Dropouts) -> None:
    """Write the encoder without the language-model head, as a folder of transformers' `AutoModel` and `load_mlm`."""
    _write(directory, "Model", module, companions, dropouts, None)


def fresh_mlm(shape: TextShape, seed: int, dropouts: Dropouts = NO_DROPOUT) -> MaskedLanguageModel:
    """A whole masked language model with new weights; float32 on the CPU, decided by `seed` alone."""
    return fresh(masked_model, seed, shape, dropouts)


def classifier_from_mlm(mlm: MaskedLanguageModel, classes: int, dropouts: Dropouts, seed: int) -> TextClassifier:
    """A classifier that starts from the encoder of `mlm` (copied) with a new head.

    The head's two matrices are normal(0, 0.02), decided by `seed` alone, its biases zero: BERT's pooler is not taken
    over, as masked language models do not train it.

    Returns:
        The classifier on the device and in the dtype of `mlm`.
    """
    return classifier_on(text_classifier, mlm, seed, mlm.shape, classes, dropouts)


def save_classifier(
    module: TextClassifier,
    directory: Path,
    companions: Companions,
    class_names: Sequence[str],
    dropouts: Dropouts,
    max_length: int | None = None,
    problem: str = ONE_CLASS,
) -> None:
    """Write a folder that transformers' `AutoModelForSequenceClassification` and `load_classifier` read.

    `max_length` is that of the documents it was trained on, see `save_mlm`; `problem` is its `problem_type`.

    Raises:
        UserError: the class names are not distinct or not as many as the classifier's outputs.
    """
    further = config_of_classes(class_names, module.classifier.out_features, problem)
    _write(directory, "ForSequenceClassification", module, companions, dropouts, max_length, **further)


def load_classifier(directory: Path) -> tuple[TextClassifier, Companions, list[str]]:
    """Read a folder of `RobertaForSequenceClassification`, `BertForSequenceClassification` or another kind's.

    Returns:
        The classifier (float32, CPU, training mode), what else the folder holds, and the class names by output.

    Raises:
        UserError: the folder is none of a classifier, or broken; the message names the file or tensor.
    """
    source = describe(Path(directory))
    state, names = source.classifier(text_classifier, f"{source.family.name}ForSequenceClassification")
    module = filled(text_classifier, state, source.shape, len(names), source.dropouts)
    return module, _companions(source), names


def _companions(source: TextSource) -> Companions:
    return Companions(source.config.values, read_tokenizer_files(source.weights.folder))


def _without_tied(weights: Weights, family: TextFamily) -> Weights:
    """Without the copies of the word embeddings and the biases that some files hold as the head's last layer.

    Raises:
        UserError: they are no copies.
    """
    tensors, files = dict(weights.tensors), dict(weights.files)
    words = family.naming.prefix + family.words
    words = words if words in tensors else family.words
    bias = family.naming.sources("head.bias")[0]
    for copy, original in ((f"{family.decoder}.weight", words), (f"{family.decoder}.bias", bias)):
        if copy not in tensors or copy == original:
            continue
        tensor, file = tensors.pop(copy), files.pop(copy)
        if original not in tensors and copy.endswith("bias"):
            tensors[original], files[original] = tensor, file
        elif original in tensors and not torch.equal(tensor, tensors[original]):
            raise UserError(
                f"the tensor '{copy}' in {file} is not '{original}': sdfast has heads tied to the embeddings only."
            )
    return replace(weights, tensors=tensors, files=files)


def _write(
    directory: Path,
    head: str,
    module: MaskedLanguageModel | TextClassifier,
    companions: Companions,
    dropouts: Dropouts,
    max_length: int | None,
    **further: Any,
) -> None:
    """Write a folder of a head of transformers; `further` is what its configuration has beside sizes and dropouts."""
    shape, family = module.shape, FAMILIES[module.shape.kind]
    rates = config_of(dropouts, *family.dropouts)
    for each in family.dropouts:
        if not each.kind.holds(rates[each.key]):  # None, where a configuration has no word for "that of `hidden`"
            rates[each.key] = dropouts.hidden
    common = {
        **config_of(shape.encoder, *family.stack),
        **config_of(shape, *family.shape),
        **rates,
        **family.said,
        "pad_token_id": shape.pad_id,
        "tie_word_embeddings": True,
        **({} if family.pre_norm is None else family.pre_norm[1](shape)),
    }
    names = {"architectures": [f"{family.name}{head}"], "model_type": shape.kind}
    config = {**names, **dict(sorted(common.items())), **further}
    kept = {key: value for key, value in companions.config.items() if key not in (*_REPLACED, *config)}
    state = {name: each for name, each in module.state_dict().items() if head != "Model" or name.startswith("encoder.")}
    tensors = layout.write_state(state, family.naming)
    files = companions.tokenizer if max_length is None else cut_at(companions.tokenizer, max_length)
    write_folder(directory, {"initializer_range": STD, **config, **kept}, tensors, files)


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Content of a tokenizer's files by name; empty where there are none.

    Raises:
        UserError: one is there and cannot be read.
    """
    found = {}
    for name in TOKENIZER_FILES:
        try:
            found[name] = read_regular(folder / name, _LARGEST_FILE)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unreadable(folder / name, error) from error
    return found


def cut_at(files: Mapping[str, bytes], max_length: int) -> dict[str, bytes]:
    """The files of a tokenizer that cuts documents as sdfast does: behind, special tokens kept.

    transformers cuts at `model_max_length` when it is asked to (`truncation=True`), and fails at a document beyond the
    model's positions where a tokenizer names no length, as many do not. `tokenizer.json` says the same to programs that
    read it alone.

    Args:
        files: content by name.
        max_length: tokens, special ones included; the tokenizer's own greatest length holds where that is less.

    Returns:
        The files; nothing else of them is changed, and nothing at all where there is no tokenizer.
    """
    if not files:
        return {}
    written = dict(files)
    config = json.loads(files.get(_TOKENIZER_CONFIG, b"{}"))
    own = config.get("model_max_length", config.get("max_len"))
    length = min(max_length, int(own)) if isinstance(own, int | float) and own >= 1 else max_length
    config["model_max_length"] = length
    if config.get("truncation_side", "right") != "right":
        config["truncation_side"] = "right"
    written[_TOKENIZER_CONFIG] = _dumped(config)
    if _FAST_TOKENIZER in files:
        fast = json.loads(files[_FAST_TOKENIZER])
        fast["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
        written[_FAST_TOKENIZER] = _dumped(fast)
    return written


def _dumped(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
