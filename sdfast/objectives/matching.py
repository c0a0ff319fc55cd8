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
from sdfast.models.vit import Attention, MaskedAutoencoder, ViTEncoder
from sdfast.objectives.base import Normalise
from sdfast.objectives.pretraining import FurtherPretraining, predict_patches
from sdfast.objectives.weight_distance import mars_distance, squared_distance

WeightNorm = Literal["l2", "mars"]


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
            norm_pix=self.masking.norm_pix,
            mae_weight=self.mae_weight * masked_share,
            distill_weight=self.weight * share,
            **(where if with_mae else {}),
        )
        parts = {"loss": out.loss, "loss_distill": out.distill * share}
        return parts | ({"loss_mae": out.mae * masked_share} if with_mae else {})


class WeightMatching(FurtherPretraining):
    """Minimise `mae_weight * L_MAE + weight * d(theta, theta_0)`: the encoder's weights are drawn to the teacher's.

    d is the sum of squared differences over all of the encoder (`l2`), or the sum over its layers of the largest l1
    norm of a row (`mars`; linear layers and the patch embedding, query, key and value each a layer of its own).
    Fixed position embeddings are the same in both.
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
        theirs, layers = dict(matched.named_parameters()), dict(_layers(module.encoder))
        named = [
            (n, p) for n, p in module.encoder.named_parameters() if p.requires_grad and (norm == "l2" or n in layers)
        ]
        self._weights = [(parameter, layers.get(name, 1)) for name, parameter in named]
        self._anchors = [theirs[name].detach() for name, _ in named]

    def distance(self) -> Tensor:
        """d(theta, theta_0), 0-D."""
        if self.norm == "mars":
            return mars_distance(self._weights, self._anchors)
        return squared_distance([weight for weight, _ in self._weights], self._anchors)

    def loss(self, images: Tensor, batch: Batch, drawn: PatchMask, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_mae` and `loss_distill`, the distance's share."""
        parts = super().loss(images, batch, drawn, part)
        if not self.weight:
            return parts
        distance = self.distance() * (len(images) / batch.count)
        return {**parts, "loss": parts["loss"] + self.weight * distance, "loss_distill": distance.detach()}


def _layers(encoder: ViTEncoder) -> Iterator[tuple[str, int]]:
    """The names of the weights of linear layers and of the patch embedding, and how many layers each is."""
    for name, layer in encoder.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield f"{name}.weight", 1
    for name, layer in encoder.named_modules():
        if isinstance(layer, Attention):
            yield f"{name}.qkv.weight", 3
