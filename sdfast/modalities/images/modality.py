"""Images: a ViT with a masked auto-encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from sdfast import bundled
from sdfast.config import Config, with_own_settings
from sdfast.context import Classifier, Context, Kind, MaskedKind, Modality, RawInput, Reader
from sdfast.costs.plan import worth_of_zero
from sdfast.data.config import UNDIVIDED, DataConfig
from sdfast.data.order import BatchOrder, all_batches
from sdfast.errors import UserError
from sdfast.evaluation.classification import predict
from sdfast.log import log, progress_lines
from sdfast.modalities.card import write_card
from sdfast.modalities.images import checkpoint as models
from sdfast.modalities.images.costs import ImageTask
from sdfast.modalities.images.masking import visible_count
from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier, ViTEncoder, ViTShape
from sdfast.modalities.images.objectives import LabelledImages, MaskedImages
from sdfast.modalities.images.pack import ImagePack, ImageSplit
from sdfast.modalities.images.pictures import kept_options, options_of_model
from sdfast.modalities.images.pixels import RawPixels
from sdfast.modalities.images.portable import portable
from sdfast.modalities.images.processor import ImageProcessor
from sdfast.modalities.images.reader import Normalise, image_reader
from sdfast.modalities.images.shown import MaskedPictures, layer_features, norm_pix_of, picture
from sdfast.modalities.images.teacher import ImageRecipe, augmentation, recipe_of
from sdfast.modalities.images.tiles import ImageTiles, rows_of_pictures
from sdfast.modalities.images.transform import Transform
from sdfast.models.base import check_layer
from sdfast.models.embedder import Embedder, FeatureTokens
from sdfast.models.found import Told
from sdfast.models.layout import Naming
from sdfast.models.portable import Portable
from sdfast.objectives.choose import check_banked, check_match, finished_state, matches_features
from sdfast.rng import derive_seed
from sdfast.teacher.preflight import check_augment, check_deterministic

_FEW = 8  # channels in a sentence


class Images(Modality):
    """A ViT with a masked auto-encoder, and images in a pack of decoded pixels."""

    name = "images"
    unit = "img"
    how_to_label = "put each class's images in a folder of its own"
    raw = "raw pixels"

    @property
    @override
    def bundled_data(self) -> tuple[Path, str]:
        return bundled.data_folder(), "Fashion-MNIST images"

    @override
    def load(self, spec: str, config: Config) -> models.PretrainedMAE:
        data, seed = config.data, derive_seed(config.seed, "decoder")
        loaded = models.load_mae(spec, image_size=data.image_size, channels=data.channels, seed=seed)
        loaded.notes += _other_pictures(loaded.processor, data)
        return loaded

    @override
    def reload(self, folder: Path) -> models.PretrainedMAE:
        return models.load_mae(str(folder))

    @override
    def given(
        self, spec: str, told: Told, image_size: tuple[int, int] | int | None, channels: int | None
    ) -> models.PretrainedMAE:
        return models.load_mae(spec, image_size=image_size, channels=channels, told=told)

    @override
    def write_given(self, model: models.PretrainedMAE, folder: Path) -> str:
        if model.fresh_decoder:
            models.save_encoder(model.module, folder, model.processor)
            return "an encoder of images"
        own = with_own_settings(Config(), model.trained_with)[0].pretrain
        models.save_mae(
            model.module,
            folder,
            model.processor,
            mask_ratio=own.patch_ratio,
            norm_pix_loss=own.normalised_pixels,
        )
        models.save_encoder(model.module, folder / "encoder", model.processor)
        return "a masked auto-encoder"

    @override
    def describe(self, model: models.PretrainedMAE) -> str:
        size = sum(parameter.numel() for parameter in model.module.encoder.parameters())
        height, width = model.shape.image_size
        return f"{size / 1e6:.1f} M encoder parameters, {height}x{width} px, patches of {model.shape.patch_size}"

    @override
    def own_settings(self, model: models.PretrainedMAE) -> Mapping[str, Any]:
        return model.trained_with

    @override
    def head_steps(self, config: Config, model: models.PretrainedMAE) -> int:
        return config.pretrain.new_head_steps if model.fresh_decoder else 0

    @override
    def prepare_pack(
        self, spec: str, directory: Path, config: Config, model: models.PretrainedMAE, folder: str
    ) -> ImagePack:
        transform = _transform(model.processor, model.shape.channels, config.data)
        return ImagePack.prepare(spec, directory, transform, config.data, log.warning, progress_lines("data", "images"))

    @override
    def fitted(self, model: models.PretrainedMAE, pack: ImagePack, config: Config) -> models.PretrainedMAE:
        if config.data.normalise == "model":
            return model
        mean, std = pack.statistics
        words = [", ".join(f"{number:.4g}" for number in each[:_FEW]) for each in (mean, std)]
        more = f" (the first {_FEW} of {len(mean)} channels)" if len(mean) > _FEW else ""
        log.info("data: normalised by the train split's mean %s and deviation %s%s", *words, more)
        return replace(model, processor=replace(model.processor, mean=mean, std=std))

    @override
    def open_pack(self, directory: Path) -> ImagePack:
        return ImagePack.open(directory)

    @override
    def training_split(self, pack: ImagePack, config: Config, kind: Kind) -> Any:
        return rows_of_pictures(pack.split("train"))

    @override
    def voting(self, pack: ImagePack, split: Any, config: Config) -> ImageTiles | None:
        view = rows_of_pictures(split)
        return view if isinstance(view, ImageTiles) else None

    @override
    def settled(self, config: Config, pack: ImagePack) -> Config:
        tiles = [f"{split.tiles.sum():,} of {name}" for name, split in pack.splits.items() if split.tiles is not None]
        if tiles:
            log.info(
                "data: tiles: %s; each is a row of training, and a picture's probabilities are the mean of its tiles'",
                ", ".join(tiles),
            )
        return config

    @override
    def reader(self, split: ImageSplit | ImageTiles, device: torch.device) -> Reader:
        return image_reader(split, device)

    @override
    def order(self, context: Context, kind: Kind, seed: int) -> BatchOrder:
        classes = context.balanced_classes(kind)
        return BatchOrder(context.train_rows(kind), context.section(kind).batch_size, seed, classes)

    @override
    def inputs(self, context: Context, kind: Kind) -> dict[str, Any]:
        processor, pixels = context.model.processor, context.pack.transform.pixels
        found = {"mean and std": [list(processor.mean), list(processor.std)]}
        return found if pixels == "uint8" else {**found, "pixels": pixels}

    @override
    def masked_views(self, context: Context, kind: MaskedKind, seed: int) -> MaskedImages:
        config, patches = context.config, context.model.shape.patches
        if config.pretrain.mask == "fixed" and not visible_count(patches, config.pretrain.patch_ratio):
            raise UserError(
                f"pretrain.mask_ratio={config.pretrain.patch_ratio} leaves none of the {patches}"
                " patches of an image visible; lower it."
            )
        fresh = kind != "distill" or not config.teacher.views
        augment = augmentation(config, context.train_of(kind).digests, seed if fresh else None)
        return MaskedImages(_normalise(context), config.pretrain, augment)

    @override
    def labelled_views(self, context: Context, seed: int) -> LabelledImages:
        return LabelledImages(_normalise(context), context.config.finetune.flip, seed)

    @override
    def flops(self, context: Context, kind: Kind) -> float:
        return _task(context, kind).flops().step

    @override
    def worth_of_zero(self, context: Context, kind: Kind) -> str | None:
        return worth_of_zero(_task(context, kind), context.device, context.ranks.world)

    @override
    def check_distill(self, config: Config, shape: ViTShape) -> None:
        check_match(config)
        if config.distill.weight:
            check_layer(config.distill.layer, shape.encoder.depth)
            check_augment(config, banked=config.teacher.mode == "bank" and matches_features(config))

    @override
    def check_bank(self, config: Config, shape: ViTShape) -> None:
        check_banked(config)
        check_layer(config.distill.layer, shape.encoder.depth)
        check_augment(config, banked=True)

    @override
    def recipe(self, config: Config, device: torch.device, model: models.PretrainedMAE, pack: ImagePack) -> ImageRecipe:
        return recipe_of(model, pack, config, device)

    @override
    def check_deterministic(self, context: Context, recipe: ImageRecipe) -> None:
        images, normalise = context.read(context.train_of("distill")), _normalise(context)

        def read(rows: Tensor) -> Tensor:
            pixels = normalise(images(rows))
            return pixels if recipe.augment is None else recipe.augment(pixels, rows, 0)

        check_deterministic(read, torch.from_numpy(recipe.rows))

    @override
    def shown(self, context: Context, split: ImageSplit | ImageTiles, rows: Tensor) -> list[dict[str, str]]:
        return [{"picture": picture(row)} for row in split.images[rows.numpy()]]

    @override
    def masked_examples(
        self, context: Context, split: ImageSplit | ImageTiles, rows: Tensor, seed: int
    ) -> MaskedPictures:
        model, how = context.model, context.config.pretrain
        norm_pix = norm_pix_of(how.normalised_pixels, model.trained_with, model.fresh_decoder)
        mask = seed, how.patch_ratio, how.mask
        return MaskedPictures(split.images[rows.numpy()], _normalise(context), model.shape, mask, norm_pix)

    @override
    def layer_features(
        self, context: Context, encoder: ViTEncoder, split: ImageSplit | ImageTiles, rows: Tensor
    ) -> tuple[Tensor, str]:
        return layer_features(encoder, split.images, rows, _normalise(context))

    @override
    def write(
        self, context: Context, module: MaskedAutoencoder, folder: Path, kind: Kind | Literal["knn"], steps: int
    ) -> None:
        masking, processor = context.config.pretrain, _written_processor(context)
        models.save_mae(
            module,
            folder,
            processor,
            mask_ratio=masking.patch_ratio,
            norm_pix_loss=masking.normalised_pixels,
        )
        models.save_encoder(module, folder / "encoder", processor)  # transformers masks with the whole
        write_card(context, folder, kind, steps, _for_card(processor))

    @override
    def naming(self, module: Any) -> Naming:
        return models.naming_of(module.shape)

    @override
    def classifier(self, config: Config, start: MaskedAutoencoder, classes: int, seed: int) -> ViTClassifier:
        return models.classifier_from_mae(start, classes, config.finetune.dropout, seed)

    @override
    def predict(
        self, module: ViTClassifier, companions: ImageProcessor, split: ImageSplit, rows: Tensor, read: Reader
    ) -> Tensor:
        normalise = Normalise(companions.mean, companions.std).to(next(module.parameters()).device)
        return predict(module, lambda some: normalise(read(some)), rows, all_batches(torch.arange(len(rows)), 64))

    @override
    def companions(self, model: models.PretrainedMAE) -> ImageProcessor:
        return model.processor

    @override
    def portable(self, module: Any, companions: ImageProcessor) -> Portable:
        return portable(module, companions)

    @override
    def write_classifier(
        self, context: Context, module: ViTClassifier, folder: Path, names: list[str], steps: int
    ) -> None:
        dropout, problem, processor = context.config.finetune.dropout, context.pack.problem, _written_processor(context)
        models.save_classifier(module, folder, processor, names, dropout, problem)
        write_card(context, folder, "finetune", steps, _for_card(processor))

    @override
    def read_classifier(self, folder: Path) -> Classifier:
        module, processor, names = models.load_classifier(folder)
        return Classifier(module, names, processor, folder)

    @override
    def conversion(self, config: Config, classifier: Classifier) -> tuple[type[ImagePack], Transform, DataConfig]:
        options = config.data.model_copy(update={**UNDIVIDED, "duplicates": "keep"})
        options = options_of_model(options, classifier.companions.pictures)
        transform = _transform(classifier.companions, classifier.module.shape.channels, options)
        return ImagePack, transform, options

    @override
    def features(self, module: Any, tokens: FeatureTokens, how: Any) -> Embedder:
        width, patches = module.shape.encoder.width, module.shape.patches
        if tokens == "cls":
            return Embedder(module, lambda encoder, images: encoder.features(images, "cls"), width)
        if tokens == "mean":
            return Embedder(module, lambda encoder, images: encoder.features(images, "patch").mean(dim=1), width)
        return Embedder(module, lambda encoder, images: encoder.features(images, "patch").flatten(1), patches * width)

    @override
    def raw_input(self, pack: ImagePack, rows: Tensor, config: Config, companions: ImageProcessor) -> RawInput:
        train = pack.split("train")
        if train.tiles is not None:
            raise UserError("pictures that are cut into tiles (data.tile) have no pixels that could be compared.")
        return RawInput(1.0, RawPixels(train, rows))

    @override
    def fits(self, pack: ImagePack, config: Config, classifier: Classifier) -> bool:
        options = options_of_model(config.data, classifier.companions.pictures)
        return pack.transform == _transform(classifier.companions, classifier.module.shape.channels, options)

    @override
    def filled(self, state: dict[str, Tensor], config: Config, shape: ViTShape, classes: int | None) -> nn.Module:
        state = finished_state(state)
        if classes is None:
            return models.filled(MaskedAutoencoder, state, shape)
        return models.filled(ViTClassifier, state, models.of_classifier(shape), classes, config.finetune.dropout)


def _task(context: Context, kind: Kind) -> ImageTask:
    return ImageTask(kind, context.config, context.model.shape, len(context.pack.class_names or ()))


def _normalise(context: Context) -> Normalise:
    """What turns images of the pack into the model's input, on the device."""
    processor, like = context.model.processor, next(context.model.module.parameters())
    return Normalise(processor.mean, processor.std).to(context.device, like.dtype)


def _written_processor(context: Context) -> ImageProcessor:
    """What goes beside a trained model: the initial model's, and how this run made its pictures."""
    pack = context.pack
    kept = kept_options(context.config.data, pack.levels, pack.transform.pixels)
    return replace(context.model.processor, pictures=kept)


def _other_pictures(processor: ImageProcessor, data: DataConfig) -> list[str]:
    """Sentences where a model of sdfast was trained on pictures of another aspect, or on tiles, and this run is not."""
    if processor.pictures is None:
        return []
    known = options_of_model(data, processor.pictures)
    here = {"resize": "pictures are squashed", "tile": "none is cut"}
    return [
        f"it was trained with data.{key}={getattr(known, key)}, and here {done}; give the key to do the same."
        for key, done in here.items()
        if getattr(known, key) is not None and getattr(data, key) is None
    ]


def _for_card(processor: ImageProcessor) -> str:
    """What to do about pictures where transformers' processor does not do what training did."""
    key = processor.unexpressed
    if key is None:
        return ""
    words = f"data.{key}={processor.pictures[key]}".replace(" ", "")
    if key == "tile":
        return (
            f"It was trained on tiles of pictures (`{words}`), which transformers does not cut:"
            " `sdfast.modalities.images.pictures.open_tiles(file, FOLDER)` gives a picture's, and `sdfast eval` takes"
            " the mean of their probabilities.\n"
        )
    return (
        f"transformers squashes pictures of another aspect, and training did not (`{words}`): give it"
        " `sdfast.modalities.images.pictures.open_picture(file, FOLDER)` in place of a file.\n"
    )


def _transform(processor: ImageProcessor, channels: int, options: DataConfig) -> Transform:
    mean, std = processor.mean, processor.std
    if options.normalise == "dataset":  # what the pack's own pixels decide is no part of how they are made
        mean, std = (0.0,) * channels, (1.0,) * channels
    return Transform(processor.height, processor.width, channels, mean, std).with_options(options)


IMAGES = Images()
