"""Further pre-training and self-distillation: one masked branch, with or without a teacher to match."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sdfast.config import PretrainConfig
from sdfast.data.augment import Augmentation
from sdfast.data.masking import PatchMask, batch_mask
from sdfast.data.order import Batch
from sdfast.engine.optim import DecayRule
from sdfast.losses import mae_distill_loss
from sdfast.models.vit import MaskedAutoencoder, View, with_cls
from sdfast.objectives.base import ALL_SHORTCUTS, Normalise, Shortcuts
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull
from sdfast.teacher.features import Layer, Tokens, blocks_before, select_tokens
from sdfast.teacher.targets import Targets, Teacher


class FurtherPretraining:
    """Minimise `mae_weight * L_MAE + distill_weight * L_Distill` (equations 2 and 3; fidelity 9.5).

    Without a teacher this is further pre-training. With one, the student's encoder also sees the clean image, and the
    chosen tokens of the chosen layer are drawn to the teacher's: squared distance, summed over features, mean over the
    batch. Masks are keyed by (seed, epoch, row). With `augment`, student and teacher see the same augmented pixels.
    """

    decay_rule: DecayRule = "pretrain"
    regularizer: Pull | Mars | None = None

    def __init__(
        self,
        module: MaskedAutoencoder,
        normalise: Normalise,
        masking: PretrainConfig,
        seed: int,
        teacher: Teacher | None = None,
        tokens: Tokens = "cls",
        layer: Layer = "last",
        mae_weight: float = 1.0,
        distill_weight: float = 1.0,
        augment: Augmentation | None = None,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
    ) -> None:
        self.module, self.normalise, self.masking, self.seed = module, normalise, masking, seed
        self.mae_weight, self.augment = mae_weight, augment
        self.distill_weight = distill_weight if teacher is not None else 0.0
        self.teacher, self.tokens, self.layer, self.shortcuts = teacher, tokens, layer, shortcuts

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Encoder and decoder; only as far as the matched layer when the masked part is switched off."""
        unused: tuple[str, ...] = () if self.mae_weight else ("decoder.",)
        if unused and self.layer != "last":
            after = range(self.layer, len(self.module.encoder.blocks))
            unused += ("encoder.norm.", *(f"encoder.blocks.{number}." for number in after))
        for name, parameter in self.module.named_parameters():
            if not name.startswith(unused):
                yield name, parameter

    def announce(self, batch: Batch) -> None:
        """See `Objective.announce`: the teacher may fetch its targets."""
        if self.distill_weight and self.teacher is not None:
            self.teacher.announce(batch.rows, batch.epoch)

    @property
    def static(self) -> bool:
        """Whether a step's shapes and addresses depend on the batch's size alone: see `Objective.static`."""
        teacher_stays = self.teacher is None or not self.distill_weight or self.teacher.static
        return self.masking.mask == "fixed" and self.augment is None and teacher_stays

    def draw(self, batch: Batch) -> PatchMask:
        """The masks of the batch, on the CPU, where their counts are known without waiting for a device."""
        ratio, kind = self.masking.patch_ratio, self.masking.mask
        return batch_mask(self.seed, batch, self.module.shape.patches, ratio, kind)

    def loss(self, images: Tensor, batch: Batch, drawn: PatchMask, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_mae` and `loss_distill`."""
        pixels = self.pixels(images, batch, part)
        # Means over masked patches and over samples, as the shares of this part in the whole batch's.
        mask = drawn[part]
        masked_share = mask.masked_count / drawn.whole_count
        row_share = len(images) / batch.count
        distils = bool(self.distill_weight) and self.teacher is not None
        pred, student, where = self._encode(pixels, mask, distils)
        targets = Targets(None)
        if distils and self.teacher is not None:
            targets = self.teacher.targets(pixels, batch.rows[part], batch.epoch)
        out = mae_distill_loss(
            pred,
            pixels if pred is not None else None,
            student=student,
            teacher=targets.teacher,
            rows=targets.rows,
            teacher_scale=targets.scale,
            patch_size=self.module.shape.patch_size,
            norm_pix=self.masking.normalised_pixels,
            mae_weight=self.mae_weight * masked_share,
            distill_weight=self.distill_weight * row_share,
            **where,
        )
        parts = {"loss": out.loss}
        if pred is not None:
            parts["loss_mae"] = out.mae * masked_share
        if student is not None:
            parts["loss_distill"] = out.distill * row_share
        return parts

    def pixels(self, images: Tensor, batch: Batch, part: slice) -> Tensor:
        """What student and teacher see of some rows: uint8 [b, H, W, C] -> [b, C, H, W], normalised and augmented."""
        pixels = self.normalise(images)
        return pixels if self.augment is None else self.augment(pixels, batch.rows[part], batch.epoch)

    def _encode(
        self, pixels: Tensor, mask: PatchMask, distils: bool
    ) -> tuple[Tensor | None, Tensor | None, dict[str, Any]]:
        """Both branches, as the weights ask for them.

        Returns:
            predictions, [B, L, P] or [B, M, P] for the masked patches only, None without the masked branch; the
            student's matched tokens, None without a teacher; and the loss's argument that tells the masked patches.
        """
        encoder, device, shortcuts = self.module.encoder, pixels.device, self.shortcuts
        clean = partial(View, cls_only=self.tokens == "cls" and shortcuts.cls_tail, layer=blocks_before(self.layer))
        student = None
        if not self.mae_weight:
            return None, self._matched(encoder.encode(clean(encoder.embed(pixels)))[0]), {}
        visible_ids, valid = _visible(mask, device)
        if distils and shortcuts.packed:
            seen, whole = encoder.embed_both(pixels, visible_ids)
            encoded, matched = encoder.encode(View(seen, with_cls(valid)), clean(whole))
            student = self._matched(matched)
        else:
            whole_view = clean(encoder.embed(pixels)) if distils else None
            encoded = encoder.encode(View(encoder.embed(pixels, visible_ids), with_cls(valid)))[0]
            if whole_view is not None:
                student = self._matched(encoder.encode(whole_view)[0])
        pred, where = _decode(self.module, encoded, visible_ids, valid, mask, shortcuts.masked_tail)
        return pred, student, where

    def _matched(self, encoded: Tensor) -> Tensor:
        """The matched tokens of the clean branch."""
        return encoded if encoded.dim() == 2 else select_tokens(encoded, self.tokens)


def predict_patches(
    module: MaskedAutoencoder, pixels: Tensor, mask: PatchMask, masked_tail: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Encode what a mask leaves visible, and predict the pixels.

    Args:
        module: the masked auto-encoder.
        pixels: [B, C, H, W] normalised.
        mask: of these images.
        masked_tail: predict the masked patches only, where every image has as many.

    Returns:
        [B, L, P], or [B, M, P] for the masked patches only; and the loss's argument that tells which are masked.
    """
    visible_ids, valid = _visible(mask, pixels.device)
    encoder = module.encoder
    encoded = encoder.encode(View(encoder.embed(pixels, visible_ids), with_cls(valid)))[0]
    return _decode(module, encoded, visible_ids, valid, mask, masked_tail)


def _visible(mask: PatchMask, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """`visible_ids` and `visible_valid` on the device."""
    valid = None if mask.visible_valid is None else mask.visible_valid.to(device, non_blocking=True)
    return mask.visible_ids.to(device, non_blocking=True), valid


def _decode(
    module: MaskedAutoencoder,
    encoded: Tensor,
    visible_ids: Tensor,
    valid: Tensor | None,
    mask: PatchMask,
    masked_tail: bool,
) -> tuple[Tensor, dict[str, Any]]:
    """See `predict_patches`."""
    if masked_tail and mask.masked_ids is not None:
        masked_ids = mask.masked_ids.to(encoded.device, non_blocking=True)
        return module.decoder(encoded, visible_ids, valid, masked_ids), {"mask_ids": masked_ids}
    where = {"mask": mask.mask.to(encoded.device, non_blocking=True)}
    return module.decoder(encoded, visible_ids, valid), where
