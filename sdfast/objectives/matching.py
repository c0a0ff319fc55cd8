"""Ablations of what self-distillation matches: the teacher's predictions, or its weights (Table 3; fidelity 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdfast.config import PretrainConfig
from sdfast.data.masking import PatchMask
from sdfast.data.order import Batch
from sdfast.losses import mae_distill_loss
from sdfast.models.vit import MaskedAutoencoder, ViTEncoder
from sdfast.objectives.base import Normalise
from sdfast.objectives.pretraining import FurtherPretraining, predict_patches
from sdfast.objectives.weight_distance import EncoderDistance, WeightNorm


class PredictionMatching(FurtherPretraining):
    """Minimise `mae_weight * L_MAE + weight * ||g_phi(f_theta(x^)) - g_phi0(f_theta0(x^))||^2`.

    Student and teacher predict the pixels of the same masked image x^: squared differences, summed over patches and
    their values, mean over the batch. Targets depend on the mask, so the teacher runs at every step.
    """

    def __init__(
        self,
        module: MaskedAutoencoder,
        normalise: Normalise,
        masking: PretrainConfig,
        seed: int,
        matched: MaskedAutoencoder,
        weight: float = 1.0,
        patches: Literal["all", "masked"] = "all",
        reduction: Literal["sum", "mean"] = "sum",
        **more: Any,
    ) -> None:
        """Set up the objective.

        Args:
            module, normalise, masking, seed: see `FurtherPretraining`.
            matched: the teacher, encoder and decoder, on the module's device; put into evaluation mode.
            weight: of the predictions' distance.
            patches: which are compared.
            reduction: `mean` is over the compared values of the batch.
            more: of `FurtherPretraining`, but for its teacher.
        """
        super().__init__(module, normalise, masking, seed, **more)
        self.matched, self.weight = matched.requires_grad_(False).eval(), weight
        self.patches, self.reduction = patches, reduction

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Encoder and decoder: both predict, whatever L_MAE's weight."""
        yield from self.module.named_parameters()

    def loss(self, images: Tensor, batch: Batch, drawn: PatchMask, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_mae` and `loss_distill`."""
        if not self.weight:
            return super().loss(images, batch, drawn, part)
        pixels, mask, shape = self.pixels(images, batch, part), drawn[part], self.module.shape
        only_masked = self.patches == "masked"
        tail = only_masked and self.shortcuts.masked_tail
        pred, where = predict_patches(self.module, pixels, mask, tail)
        with torch.no_grad():
            target, _ = predict_patches(self.matched, pixels, mask, tail)
        student = pred
        if only_masked and "mask" in where:
            student, target = (each * where["mask"].unsqueeze(-1) for each in (pred, target))
        # The loss's mean over this part's images, as a share of the batch's images or values.
        masked_share = mask.masked_count / drawn.whole_count
        values = (drawn.whole_count if only_masked else batch.count * shape.patches) * shape.patch_values
        share = len(images) / (values if self.reduction == "mean" else batch.count)
        with_mae = bool(self.mae_weight)
        out = mae_distill_loss(
            pred if with_mae else None,
            pixels if with_mae else None,
            student=student,
            teacher=target,
            patch_size=shape.patch_size,
            norm_pix=self.masking.normalised_pixels,
            mae_weight=self.mae_weight * masked_share,
            distill_weight=self.weight * share,
            **(where if with_mae else {}),
        )
        parts = {"loss": out.loss, "loss_distill": out.distill * share}
        return parts | ({"loss_mae": out.mae * masked_share} if with_mae else {})


class WeightMatching(FurtherPretraining):
    """Minimise `mae_weight * L_MAE + weight * d(theta, theta_0)`: the encoder's weights are drawn to the teacher's.

    d is an `EncoderDistance`. Fixed position embeddings are the same in both.
    """

    def __init__(
        self,
        module: MaskedAutoencoder,
        normalise: Normalise,
        masking: PretrainConfig,
        seed: int,
        matched: ViTEncoder,
        norm: WeightNorm,
        weight: float = 1.0,
        **more: Any,
    ) -> None:
        """Set up the objective.

        Args:
            module, normalise, masking, seed: see `FurtherPretraining`.
            matched: the teacher's encoder, on the module's device.
            norm: of the difference.
            weight: of the distance.
            more: of `FurtherPretraining`, but for its teacher; `mae_weight` is above 0.
        """
        super().__init__(module, normalise, masking, seed, **more)
        self.norm, self.weight = norm, weight
        self.distance = EncoderDistance(module.encoder, matched, norm)

    def loss(self, images: Tensor, batch: Batch, drawn: PatchMask, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_mae` and `loss_distill`, the distance's share."""
        parts = super().loss(images, batch, drawn, part)
        if not self.weight:
            return parts
        distance = self.distance() * (len(images) / batch.count)
        return {**parts, "loss": parts["loss"] + self.weight * distance, "loss_distill": distance.detach()}
