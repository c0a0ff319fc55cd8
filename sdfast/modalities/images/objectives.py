"""What images give to objectives: views whose patches are masked or that are mirrored, and the loss of their pixels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdfast.config import PretrainConfig
from sdfast.data.order import Batch
from sdfast.losses import mae_distill_loss
from sdfast.modalities.images.augment import Augmentation
from sdfast.modalities.images.masking import PatchMask, batch_mask
from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier
from sdfast.modalities.images.reader import Normalise
from sdfast.models.base import Layer, Tokens, blocks_before
from sdfast.objectives.base import DecayRule, Shortcuts
from sdfast.objectives.masked import MaskedRows, Match
from sdfast.regularizers.r3f import R3F
from sdfast.rng import STREAM_FLIP, philox_bits
from sdfast.teacher.targets import Targets

Pixels = tuple[Tensor, dict[str, Any]]
"""Predictions, [B, L, P] or [B, M, P] for the masked patches only; and the loss's argument that tells which are masked.
"""


class MaskedImages:
    """What images give to the objectives that mask them; student and teacher see the same augmented pixels."""

    part, head = "loss_mae", "decoder"
    after_blocks: tuple[str, ...] = ("encoder.norm.",)

    def __init__(self, normalise: Normalise, masking: PretrainConfig, augment: Augmentation | None = None) -> None:
        """normalise: from uint8 images to the module's input; masking: which patches, and what is reconstructed."""
        self.normalise, self.masking, self.augment = normalise, masking, augment

    @property
    def static(self) -> bool:
        """Whether every image has as many masked patches, and nothing is drawn on the way."""
        return self.masking.mask == "fixed" and self.augment is None

    def draw(self, module: MaskedAutoencoder, seed: int, batch: Batch) -> PatchMask:
        """Which patches of each image."""
        return batch_mask(seed, batch, module.shape.patches, self.masking.patch_ratio, self.masking.mask)

    def clean(self, inputs: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """uint8 [b, H, W, C] -> [b, C, H, W], normalised and augmented."""
        pixels = self.normalise(inputs)
        return pixels if self.augment is None else self.augment(pixels, rows, epoch)

    def encode(
        self,
        module: MaskedAutoencoder,
        rows: MaskedRows,
        masked: bool,
        match: tuple[Tokens, Layer] | None,
        taken: Shortcuts,
    ) -> tuple[Pixels | None, Tensor | None]:
        """Encode one view or both; of the masked one the encoder sees the visible patches."""
        encoder, mask = module.encoder, rows.mask
        tokens, layer = match or ("cls", "last")
        pooled = tokens == "cls"
        clean = partial(encoder.view, cls_only=pooled and taken.cls_tail, layer=blocks_before(layer), pooled=pooled)
        seen = partial(encoder.view, patch_ids=mask.visible_ids, valid=mask.visible_valid)
        encoded = matched = None
        if masked and match and taken.packed:
            visible, every = encoder.embed_both(rows.clean, mask.visible_ids)
            encoded, matched = encoder.encode(seen(visible), clean(every))
        else:
            whole = encoder.embed(rows.clean) if match else None  # first, so that its gradient is made last
            if masked:
                (encoded,) = encoder.encode(seen(encoder.embed(rows.clean, mask.visible_ids)))
            if whole is not None:
                (matched,) = encoder.encode(clean(whole))
        if matched is not None:
            matched = encoder.select(matched, tokens)
        return None if encoded is None else self._predict(module, encoded, mask, taken.masked_tail), matched

    def _predict(self, module: MaskedAutoencoder, encoded: Tensor, mask: PatchMask, tail: bool) -> Pixels:
        """The decoder's prediction; with `tail`, where every image has as many masked patches, of these alone."""
        visible = (encoded, mask.visible_ids, mask.visible_valid)
        if tail and mask.masked_ids is not None:
            masked_ids = mask.masked_ids.to(encoded.device, non_blocking=True)
            return module.decoder(*visible, masked_ids), {"mask_ids": masked_ids}
        where = mask.mask.to(encoded.device, non_blocking=True)
        return module.decoder(*visible), {"mask": where}

    def losses(
        self, module: MaskedAutoencoder, rows: MaskedRows, predicted: Pixels | None, weight: float, match: Match
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The losses of pixels (a mean over masked patches, as these rows' share of the batch's) and features."""
        share = rows.mask.masked_count / rows.drawn.whole_count
        pred, where = predicted or (None, {})
        out = mae_distill_loss(
            pred,
            None if pred is None else rows.clean,
            student=match.student,
            teacher=match.targets.teacher,
            rows=match.targets.rows,
            teacher_scale=match.targets.scale,
            patch_size=module.shape.patch_size,
            norm_pix=self.masking.normalised_pixels,
            mae_weight=weight * share,
            distill_weight=match.weight,
            **where,
        )
        return out.loss, None if pred is None else out.mae * share, out.distill

    def distances(
        self,
        modules: tuple[MaskedAutoencoder, MaskedAutoencoder],
        predicted: tuple[Pixels, Pixels],
        rows: MaskedRows,
        compared: str,
        reduction: str,
        weights: tuple[float, float],
        tail: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The squared distance of the patches' values, and the student's own loss."""
        (pred, where), (target, _) = predicted
        student, shape, count = pred, modules[0].shape, rows.drawn.whole_count
        if compared == "masked" and "mask" in where:
            student, target = (each * where["mask"].unsqueeze(-1) for each in (pred, target))
        patches = count if compared == "masked" else rows.batch.count * shape.patches
        # The loss's mean over these images, as a share of the batch's images or values.
        share = len(pred) / (patches * shape.patch_values if reduction == "mean" else rows.batch.count)
        match = Match(student, Targets(target), weights[1] * share)
        mae = (pred, where) if weights[0] else None
        loss, masked, distance = self.losses(modules[0], rows, mae, weights[0], match)
        return loss, masked, distance * share


class LabelledImages:
    """Views of images with labels: each is the image, mirrored or not; flips are keyed by (seed, epoch, row)."""

    decay_rule: DecayRule = "finetune"
    static = True

    def __init__(self, normalise: Normalise, flip: float, seed: int) -> None:
        """normalise: from uint8 images to the classifier's input; flip: probability of a horizontal flip."""
        self.normalise, self.flip, self.seed = normalise, flip, seed

    def draw(self, batch: Batch, views: int) -> Tensor:
        """[B] bool, or of several views [B, views]: which are mirrored; the first is the same for any number."""
        epoch = batch.epoch if batch.passes is None else batch.passes
        words = philox_bits(self.seed, epoch, batch.rows, views, STREAM_FLIP)
        flipped = words < int(self.flip * 2**32)
        return flipped[:, 0] if views == 1 else flipped

    def seen(self, inputs: Tensor, drawn: Tensor, views: int) -> Tensor:
        """uint8 [b, H, W, C], bool as drawn -> [views * b, C, H, W]: all images, and then all again."""
        flipped = drawn.t().flatten().to(inputs.device, non_blocking=True)[:, None, None, None]
        pixels = self.normalise(inputs)
        pixels = pixels if views == 1 else pixels.repeat(views, 1, 1, 1)
        return torch.where(flipped, pixels.flip(-1), pixels)

    def noise(self, module: ViTClassifier, seen: Tensor, r3f: R3F) -> Tensor:
        """Noise for the patches' embeddings: [b, L, D]."""
        size = (len(seen), module.shape.patches, module.shape.encoder.width)
        return r3f.draw(size, seen.device, seen.dtype)

    def states(self, module: ViTClassifier, seen: Tensor, cls_tail: bool) -> Tensor:
        """[views * b, D]: what stands for each image."""
        return module.states(module.encoder.embed(seen), cls_tail)

    def classify(self, module: ViTClassifier, states: Tensor) -> Tensor:
        """Logits of what the encoder gives: [B, D] -> [B, classes]."""
        return module.classifier(states)
