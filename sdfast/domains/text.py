"""Texts: a RoBERTa or BERT with a masked language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sdfast import bundled
from sdfast.config import Modality, OptimisationConfig
from sdfast.costs.measure import text_flops
from sdfast.costs.task import Task
from sdfast.data.text_batch import TokenBatch
from sdfast.data.text_masking import TokenMasking
from sdfast.data.text_order import TextBatchOrder
from sdfast.data.text_pack import TextPack, TextSplit, open_text_pack, prepare_text_pack
from sdfast.data.tokenization import Tokenizer, load_tokenizer
from sdfast.domains.base import Classifier, MaskedStage, Reader, refuse_settings
from sdfast.domains.card import write_card
from sdfast.errors import UserError
from sdfast.evaluation.text import predict_texts
from sdfast.log import log, progress_lines
from sdfast.models import text_checkpoint as models
from sdfast.models.hub import find_model_folder
from sdfast.models.text import Dropouts, MaskedLanguageModel, TextClassifier, TextShape
from sdfast.objectives.base import Objective
from sdfast.objectives.choose import check_banked, check_match, matches_features
from sdfast.objectives.choose_text import masked_text_objective, matched_tokens, text_classifier_objective
from sdfast.objectives.contrastive import without_projection
from sdfast.regularizers.choose import advice, on_optimizer
from sdfast.regularizers.r4f import add_spectral_norm, folded_state
from sdfast.rng import derive_seed
from sdfast.teacher.features import check_layer
from sdfast.teacher.live_text import LiveTextTeacher
from sdfast.teacher.targets import Teacher
from sdfast.teacher.text_recipe import TextRecipe

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline

_HEAD_STEPS = 1000
_OF_IMAGES = ("pretrain.mask", "pretrain.augment", "pretrain.norm_pix", "finetune.flip", "teacher.views")


class TextDomain:
    """See `sdfast.domains.base.Domain`."""

    modality: Modality = "texts"
    unit: Literal["img", "seq"] = "seq"
    later: Mapping[str, Any] = MappingProxyType(
        {
            "distill.match": "features",
            "finetune.regularizer": "none",
            "finetune.objective": "cross_entropy",
            "finetune.best_dev": False,
        }
    )
    not_ours = frozenset(_OF_IMAGES)
    masking = frozenset(("mask_ratio", "mask_only", "mean"))

    def __init__(self, run: Pipeline) -> None:
        self.run = run

    @property
    def bundled_data(self) -> tuple[Path, str]:
        """See `Domain`."""
        return bundled.text_folder(), "WordNet glosses"

    def check(self) -> None:
        """See `Domain.check`."""
        config, model = self.run.config, self.run.model_spec
        keys = [*_OF_IMAGES, "data.image_size", "data.channels", "data.image_key", "data.background", "data.range"]
        if config.pretrain.norm_pix:  # as the config.yaml of an older run of texts has it
            keys.remove("pretrain.norm_pix")
        refuse_settings(config, keys, model, "texts")

    def check_distill(self) -> None:
        """See `Domain.check_distill`."""
        config = self.run.config
        check_match(config)
        if config.distill.weight and matches_features(config):
            matched_tokens(config)
            check_layer(config.distill.layer, self.run.initial.shape.encoder.depth)
            if config.teacher.mode == "bank":
                self.check_bank(self.run.initial.shape)

    def check_bank(self, shape: TextShape) -> None:
        """See `Domain.check_bank`."""
        check_banked(self.run.config)
        check_layer(self.run.config.distill.layer, shape.encoder.depth)
        if matched_tokens(self.run.config) == "all":
            raise UserError(
                "the bank keeps as many features of every text, and with distill.tokens=all a long one has more than a"
                " short one; use teacher.mode=live, or distill.tokens=cls."
            )

    def load(self, spec: str) -> models.PretrainedMLM:
        """See `Domain.load`.

        Raises:
            UserError: the folder has no tokenizer.
        """
        loaded = models.load_mlm(spec, seed=derive_seed(self.run.config.seed, "head"))
        if not loaded.companions.tokenizer:
            raise UserError(
                f"{find_model_folder(spec)} has no tokenizer (tokenizer.json or vocab.txt), and texts need the model's;"
                " save it there beside the model."
            )
        return loaded

    def reload(self, folder: Path) -> models.PretrainedMLM:
        """See `Domain.reload`."""
        return models.load_mlm(str(folder))

    def describe(self, loaded: models.PretrainedMLM) -> str:
        """See `Domain.describe`."""
        shape = loaded.shape
        size = sum(parameter.numel() for parameter in loaded.module.encoder.parameters())
        return f"{size / 1e6:.1f} M encoder parameters, {shape.vocabulary:,} words, {shape.longest} positions"

    def own_settings(self, loaded: models.PretrainedMLM) -> Mapping[str, Any]:
        """See `Domain.own_settings`: a masked language model does not tell how it was masked."""
        return {}

    def prepare_pack(self, spec: str, directory: Path) -> TextPack:
        """See `Domain.prepare_pack`."""
        tokenizer = self._tokenizer(find_model_folder(self.run.model_path), self.run.initial.shape)
        return prepare_text_pack(
            spec, directory, tokenizer, self.run.config.data, log.warning, progress_lines("data", "documents")
        )

    def open_pack(self, directory: Path) -> TextPack:
        """See `Domain.open_pack`."""
        return open_text_pack(directory)

    def reader(self, split: TextSplit) -> Reader:
        """See `Domain.reader`."""
        device = self.run.device
        return lambda rows: TokenBatch(*split.tokens(rows.cpu())).to(device)

    def order(self, split: TextSplit, rows: Tensor, config: OptimisationConfig, seed: int) -> TextBatchOrder:
        """See `Domain.order`."""
        lengths, budget = torch.from_numpy(split.lengths), self.run.config.data.token_budget
        return TextBatchOrder(rows, lengths, config.batch_size, seed, budget)

    def inputs(self, stage: str) -> dict[str, Any]:
        """See `Domain.inputs`."""
        found: dict[str, Any] = {"tokenization": self.run.pack.tokenization.to_json()}
        if stage != "finetune":
            found["dropouts"] = asdict(self.run.initial.dropouts)
        return found

    def head_steps(self) -> int:
        """See `Domain.head_steps`."""
        config = self.run.config.pretrain
        if not self.run.initial.fresh_head:
            return 0
        return min(_HEAD_STEPS, config.steps) if config.head_steps is None else config.head_steps

    def masked(
        self, module: MaskedLanguageModel, stage: MaskedStage, seed: int, teacher: Teacher | MaskedLanguageModel | None
    ) -> Objective:
        """See `Domain.masked`."""
        config, how = self.run.config, self.run.pack.tokenization
        if how.mask_id is None:
            raise UserError(f"the tokenizer of {self.run.model_spec} has no mask token, and masked words need one.")
        ratio = config.pretrain.word_ratio
        masking = TokenMasking(how.mask_id, how.vocabulary, how.special_ids, ratio, config.pretrain.mask_only)
        read = self.run.pack.split("train").tokens
        return masked_text_objective(module, read, masking, config, stage, seed, teacher)

    def live_teacher(self, loaded: models.PretrainedMLM) -> Teacher:
        """See `Domain.live_teacher`."""
        tokens, layer = matched_tokens(self.run.config), self.run.config.distill.layer
        return LiveTextTeacher(loaded.module.encoder, tokens, layer).to(self.run.device)

    def recipe(self, loaded: models.PretrainedMLM, pack: TextPack) -> TextRecipe:
        """See `Domain.recipe`."""
        train, config = pack.split("train"), self.run.config
        return TextRecipe(
            encoder=loaded.module.encoder,
            shape=loaded.shape,
            split=train,
            digests=train.digests,
            rows=train.limited(config.data.limit, config.data.limit_seed),
            tokenization=pack.tokenization,
            tokens="cls",
            dtype=config.teacher.dtype,
            device=self.run.device,
            layer=config.distill.layer,
        )

    def check_deterministic(self, recipe: TextRecipe) -> None:
        """See `Domain.check_deterministic`: the pack's ids are what they are."""

    def flops(self, stage: MaskedStage | Literal["finetune"], rows: Tensor) -> float:
        """See `Domain.flops`; masked words are counted by their mean."""
        split, how = self.run.pack.split("train"), self.run.pack.tokenization
        lengths = split.lengths[rows.numpy()]
        maskable = lengths - len(how.prefix) - len(how.suffix)
        masked = maskable.clip(min=0) * self.run.config.pretrain.word_ratio
        task = Task(stage, self.run.config, self.run.initial.shape, len(self.run.pack.class_names or ()))
        return text_flops(task, lengths, masked if stage != "finetune" else ()).step / len(lengths)

    def worth_of_zero(self, stage: str) -> str | None:
        """See `Domain.worth_of_zero`."""
        return None

    def write(self, module: MaskedLanguageModel, folder: Path, stage: str, steps: int) -> None:
        """See `Domain.write`."""
        shape, dropouts = module.shape, self.run.initial.dropouts
        models.save_mlm(module, folder, self.companions, dropouts, max_length=shape.longest)
        write_card(self.run, folder, stage, steps)

    def classifier(self, start: MaskedLanguageModel, classes: int, seed: int) -> TextClassifier:
        """See `Domain.classifier`."""
        return models.text_classifier_from_mlm(start, classes, self._dropouts(), seed)

    def classification(self, module: TextClassifier, labels: Tensor, seed: int) -> Objective:
        """See `Domain.classification`."""
        config, given = self.run.config.finetune, self.run.initial.dropouts
        if {given.hidden, given.attention, given.classifier or given.hidden} != {config.dropout}:
            log.info("finetune: finetune.dropout=%g holds; the model's config.json has %s", config.dropout, given)
        regularizer = on_optimizer(config, module)
        if config.regularizer == "r4f":
            add_spectral_norm(module.classifier, seed)
        if config.objective == "supcon" and not config.dropout:
            log.warning("finetune: with finetune.dropout=0 the two views of a text are the same")
        for sentence in advice(config):
            log.warning("finetune: %s", sentence)
        return text_classifier_objective(module, labels, self.run.config, seed, regularizer)

    def predict(self, module: TextClassifier, companions: models.Companions, split: TextSplit, rows: Tensor) -> Tensor:
        """See `Domain.predict`."""
        return predict_texts(module, self.run.read(split), torch.from_numpy(split.lengths), rows)

    @property
    def companions(self) -> models.Companions:
        """Of the initial model."""
        return self.run.initial.companions

    def write_classifier(self, module: TextClassifier, folder: Path, names: list[str], steps: int) -> None:
        """See `Domain.write_classifier`."""
        longest = min(self.run.config.data.max_length, module.shape.longest)
        models.save_text_classifier(module, folder, self.companions, names, self._dropouts(), max_length=longest)
        write_card(self.run, folder, "finetune", steps)

    def read_classifier(self, folder: Path) -> Classifier:
        """See `Domain.read_classifier`."""
        module, companions, names = models.load_text_classifier(folder)
        return Classifier(module, names, companions)

    def evaluation_pack(self, spec: str, directory: Path, classifier: Classifier) -> TextPack:
        """See `Domain.evaluation_pack`."""
        options = self.run.config.data.model_copy(update={"test_fraction": 0.0, "duplicates": "keep"})
        tokenizer = self._own_tokenizer(classifier)
        return prepare_text_pack(spec, directory, tokenizer, options, log.warning)

    def fits(self, pack: TextPack, classifier: Classifier) -> bool:
        """See `Domain.fits`."""
        return pack.tokenization == self._own_tokenizer(classifier).tokenization

    def filled(self, state: dict[str, Tensor], classes: int | None) -> nn.Module:
        """See `Domain.filled`."""
        shape = self.run.initial.shape
        if classes is None:
            return models.filled(MaskedLanguageModel, state, shape)
        state = without_projection(folded_state(state, "classifier"))
        return models.filled(TextClassifier, state, shape, classes)

    def _own_tokenizer(self, classifier: Classifier) -> Tokenizer:
        return self._tokenizer(self.run.out / "finetune" / "model", classifier.module.shape)

    def _tokenizer(self, folder: Path, shape: TextShape) -> Tokenizer:
        """The tokenizer in a folder, cutting at what the settings and the model's positions allow.

        Raises:
            UserError: it has words that the model has not.
        """
        longest = min(self.run.config.data.max_length, shape.longest)
        tokenizer = load_tokenizer(folder, longest)
        words = tokenizer.tokenization.vocabulary
        if (more := words - shape.vocabulary) > 0:
            raise UserError(
                f"the tokenizer in {folder} has {words:,} words, {more:,} more than its model; if they were added to"
                " it, call model.resize_token_embeddings(len(tokenizer)) of transformers and save both there, else the"
                " two do not belong together."
            )
        if (length := tokenizer.tokenization.max_length) < longest:
            log.warning("data: texts are cut at %d tokens, as the tokenizer's model_max_length says", length)
        return tokenizer

    def _dropouts(self) -> Dropouts:
        """Of the classifier."""
        dropout = self.run.config.finetune.dropout
        return replace(Dropouts(), hidden=dropout, attention=dropout)
