"""For texts what `sdfast.objectives.matching` has for images: predictions or weights matched (Table 3; fidelity 6)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.data.text_batch import TokenBatch, TokenReader
from sdfast.data.text_masking import TokenMask, TokenMasking
from sdfast.losses import linear_cross_entropy, linear_kl
from sdfast.models.text import Asking, MaskedLanguageModel, TextEncoder
from sdfast.objectives.masked_lm import MaskedLanguageModelling
from sdfast.objectives.weight_distance import EncoderDistance, WeightNorm


class TextPredictionMatching(MaskedLanguageModelling):
    """Minimise `mlm_weight * L_MLM + weight * sum_t KL(p_teacher(x_t | x^) || p_student(x_t | x^))`.

    Student and teacher predict the words of the same masked text x^: divergences summed over the words of the
    vocabulary and the text's tokens (special ones too, there is no padding), mean over the texts. Targets depend on the
    mask, so the teacher runs at every step; dropout acts in the student alone. The predictions of all tokens are never
    there together.
    """

    def __init__(
        self,
        module: MaskedLanguageModel,
        read: TokenReader,
        masking: TokenMasking,
        seed: int,
        matched: MaskedLanguageModel,
        weight: float = 1.0,
        patches: Literal["all", "masked"] = "all",
        reduction: Literal["sum", "mean"] = "sum",
        **more: Any,
    ) -> None:
        """Set up the objective.

        Args:
            module, read, masking, seed: see `MaskedLanguageModelling`.
            matched: the teacher, encoder and head, on the module's device; put into evaluation mode.
            weight: of the divergence.
            patches: the tokens that are compared.
            reduction: `mean` is over the compared tokens of the batch.
            more: of `MaskedLanguageModelling`, but for its teacher.
        """
        super().__init__(module, read, masking, seed, **more)
        self.matched, self.weight = matched.requires_grad_(False).eval(), weight
        self.patches, self.reduction = patches, reduction

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Encoder and head: both predict, whatever L_MLM's weight."""
        yield from self.module.named_parameters()

    def loss(self, texts: TokenBatch, batch: Batch, drawn: TokenMask, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_mlm` and `loss_distill`."""
        if not self.weight:
            return super().loss(texts, batch, drawn, part)
        mask, device, tail = drawn[part], texts.ids.device, self.shortcuts.masked_tail
        masked, chosen = mask.batch.to(device), mask.chosen.to(device, non_blocking=True)
        asking = Asking(mask.chosen, mask.counts) if tail and self.patches == "masked" else None
        module, matched = self.module, self.matched
        hidden = module.head(module.encoder(masked, asking))
        with torch.no_grad():
            target = matched.head(matched.encoder(masked, asking))
        divergence = linear_kl(
            hidden,
            module.encoder.word_embeddings.weight,
            target,
            matched.encoder.word_embeddings.weight,
            module.head.bias,
            matched.head.bias,
            row_weights=self._shares(batch, drawn, hidden, None if asking is not None else chosen),
        )
        loss, parts = self.weight * divergence, {"loss_distill": divergence.detach()}
        if self.mlm_weight:
            of_masked = hidden.index_select(0, chosen) if tail and asking is None else hidden
            labels, weights = self._labels(mask, drawn.whole_count, batch.count, device)
            mlm = linear_cross_entropy(
                of_masked, module.encoder.word_embeddings.weight, labels, module.head.bias, row_weights=weights
            )
            loss, parts["loss_mlm"] = loss + self.mlm_weight * mlm, mlm.detach()
        return {"loss": loss, **parts}

    def _shares(self, batch: Batch, drawn: TokenMask, hidden: Tensor, chosen: Tensor | None) -> Tensor:
        """The weight of each token of a part: [T] with `chosen`, the masked ones among all, or else [M] of those."""
        count = batch.count
        if self.reduction == "mean":
            count = drawn.whole_count if self.patches == "masked" else self._tokens(batch, drawn)
        share = 1 / max(1, count)
        dtype = torch.promote_types(self.module.head.bias.dtype, torch.float32)
        if self.patches == "masked" and chosen is not None:
            return hidden.new_zeros(len(hidden), dtype=dtype).index_fill_(0, chosen, share)
        return hidden.new_full((len(hidden),), share, dtype=dtype)

    def _tokens(self, batch: Batch, drawn: TokenMask) -> int:
        """Of the whole batch."""
        lengths = drawn.batch.lengths if batch.whole is None else self.read(batch.whole)[1]
        return int(lengths.sum())


class TextWeightMatching(MaskedLanguageModelling):
    """Minimise `mlm_weight * L_MLM + weight * d(theta, theta_0)`: the encoder's weights are drawn to the teacher's.

    d is an `EncoderDistance`.
    """

    def __init__(
        self,
        module: MaskedLanguageModel,
        read: TokenReader,
        masking: TokenMasking,
        seed: int,
        matched: TextEncoder,
        norm: WeightNorm,
        weight: float = 1.0,
        **more: Any,
    ) -> None:
        """Set up the objective.

        Args:
            module, read, masking, seed: see `MaskedLanguageModelling`.
            matched: the teacher's encoder, on the module's device.
            norm: of the difference.
            weight: of the distance.
            more: of `MaskedLanguageModelling`, but for its teacher; `mlm_weight` is above 0.
        """
        super().__init__(module, read, masking, seed, **more)
        self.weight, self.distance = weight, EncoderDistance(module.encoder, matched, norm)

    def loss(self, texts: TokenBatch, batch: Batch, drawn: TokenMask, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_mlm` and `loss_distill`, the distance's share."""
        parts = super().loss(texts, batch, drawn, part)
        if not self.weight:
            return parts
        distance = self.distance() * (len(texts) / batch.count)
        return {**parts, "loss": parts["loss"] + self.weight * distance, "loss_distill": distance.detach()}
