"""Text: masked language modelling, with or without a teacher to match."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.data.text_batch import TokenBatch, TokenReader
from sdfast.data.text_masking import TokenMask, TokenMasking, batch_token_mask
from sdfast.engine.optim import DecayRule
from sdfast.losses import mlm_distill_loss
from sdfast.models.text import Asking, MaskedLanguageModel, TextView, first_tokens
from sdfast.objectives.base import ALL_SHORTCUTS, Shortcuts
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull
from sdfast.teacher.features import Layer, blocks_before
from sdfast.teacher.live_text import TextTokens
from sdfast.teacher.targets import Targets, Teacher

Mean = Literal["token", "sequence"]


class MaskedLanguageModelling:
    """Minimise `mlm_weight * L_MLM + distill_weight * L_Distill` (equations 2 and 3; fidelity 3.2 and 3.3).

    L_MLM is the cross-entropy at the masked tokens: its mean over those of the whole batch (`mean="token"`, as
    transformers), or over those of each text and then over the texts (`sequence`, equation 2 read literally; a text
    without a masked token counts as 0). Without a teacher this is further pre-training. With one, the student's encoder
    also sees the clean text, and its first token (or all tokens) is drawn to the teacher's: squared distance, summed
    over features and tokens, mean over the texts. Masks are keyed by (seed, epoch, row).

    Of the shortcuts, `masked_tail` means that the encoder's last block computes nothing but keys and values for tokens
    that are not masked, and the language-model head nothing at all.
    """

    decay_rule: DecayRule = "pretrain"
    regularizer: Pull | Mars | None = None
    static = False  # see `Objective.static`: every batch has other lengths

    def __init__(
        self,
        module: MaskedLanguageModel,
        read: TokenReader,
        masking: TokenMasking,
        seed: int,
        teacher: Teacher | None = None,
        tokens: TextTokens = "cls",
        layer: Layer = "last",
        mlm_weight: float = 1.0,
        distill_weight: float = 1.0,
        mean: Mean = "token",
        head_only: bool = False,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
    ) -> None:
        """Set up the objective.

        Args:
            module: what is trained.
            read: the tokens of some rows, from which the masks of a batch are drawn.
            masking: which tokens are masked, and how.
            seed: of the masks.
            teacher: where the targets come from; `targets` is given the texts as a `TokenBatch`. None for none.
            tokens, layer: what is matched; see `matched_text_features`.
            mlm_weight, distill_weight: of the two losses.
            mean: see above.
            head_only: train a new head alone, the encoder (and so the embeddings) staying as they are.
            shortcuts: what is left out.
        """
        self.module, self.read, self.masking, self.seed = module, read, masking, seed
        self.teacher, self.tokens, self.layer = teacher, tokens, layer
        self.mlm_weight, self.distill_weight = mlm_weight, distill_weight if teacher is not None else 0.0
        self.mean, self.head_only, self.shortcuts = mean, head_only, shortcuts

    @property
    def _distils(self) -> bool:
        return bool(self.distill_weight) and not self.head_only

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Encoder and head; only as far as the matched layer when the masked part is switched off."""
        unused: tuple[str, ...] = () if self.mlm_weight else ("head.",)
        if unused and self.layer != "last":
            after = range(self.layer, len(self.module.encoder.blocks))
            unused += tuple(f"encoder.blocks.{number}." for number in after)
        if self.head_only:
            unused = ("encoder.",)
        for name, parameter in self.module.named_parameters():
            if not name.startswith(unused):
                yield name, parameter

    def announce(self, batch: Batch) -> None:
        """See `Objective.announce`: the teacher may fetch its targets."""
        if self._distils and self.teacher is not None:
            self.teacher.announce(batch.rows, batch.epoch)

    def draw(self, batch: Batch) -> TokenMask:
        """The masks of the batch, drawn on the CPU, where their counts are known without waiting for a device."""
        return batch_token_mask(self.seed, batch, self.read, self.masking)

    def loss(self, texts: TokenBatch, batch: Batch, drawn: TokenMask, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_mlm` and `loss_distill`."""
        mask, weight = drawn[part], self.module.encoder.word_embeddings.weight
        hidden, student = self._encode(texts, mask.batch.to(texts.ids.device), Asking(mask.chosen, mask.counts))
        targets = Targets(None)
        if student is not None and self.teacher is not None:
            targets = self.teacher.targets(texts, batch.rows[part], batch.epoch)
        labels, weights = self._labels(mask, drawn.whole_count, batch.count, texts.ids.device)
        # The mean over rows that the loss takes becomes the sum over this part's, as a share of the batch's texts.
        share = 0.0 if student is None else len(student) / batch.count
        out = mlm_distill_loss(
            labels=None if hidden is None else labels,
            student=student,
            teacher=targets.teacher,
            rows=targets.rows,
            teacher_scale=targets.scale,
            mlm_weight=self.mlm_weight,
            distill_weight=self.distill_weight * share,
            hidden=hidden,
            head_weight=None if hidden is None else weight.detach() if self.head_only else weight,
            head_bias=None if hidden is None else self.module.head.bias,
            token_weights=weights,
        )
        parts = {"loss": out.loss}
        if hidden is not None:
            parts["loss_mlm"] = out.mlm
        if student is not None:
            parts["loss_distill"] = out.distill * share
        return parts

    def _labels(self, mask: TokenMask, tokens: int, texts: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Labels [M] of a part's masked tokens and their weights in the batch's mean, float32 or the module's dtype.

        The whole batch has so many masked tokens and texts.

        Without `masked_tail` those of all tokens, [T], which weigh 0 where they are not masked.
        """
        labels, dtype = mask.labels, self.module.head.bias.dtype
        if self.mean == "token":
            weights = torch.full((len(mask.chosen),), 1 / max(1, tokens), dtype=torch.float64)
        else:
            of_text = 1 / (mask.counts.clamp(min=1) * texts).double()
            weights = torch.repeat_interleave(of_text, mask.counts)
        if not self.shortcuts.masked_tail:
            chosen, count = mask.chosen, int(mask.batch.lengths.sum())
            weights = weights.new_zeros(count).index_copy(0, chosen, weights)
            labels = labels.new_zeros(count).index_copy(0, chosen.to(labels.device), labels)
        weights = weights.to(torch.promote_types(dtype, torch.float32))
        return labels.to(device, non_blocking=True), weights.to(device, non_blocking=True)

    def _encode(self, texts: TokenBatch, masked: TokenBatch, chosen: Asking) -> tuple[Tensor | None, Tensor | None]:
        """Both branches, as the weights ask for them.

        Returns:
            what the head's last layer is given, [M, D] (without `masked_tail` [T, D]), None without the masked branch;
            and the student's matched tokens, [B, D] or [T, D], None without a teacher.
        """
        encoder, shortcuts = self.module.encoder, self.shortcuts
        asking = chosen if shortcuts.masked_tail else None
        first = first_tokens(texts.lengths)
        clean_asking = first if self.tokens == "cls" and shortcuts.cls_tail else None
        clean_layer = blocks_before(self.layer)
        encoded = matched = None
        if self.mlm_weight and self._distils and shortcuts.packed:
            together = TokenBatch(torch.cat((masked.ids, texts.ids)), torch.cat((masked.lengths, texts.lengths)))
            seen, clean = encoder.embed(together).split([len(masked.ids), len(texts.ids)])
            encoded, matched = encoder.encode(
                TextView(seen, masked.lengths, asking), TextView(clean, texts.lengths, clean_asking, clean_layer)
            )
        else:
            if self.mlm_weight:
                with torch.no_grad() if self.head_only else contextlib.nullcontext():
                    encoded = encoder(masked, asking)
            if self._distils:
                matched = encoder(texts, clean_asking, clean_layer)
        if matched is not None and self.tokens == "cls" and clean_asking is None:
            matched = matched.index_select(0, first.rows.to(matched.device, non_blocking=True))
        return None if encoded is None else self.module.head(encoded), matched
