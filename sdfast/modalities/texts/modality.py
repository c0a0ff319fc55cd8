"""Texts: a BERT or one of its kin with a masked language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from sdfast import bundled
from sdfast.config import Config
from sdfast.context import Classifier, Context, Kind, MaskedKind, Modality, RawInput, Reader
from sdfast.data.config import UNDIVIDED, DataConfig
from sdfast.errors import UserError
from sdfast.evaluation.classification import predict
from sdfast.log import log, progress_lines
from sdfast.modalities.card import write_card
from sdfast.modalities.texts import checkpoint as models
from sdfast.modalities.texts.batch import TokenBatch, mean_of_words
from sdfast.modalities.texts.chunks import TextChunks, rows_of_documents, voting_chunks
from sdfast.modalities.texts.costs import TextTask, text_flops
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.masking import TokenMasking
from sdfast.modalities.texts.model import (
    Dropouts,
    MaskedLanguageModel,
    TextClassifier,
    TextEncoder,
    TextShape,
    check_text_tokens,
)
from sdfast.modalities.texts.modern import masked_model, text_classifier
from sdfast.modalities.texts.objectives import LabelledTexts, MaskedTexts
from sdfast.modalities.texts.order import TextBatchOrder, sorted_batches
from sdfast.modalities.texts.pack import TextPack, TextSplit
from sdfast.modalities.texts.portable import portable
from sdfast.modalities.texts.shown import MaskedWords, beginning, layer_features
from sdfast.modalities.texts.shown import Reader as ReadableIds
from sdfast.modalities.texts.teacher import TextRecipe, recipe_of
from sdfast.modalities.texts.tokenization import UNBOUNDED, Tokenizer, load_tokenizer
from sdfast.modalities.texts.vocabulary import folder_of, with_words
from sdfast.modalities.texts.words import TfIdf, readable
from sdfast.models.base import check_layer
from sdfast.models.embedder import Embedder, FeatureTokens
from sdfast.models.found import Told
from sdfast.models.hub import find_model_folder
from sdfast.models.layout import Naming
from sdfast.models.portable import Portable
from sdfast.models.weights import described
from sdfast.objectives.choose import check_banked, check_match, finished_state, matches_features
from sdfast.rng import derive_seed

_PREDICTED_TOKENS = 8192  # of a batch
# By rows of train that were held out of the bundled texts; of rows of length 1 scikit-learn's 1 holds back too much.
_WORDS_STRENGTH = 100.0


class Texts(Modality):
    """A BERT or one of its kin with a masked language model, and texts in a pack of token ids."""

    name = "texts"
    unit = "seq"
    how_to_label = "give each a field or column `label`, or put each class's in a folder of its own"
    raw = "words (TF-IDF)"

    @property
    @override
    def bundled_data(self) -> tuple[Path, str]:
        return bundled.text_folder(), "WordNet glosses"

    @override
    def load(self, spec: str, config: Config) -> models.PretrainedMLM:
        loaded = models.load_mlm(spec, seed=derive_seed(config.seed, "head"))
        if not loaded.companions.tokenizer:
            raise UserError(
                f"{find_model_folder(spec)} has no tokenizer (tokenizer.json, vocab.txt or a sentencepiece model), and"
                " texts need the model's; save it there beside the model."
            )
        return with_words(loaded, find_model_folder(spec), config.data)

    @override
    def reload(self, folder: Path) -> models.PretrainedMLM:
        return models.load_mlm(str(folder))

    @override
    def given(
        self, spec: str, told: Told, image_size: tuple[int, int] | int | None, channels: int | None
    ) -> models.PretrainedMLM:
        options = [
            *told.options,
            *["--image-size"] * (image_size is not None),
            *["--channels"] * (channels is not None),
        ]
        if options:
            raise UserError(f"{options[0]} is of models of images, and {spec} is one of texts.")
        return models.load_mlm(spec)

    @override
    def write_given(self, model: models.PretrainedMLM, folder: Path) -> str:
        if model.fresh_head:
            models.save_encoder(model.module, folder, model.companions, model.dropouts)
            return "an encoder of texts"
        models.save_mlm(model.module, folder, model.companions, model.dropouts)
        return "a masked language model"

    @override
    def describe(self, model: models.PretrainedMLM) -> str:
        shape = model.shape
        size = sum(parameter.numel() for parameter in model.module.encoder.parameters())
        sizes = f"{size / 1e6:.1f} M encoder parameters, {shape.vocabulary:,} words, {shape.longest} positions"
        if shape.pre_norm is None or shape.pre_norm.pooling == "cls":
            return sizes
        return f"{sizes}; a classifier takes the mean of all tokens, and distill.tokens=cls matches the first"

    @override
    def own_settings(self, model: models.PretrainedMLM) -> Mapping[str, Any]:
        return {}  # a masked language model does not tell how it was masked

    @override
    def head_steps(self, config: Config, model: models.PretrainedMLM) -> int:
        return config.pretrain.new_head_steps if model.fresh_head else 0

    @override
    def prepare_pack(
        self, spec: str, directory: Path, config: Config, model: models.PretrainedMLM, folder: str
    ) -> TextPack:
        tokenizer = _limited(model.tokenizer, config, model.shape)
        if tokenizer.in_python:
            log.info("data: the model's tokenizer runs in Python, as there is no faster one: it takes longer, once")
        return TextPack.prepare(
            spec, directory, tokenizer, config.data, log.warning, progress_lines("data", "documents")
        )

    @override
    def open_pack(self, directory: Path) -> TextPack:
        return TextPack.open(directory)

    @override
    def training_split(self, pack: TextPack, config: Config, kind: Kind) -> Any:
        train = pack.split("train")
        if kind != "finetune":
            return rows_of_documents(train, pack.tokenization, config.data)
        chunks = self.voting(pack, train, config)
        return train if chunks is None else chunks

    @override
    def voting(self, pack: TextPack, split: Any, config: Config) -> TextChunks | None:
        chunks = voting_chunks(split, pack.tokenization, config.data)
        if chunks is None and config.data.chunk_votes and isinstance(split, TextSplit):
            name = next(name for name, each in pack.splits.items() if each is split)
            if count := pack.manifest["splits"][name].get("truncated", 0):
                raise UserError(
                    f"{pack.directory} was made without data.chunk_votes and lacks the chunks of {count:,} documents of"
                    f" {name}; run `sdfast train --stage finetune data.chunk_votes=true`, or leave it away."
                )
        return chunks

    @override
    def settled(self, config: Config, pack: TextPack) -> Config:
        data, train = config.data, pack.split("train")
        cut, asked = pack.manifest["splits"]["train"].get("truncated", 0), data.chunk
        if cut:
            chunk = train.rest is not None if asked is None else asked
            if chunk and train.rest is None:
                raise UserError(
                    f"{pack.directory} was made with data.chunk=false, and the data it was made of are gone; leave"
                    " data.chunk=true away."
                )
            config = config.model_copy(update={"data": data.model_copy(update={"chunk": chunk})})
            if not chunk:
                log.info("data: %s", _cut(cut, len(train), pack.tokenization.max_length, asked))
        view = self.training_split(pack, config, "pretrain")
        if view is not train:
            log.info("data: %s", view.said(data.chunk_votes))
        elif (chunks := self.voting(pack, train, config)) is not None:
            log.info(
                "data: fine-tuning trains on the chunks of labelled documents (data.chunk_votes), %s in all of %s"
                " documents",
                f"{len(chunks):,}",
                f"{len(train):,}",
            )
        return config

    @override
    def reader(self, split: TextSplit | TextChunks, device: torch.device) -> Reader:
        return lambda rows: TokenBatch(*split.tokens(rows.cpu())).to(device)

    @override
    def order(self, context: Context, kind: Kind, seed: int) -> TextBatchOrder:
        lengths, budget = torch.from_numpy(context.train_of(kind).lengths), context.config.data.token_budget
        rows, classes = context.train_rows(kind), context.balanced_classes(kind)
        return TextBatchOrder(rows, lengths, context.section(kind).batch_size, seed, budget, classes)

    @override
    def inputs(self, context: Context, kind: Kind) -> dict[str, Any]:
        found: dict[str, Any] = {"tokenization": context.pack.tokenization.to_json()}
        if kind != "finetune":
            found["dropouts"] = described(context.model.dropouts)
        elif context.config.data.chunk_votes:
            found["data.chunk_votes"] = True
        return found

    @override
    def masked_views(self, context: Context, kind: MaskedKind, seed: int) -> MaskedTexts:
        config, how, mask_id = context.config, context.pack.tokenization, _mask_id(context)
        ratio = config.pretrain.word_ratio
        words = _words(context) if config.pretrain.whole_word else None
        masking = TokenMasking(mask_id, how.vocabulary, how.special_ids, ratio, config.pretrain.mask_only, words)
        return MaskedTexts(context.train_of(kind).tokens, masking, config.pretrain.mean)

    @override
    def labelled_views(self, context: Context, seed: int) -> LabelledTexts:
        config, given = context.config.finetune, context.model.dropouts
        if {given.hidden, given.attention, given.classifier or given.hidden} != {config.dropout}:
            log.info("finetune: finetune.dropout=%g holds; the model's config.json has %s", config.dropout, given)
        if config.objective == "supcon" and not config.dropout:
            log.warning("finetune: with finetune.dropout=0 the two views of a text are the same")
        return LabelledTexts()

    @override
    def flops(self, context: Context, kind: Kind) -> float:
        """Masked words are counted by their mean."""
        rows, _ = self.order(context, kind, 0).epoch(0)  # with finetune.sampling=balanced some come several times
        how, lengths = context.pack.tokenization, context.train_of(kind).lengths[rows.sort().values.numpy()]
        maskable = lengths - len(how.prefix) - len(how.suffix)
        masked = maskable.clip(min=0) * context.config.pretrain.word_ratio
        task = TextTask(kind, context.config, context.model.shape, len(context.pack.class_names or ()))
        return text_flops(task, lengths, masked if kind != "finetune" else ()).step / len(lengths)

    @override
    def worth_of_zero(self, context: Context, kind: Kind) -> str | None:
        return None

    @override
    def check_distill(self, config: Config, shape: TextShape) -> None:
        check_match(config)
        if config.distill.weight and matches_features(config):
            check_text_tokens(config.distill.tokens)
            check_layer(config.distill.layer, shape.encoder.depth)
            if config.teacher.mode == "bank":
                self.check_bank(config, shape)

    @override
    def check_bank(self, config: Config, shape: TextShape) -> None:
        check_banked(config)
        check_layer(config.distill.layer, shape.encoder.depth)
        check_text_tokens(config.distill.tokens)
        if config.distill.tokens == "all":
            raise UserError(
                "the bank keeps as many features of every text, and with distill.tokens=all a long one has more than a"
                " short one; use teacher.mode=live, or distill.tokens=cls."
            )

    @override
    def recipe(self, config: Config, device: torch.device, model: models.PretrainedMLM, pack: TextPack) -> TextRecipe:
        return recipe_of(model, pack, config, device)

    @override
    def check_deterministic(self, context: Context, recipe: TextRecipe) -> None:
        """The pack's ids are what they are."""

    @override
    def shown(self, context: Context, split: TextSplit | TextChunks, rows: Tensor) -> list[dict[str, str]]:
        reader = _readable(context)
        return [{"text": beginning(reader, ids)} for ids in _ids(split, rows)]

    @override
    def masked_examples(self, context: Context, split: TextSplit | TextChunks, rows: Tensor, seed: int) -> MaskedWords:
        mask_id, ratio = _mask_id(context), context.config.pretrain.word_ratio
        return MaskedWords(_ids(split, rows), _readable(context), mask_id, seed, ratio)

    @override
    def layer_features(
        self, context: Context, encoder: TextEncoder, split: TextSplit | TextChunks, rows: Tensor
    ) -> tuple[Tensor, str]:
        return layer_features(encoder, split.tokens, rows, torch.from_numpy(split.lengths)[rows])

    @override
    def write(
        self, context: Context, module: MaskedLanguageModel, folder: Path, kind: Kind | Literal["knn"], steps: int
    ) -> None:
        given = context.model
        models.save_mlm(module, folder, given.companions, given.dropouts, max_length=module.shape.longest)
        write_card(context, folder, kind, steps)

    @override
    def naming(self, module: Any) -> Naming:
        return FAMILIES[module.shape.kind].naming

    @override
    def classifier(self, config: Config, start: MaskedLanguageModel, classes: int, seed: int) -> TextClassifier:
        return models.classifier_from_mlm(start, classes, _dropouts(config), seed)

    @override
    def predict(
        self, module: TextClassifier, companions: models.Companions, split: TextSplit, rows: Tensor, read: Reader
    ) -> Tensor:
        lengths = torch.from_numpy(split.lengths)[rows]
        return predict(module, read, rows, sorted_batches(torch.arange(len(rows)), lengths, _PREDICTED_TOKENS))

    @override
    def companions(self, model: models.PretrainedMLM) -> models.Companions:
        return model.companions

    @override
    def portable(self, module: Any, companions: models.Companions) -> Portable:
        return portable(module, companions)

    @override
    def write_classifier(
        self, context: Context, module: TextClassifier, folder: Path, names: list[str], steps: int
    ) -> None:
        config, longest = context.config, min(context.config.data.max_length, module.shape.longest)
        companions = context.model.companions
        problem = context.pack.problem
        models.save_classifier(module, folder, companions, names, _dropouts(config), longest, problem)
        write_card(context, folder, "finetune", steps)

    @override
    def read_classifier(self, folder: Path) -> Classifier:
        module, companions, names = models.load_classifier(folder)
        return Classifier(module, names, companions, folder)

    @override
    def conversion(self, config: Config, classifier: Classifier) -> tuple[type[TextPack], Tokenizer, DataConfig]:
        options = config.data.model_copy(update={**UNDIVIDED, "duplicates": "keep", "chunk": False})
        tokenizer = _limited(load_tokenizer(classifier.folder, UNBOUNDED), config, classifier.module.shape)
        return TextPack, tokenizer, options

    @override
    def features(self, module: Any, tokens: FeatureTokens, how: Tokenizer | TextPack) -> Embedder:
        if tokens == "patch":
            raise UserError("--tokens patch is of images; for texts use cls (the first token) or mean.")
        width = module.shape.encoder.width
        if tokens == "cls":
            return Embedder(module, lambda encoder, texts: encoder.features(texts, "cls"), width)
        first, last = len(how.tokenization.prefix), len(how.tokenization.suffix)
        return Embedder(module, lambda encoder, texts: mean_of_words(encoder, texts, first, last), width)

    @override
    def raw_input(self, pack: TextPack, rows: Tensor, config: Config, companions: models.Companions) -> RawInput:
        with folder_of(companions) as folder:
            tokenizer = load_tokenizer(folder, UNBOUNDED)
        texts = readable(tokenizer, pack.tokenization.special_ids, config.data.chunk_votes)
        words = TfIdf(texts(pack.split("train"), rows))
        return RawInput(_WORDS_STRENGTH, lambda split, some: words(texts(split, some)))

    @override
    def fits(self, pack: TextPack, config: Config, classifier: Classifier) -> bool:
        own = _limited(load_tokenizer(classifier.folder, UNBOUNDED), config, classifier.module.shape)
        return pack.tokenization == own.tokenization

    @override
    def filled(self, state: dict[str, Tensor], config: Config, shape: TextShape, classes: int | None) -> nn.Module:
        state = finished_state(state)
        if classes is None:
            return models.filled(masked_model, state, shape)
        return models.filled(text_classifier, state, shape, classes)


def _mask_id(context: Context) -> int:
    """The mask token.

    Raises:
        UserError: there is none.
    """
    if (found := context.pack.tokenization.mask_id) is None:
        raise UserError(f"the tokenizer of {context.config.model_spec} has no mask token, and masked words need one.")
    return int(found)


def _readable(context: Context) -> ReadableIds:
    return ReadableIds(context.model.tokenizer, context.pack.tokenization)


def _ids(split: TextSplit | TextChunks, rows: Tensor) -> list[list[int]]:
    """The ids of some rows, those of each by itself."""
    ids, lengths = split.tokens(rows)
    return [each.tolist() for each in ids.split(lengths.tolist())]


def _words(context: Context) -> Tensor:
    """Which tokens are of one word, by their ids: see `TokenMasking.words`.

    Raises:
        UserError: the tokenizer does not tell.
    """
    if (table := context.model.tokenizer.word_table()) is None:
        raise UserError(
            f"the tokenizer of {context.config.model_spec} does not tell where words begin, as those of BERT, RoBERTa"
            " and XLM-R do; leave pretrain.whole_word=true away."
        )
    return torch.from_numpy(table)


def _limited(tokenizer: Tokenizer, config: Config, shape: TextShape) -> Tokenizer:
    """A tokenizer that cuts at what the settings and the model's positions allow."""
    longest = min(config.data.max_length, shape.longest)
    tokenizer = tokenizer.limited(longest)
    if (length := tokenizer.tokenization.max_length) < longest:
        log.warning("data: texts are cut at %d tokens, as the tokenizer's model_max_length says", length)
    return tokenizer


def _cut(count: int, documents: int, length: int, asked: bool | None) -> str:
    """What is not seen of long documents, for the log."""
    why = " (data.chunk=false)" if asked is False else ", as they were before; data.chunk=true trains on all of them"
    return f"{count:,} of {documents:,} documents of train are cut at {length} tokens{why}"


def _dropouts(config: Config) -> Dropouts:
    """The dropout of a classifier: `finetune.dropout`, after embeddings and layers and of attention weights."""
    dropout = config.finetune.dropout
    return replace(Dropouts(), hidden=dropout, attention=dropout)


TEXTS = Texts()
