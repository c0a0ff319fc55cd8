"""Further pre-training and self-distillation: one masked branch, with or without a teacher to match."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from sdfast.config import PretrainConfig
from sdfast.data.augment import Augmentation
from sdfast.data.masking import PatchMask, patch_mask
from sdfast.data.order import Batch
from sdfast.engine.optim import DecayRule
from sdfast.losses import mae_distill_loss
from sdfast.models.vit import MaskedAutoencoder
from sdfast.objectives.base import Normalise
from sdfast.teacher.features import Layer, Tokens, matched_features
from sdfast.teacher.targets import Targets, Teacher


class FurtherPretraining:
    """Minimise `mae_weight * L_MAE + distill_weight * L_Distill` (equations 2 and 3; fidelity 9.5).

    Without a teacher this is further pre-training. With one, the student's encoder also sees the clean image, and the
    chosen tokens of the chosen layer are drawn to the teacher's: squared distance, summed over features, mean over the
    batch. Masks are keyed by (seed, epoch, row). With `augment`, student and teacher see the same augmented pixels.
    """

    decay_rule: DecayRule = "pretrain"

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
    ) -> None:
        self.module, self.normalise, self.masking, self.seed = module, normalise, masking, seed
        self.mae_weight, self.augment = mae_weight, augment
        self.distill_weight = distill_weight if teacher is not None else 0.0
        self.teacher, self.tokens, self.layer = teacher, tokens, layer

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

    def draw(self, batch: Batch) -> PatchMask:
        """The masks of the batch, on the CPU, where their counts are known without waiting for a device."""
        ratio, kind = self.masking.mask_ratio, self.masking.mask
        return patch_mask(self.seed, batch.epoch, batch.rows, self.module.shape.patches, ratio, kind)

    def loss(self, images: Tensor, batch: Batch, drawn: PatchMask, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_mae` and `loss_distill`."""
        pixels = self.normalise(images)
        if self.augment is not None:
            pixels = self.augment(pixels, batch.rows[part], batch.epoch)
        # Means over masked patches and over samples, as the shares of this part in the whole batch's.
        mask = drawn[part]
        masked_share = float(mask.mask.sum()) / float(drawn.mask.sum())
        row_share = len(images) / len(batch.rows)
        pred = mask_on_device = student = None
        targets = Targets(None)
        if self.mae_weight:
            visible_ids = mask.visible_ids.to(images.device, non_blocking=True)
            valid = None if mask.visible_valid is None else mask.visible_valid.to(images.device, non_blocking=True)
            mask_on_device = mask.mask.to(images.device, non_blocking=True)
            pred = self.module.decoder(self.module.encoder(pixels, visible_ids, valid), visible_ids, valid)
        if self.distill_weight and self.teacher is not None:
            targets = self.teacher.targets(pixels, batch.rows[part], batch.epoch)
            student = matched_features(self.module.encoder, pixels, self.tokens, self.layer)
        out = mae_distill_loss(
            pred,
            pixels if pred is not None else None,
            mask_on_device,
            student,
            targets.teacher,
            rows=targets.rows,
            teacher_scale=targets.scale,
            patch_size=self.module.shape.patch_size,
            norm_pix=self.masking.norm_pix,
            mae_weight=self.mae_weight * masked_share,
            distill_weight=self.distill_weight * row_share,
        )
        parts = {"loss": out.loss}
        if pred is not None:
            parts["loss_mae"] = out.mae * masked_share
        if student is not None:
            parts["loss_distill"] = out.distill * row_share
        return parts
