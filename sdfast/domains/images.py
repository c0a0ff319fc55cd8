"""Images: a ViT with a masked auto-encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sdfast import bundled
from sdfast.config import Modality, OptimisationConfig
from sdfast.costs.measure import image_flops
from sdfast.costs.plan import worth_of_zero
from sdfast.costs.task import Task
from sdfast.data.masking import visible_count
from sdfast.data.order import BatchOrder
from sdfast.data.pack import Pack, PackSplit, open_pack, prepare_pack
from sdfast.data.pictures import kept_options, options_of_model
from sdfast.data.transform import Transform
from sdfast.domains.base import Classifier, MaskedStage, Reader, refuse_settings
from sdfast.domains.card import write_card
from sdfast.engine.pixels import image_reader
from sdfast.engine.teacher_bank import augmentation, recipe_of
from sdfast.errors import UserError
from sdfast.evaluation.classification import predict
from sdfast.log import log, progress_lines
from sdfast.models import checkpoint as models
from sdfast.models.processor import ImageProcessor
from sdfast.models.vit import MaskedAutoencoder, ViTClassifier, ViTShape
from sdfast.objectives.base import Normalise, Objective
from sdfast.objectives.choose import (
    check_banked,
    check_match,
    classifier_objective,
    masked_objective,
    matches_features,
)
from sdfast.objectives.contrastive import without_projection
from sdfast.regularizers.choose import advice, on_optimizer
from sdfast.regularizers.r4f import add_spectral_norm, folded_state
from sdfast.rng import derive_seed
from sdfast.teacher.features import check_layer
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.preflight import check_augment, check_deterministic
from sdfast.teacher.recipe import Recipe
from sdfast.teacher.targets import Teacher

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline


class ImageDomain:
    """See `sdfast.domains.base.Domain`."""

    modality: Modality = "images"
    unit: Literal["img", "seq"] = "img"
    later: Mapping[str, Any] = MappingProxyType(
        {
            "distill.layer": "last",
            "distill.match": "features",
            "pretrain.augment": "none",
            "finetune.regularizer": "none",
            "finetune.objective": "cross_entropy",
            "finetune.best_dev": False,
        }
    )
    not_ours = frozenset(("pretrain.mask_only", "pretrain.mean", "pretrain.head_steps"))
    masking = frozenset(("mask_ratio", "mask", "norm_pix", "augment"))

    def __init__(self, run: Pipeline) -> None:
        self.run = run

    @property
    def bundled_data(self) -> tuple[Path, str]:
        """See `Domain`."""
        return bundled.data_folder(), "Fashion-MNIST images"

    def check(self) -> None:
        """See `Domain.check`."""
        keys = (*sorted(self.not_ours), "data.text_key", "data.max_length", "data.token_budget")
        refuse_settings(self.run.config, keys, self.run.model_spec, "images")

    def check_distill(self) -> None:
        """See `Domain.check_distill`."""
        config = self.run.config
        check_match(config)
        if config.distill.weight:
            check_layer(config.distill.layer, self.run.initial.shape.encoder.depth)
            check_augment(config, banked=config.teacher.mode == "bank" and matches_features(config))

    def check_bank(self, shape: ViTShape) -> None:
        """See `Domain.check_bank`."""
        check_banked(self.run.config)
        check_layer(self.run.config.distill.layer, shape.encoder.depth)
        check_augment(self.run.config, banked=True)

    def load(self, spec: str) -> models.PretrainedMAE:
        """See `Domain.load`."""
        data, seed = self.run.config.data, derive_seed(self.run.config.seed, "decoder")
        return models.load_mae(spec, image_size=data.image_size, channels=data.channels, seed=seed)

    def reload(self, folder: Path) -> models.PretrainedMAE:
        """See `Domain.reload`."""
        return models.load_mae(str(folder))

    def describe(self, loaded: models.PretrainedMAE) -> str:
        """See `Domain.describe`."""
        shape = loaded.shape
        size = sum(parameter.numel() for parameter in loaded.module.encoder.parameters())
        height, width = shape.image_size
        return f"{size / 1e6:.1f} M encoder parameters, {height}x{width} px, patches of {shape.patch_size}"

    def own_settings(self, loaded: models.PretrainedMAE) -> Mapping[str, Any]:
        """See `Domain.own_settings`."""
        return loaded.trained_with

    def prepare_pack(self, spec: str, directory: Path) -> Pack:
        """See `Domain.prepare_pack`."""
        transform = self._transform(self.run.initial.processor, self.run.initial.shape.channels)
        return prepare_pack(
            spec, directory, transform, self.run.config.data, log.warning, progress_lines("data", "images")
        )

    def open_pack(self, directory: Path) -> Pack:
        """See `Domain.open_pack`."""
        return open_pack(directory)

    def reader(self, split: PackSplit) -> Reader:
        """See `Domain.reader`."""
        return image_reader(split, self.run.device)

    def order(self, split: PackSplit, rows: Tensor, config: OptimisationConfig, seed: int) -> BatchOrder:
        """See `Domain.order`."""
        return BatchOrder(rows, config.batch_size, seed)

    def inputs(self, stage: str) -> dict[str, Any]:
        """See `Domain.inputs`."""
        processor, views = self.run.initial.processor, self.run.config.teacher.views
        found: dict[str, Any] = {"mean and std": [list(processor.mean), list(processor.std)]}
        if stage == "distill" and views:  # they decide the pixels
            found["teacher.views"] = views
        return found

    def head_steps(self) -> int:
        """See `Domain.head_steps`: pre-training a new decoder alone is not needed."""
        return 0

    def masked(
        self, module: MaskedAutoencoder, stage: MaskedStage, seed: int, teacher: Teacher | MaskedAutoencoder | None
    ) -> Objective:
        """See `Domain.masked`."""
        assert stage != "head"
        config, patches = self.run.config, self.run.initial.shape.patches
        if config.pretrain.mask == "fixed" and not visible_count(patches, config.pretrain.patch_ratio):
            raise UserError(
                f"pretrain.mask_ratio={config.pretrain.patch_ratio} leaves none of the {patches}"
                " patches of an image visible; lower it."
            )
        digests = self.run.pack.split("train").digests
        fresh = stage != "distill" or not config.teacher.views
        augment = augmentation(config, digests, seed if fresh else None)
        normalise = self._normalise(self.run.initial.processor)
        return masked_objective(module, normalise, config, stage, seed, teacher, augment=augment)

    def live_teacher(self, loaded: models.PretrainedMAE) -> Teacher:
        """See `Domain.live_teacher`."""
        config = self.run.config.distill
        return LiveTeacher(loaded.module.encoder, config.tokens, config.layer).to(self.run.device)

    def recipe(self, loaded: models.PretrainedMAE, pack: Pack) -> Recipe:
        """See `Domain.recipe`."""
        return recipe_of(loaded, pack, self.run.config, self.run.device)

    def check_deterministic(self, recipe: Recipe) -> None:
        """See `Domain.check_deterministic`."""
        images, normalise = self.run.read(self.run.pack.split("train")), self._normalise(self.run.initial.processor)

        def read(rows: Tensor) -> Tensor:
            pixels = normalise(images(rows))
            return pixels if recipe.augment is None else recipe.augment(pixels, rows, 0)

        check_deterministic(read, torch.from_numpy(recipe.rows))

    def flops(self, stage: MaskedStage | Literal["finetune"], rows: Tensor) -> float:
        """See `Domain.flops`."""
        return image_flops(self._task(stage)).step

    def worth_of_zero(self, stage: Any) -> str | None:
        """See `Domain.worth_of_zero`."""
        return worth_of_zero(self._task(stage), self.run.device, self.run.ranks.world)

    def _task(self, stage: Any) -> Task:
        return Task(stage, self.run.config, self.run.initial.shape, len(self.run.pack.class_names or ()))

    def write(self, module: MaskedAutoencoder, folder: Path, stage: str, steps: int) -> None:
        """See `Domain.write`: with the encoder alone in a folder of its own, as transformers masks with the whole."""
        masking, processor = self.run.config.pretrain, self._written_processor()
        models.save_mae(
            module,
            folder,
            processor,
            mask_ratio=masking.patch_ratio,
            norm_pix_loss=masking.normalised_pixels,
        )
        models.save_encoder(module, folder / "encoder", processor)
        write_card(self.run, folder, stage, steps)

    def classifier(self, start: MaskedAutoencoder, classes: int, seed: int) -> ViTClassifier:
        """See `Domain.classifier`."""
        return models.classifier_from_mae(start, classes, self.run.config.finetune.dropout, seed)

    def classification(self, module: ViTClassifier, labels: Tensor, seed: int) -> Objective:
        """See `Domain.classification`."""
        config, normalise = self.run.config.finetune, self._normalise(self.run.initial.processor)
        regularizer = on_optimizer(config, module)
        if config.regularizer == "r4f":
            add_spectral_norm(module.classifier, seed)
        for sentence in advice(config):
            log.warning("finetune: %s", sentence)
        return classifier_objective(module, normalise, labels, self.run.config, seed, regularizer)

    def predict(self, module: ViTClassifier, companions: ImageProcessor, split: PackSplit, rows: Tensor) -> Tensor:
        """See `Domain.predict`."""
        return predict(module, self._normalise(companions), self.run.read(split), rows)

    @property
    def companions(self) -> ImageProcessor:
        """Of the initial model: see `predict`."""
        return self.run.initial.processor

    def write_classifier(self, module: ViTClassifier, folder: Path, names: list[str], steps: int) -> None:
        """See `Domain.write_classifier`."""
        processor, dropout = self._written_processor(), self.run.config.finetune.dropout
        models.save_classifier(module, folder, processor, names, dropout)
        write_card(self.run, folder, "finetune", steps)

    def read_classifier(self, folder: Path) -> Classifier:
        """See `Domain.read_classifier`."""
        module, processor, names = models.load_classifier(folder)
        return Classifier(module, names, processor)

    def evaluation_pack(self, spec: str, directory: Path, classifier: Classifier) -> Pack:
        """See `Domain.evaluation_pack`."""
        options = self.run.config.data.model_copy(update={"test_fraction": 0.0, "duplicates": "keep"})
        options = options_of_model(options, classifier.companions.pictures)
        transform = self._transform(classifier.companions, classifier.module.shape.channels)
        return prepare_pack(spec, directory, transform, options, log.warning)

    def fits(self, pack: Pack, classifier: Classifier) -> bool:
        """See `Domain.fits`."""
        return pack.transform == self._transform(classifier.companions, classifier.module.shape.channels)

    def filled(self, state: dict[str, Tensor], classes: int | None) -> nn.Module:
        """See `Domain.filled`."""
        shape = self.run.initial.shape
        if classes is None:
            return models.filled(MaskedAutoencoder, state, shape)
        dropout = self.run.config.finetune.dropout
        state = without_projection(folded_state(state, "classifier"))
        return models.filled(ViTClassifier, state, replace(shape, decoder=None), classes, dropout)

    def _normalise(self, processor: ImageProcessor) -> Normalise:
        """From uint8 images to the model's input."""
        return Normalise(processor.mean, processor.std).to(self.run.device)

    def _written_processor(self) -> ImageProcessor:
        """What goes beside a trained model: the initial model's, and how this run made its pictures."""
        pictures = kept_options(self.run.config.data, self.run.pack.levels)
        return replace(self.run.initial.processor, pictures=pictures)

    def _transform(self, processor: ImageProcessor, channels: int) -> Transform:
        return Transform(processor.height, processor.width, channels, processor.mean, processor.std)
