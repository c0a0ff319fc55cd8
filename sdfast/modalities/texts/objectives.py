"""What texts give to objectives: views with masked words or dropout of their own, and the loss of their words."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sdfast.data.order import Batch
from sdfast.losses import linear_kl, mlm_distill_loss
from sdfast.modalities.texts.batch import TokenBatch, TokenReader
from sdfast.modalities.texts.masking import TokenMask, TokenMasking, batch_token_mask
from sdfast.modalities.texts.model import Asking, MaskedLanguageModel, TextClassifier, TextView, asked_tokens
from sdfast.models.base import Layer, Tokens, blocks_before
from sdfast.objectives.base import DecayRule, Shortcuts
from sdfast.objectives.masked import MaskedRows, Match
from sdfast.regularizers.r3f import R3F

Mean = Literal["token", "sequence"]
Hidden = tuple[Tensor, bool]
"""What the head's last layer is given, and whether that is [M, D] at the masked tokens alone, or [T, D] at all."""


class MaskedTexts:
    """What texts give to the objectives that mask them. Nothing is static: every batch has other lengths.

    L_MLM is the cross-entropy at the masked tokens: its mean over those of the whole batch (`mean="token"`, as
    transformers), or over those of each text and then over the texts (`sequence`, equation 2 read literally; a text
    without a masked token counts as 0). Where what is not masked is left out, the encoder's last block computes nothing
    but keys and values for its tokens, and the language-model head nothing at all.
    """

    part, head, static = "loss_mlm", "head", False
    after_blocks: tuple[str, ...] = ()

    def __init__(self, read: TokenReader, masking: TokenMasking, mean: Mean = "token") -> None:
        """read: the tokens of some rows, from which masks are drawn; masking: which tokens are masked, and how."""
        self.read, self.masking, self.mean = read, masking, mean

    def draw(self, module: MaskedLanguageModel, seed: int, batch: Batch) -> TokenMask:
        """Which tokens of each text, and what is seen in their place."""
        return batch_token_mask(seed, batch, self.read, self.masking)

    def clean(self, inputs: TokenBatch, rows: Tensor, epoch: int) -> TokenBatch:
        """The texts as they are."""
        return inputs

    def encode(
        self,
        module: MaskedLanguageModel,
        rows: MaskedRows,
        masked: bool,
        match: tuple[Tokens, Layer] | None,
        taken: Shortcuts,
    ) -> tuple[Hidden | None, Tensor | None]:
        """Encode one view or both; of the masked one the encoder sees all tokens, the masked ones replaced."""
        encoder, mask, whole = module.encoder, rows.mask.batch, rows.clean
        tokens, layer = match or ("cls", "last")
        chosen = Asking(rows.mask.chosen, rows.mask.counts) if taken.masked_tail else None
        asked, blocks = asked_tokens(whole.lengths, tokens), blocks_before(layer)
        asking = asked if taken.cls_tail else None
        encoded = matched = None
        if masked and match and taken.packed:
            together = TokenBatch(torch.cat((mask.ids, whole.ids)), torch.cat((mask.lengths, whole.lengths)))
            seen, clean = encoder.embed(together).split([len(mask.ids), len(whole.ids)])
            encoded, matched = encoder.encode(
                TextView(seen, mask.lengths, chosen), TextView(clean, whole.lengths, asking, blocks)
            )
        else:
            if masked:
                encoded = encoder(mask, chosen)
            if match:
                matched = encoder(whole, asking, blocks)
        if matched is not None and asked is not None and not taken.cls_tail:
            matched = matched.index_select(0, asked.rows.to(matched.device, non_blocking=True))
        return None if encoded is None else (module.head(encoded), taken.masked_tail), matched

    def losses(
        self, module: MaskedLanguageModel, rows: MaskedRows, predicted: Hidden | None, weight: float, match: Match
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The losses of words and features; each masked token has its weight in the whole batch's mean."""
        hidden, at_masked = predicted or (None, True)
        labels, weights = self._labels(module, rows, at_masked)
        out = mlm_distill_loss(
            labels=None if hidden is None else labels,
            student=match.student,
            teacher=match.targets.teacher,
            rows=match.targets.rows,
            teacher_scale=match.targets.scale,
            mlm_weight=weight,
            distill_weight=match.weight,
            hidden=hidden,
            head_weight=None if hidden is None else module.head_weight,
            head_bias=None if hidden is None else module.head_bias,
            token_weights=weights,
        )
        return out.loss, None if hidden is None else out.mlm, out.distill

    def distances(
        self,
        modules: tuple[MaskedLanguageModel, MaskedLanguageModel],
        predicted: tuple[Hidden, Hidden],
        rows: MaskedRows,
        compared: str,
        reduction: str,
        weights: tuple[float, float],
        tail: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The divergence KL(p_teacher || p_student) over the words of the vocabulary, and the student's own loss.

        Of special tokens too, there is no padding. The predictions of all tokens are never there together.
        """
        (hidden, at_masked), (target, _) = predicted
        words, their_words = (each.head_weight for each in modules)
        bias, their_bias = (each.head_bias for each in modules)
        chosen = rows.mask.chosen.to(hidden.device, non_blocking=True)
        tokens = rows.batch.count
        if reduction == "mean":
            tokens = rows.drawn.whole_count if compared == "masked" else self._tokens(rows)
        share, dtype = 1 / max(1, tokens), torch.promote_types(words.dtype, torch.float32)
        if compared == "masked" and not at_masked:
            shares = hidden.new_zeros(len(hidden), dtype=dtype).index_fill_(0, chosen, share)
        else:
            shares = hidden.new_full((len(hidden),), share, dtype=dtype)
        distance = linear_kl(hidden, words, target, their_words, bias, their_bias, row_weights=shares)
        loss, mlm = weights[1] * distance, None
        if weights[0]:
            of_masked = (hidden.index_select(0, chosen), True) if tail and not at_masked else (hidden, at_masked)
            mlm_loss, mlm, _ = self.losses(modules[0], rows, of_masked, weights[0], Match())
            loss = loss + mlm_loss
        return loss, mlm, distance.detach()

    def _labels(self, module: MaskedLanguageModel, rows: MaskedRows, at_masked: bool) -> tuple[Tensor, Tensor]:
        """Labels [M] of the masked tokens and their weights in the batch's mean, float32 or the module's dtype.

        Without `at_masked` those of all tokens, [T], which weigh 0 where they are not masked.
        """
        mask, device = rows.mask, rows.clean.device
        labels, dtype = mask.labels, module.head_weight.dtype
        if self.mean == "token":
            weights = torch.full((len(mask.chosen),), 1 / max(1, rows.drawn.whole_count), dtype=torch.float64)
        else:
            of_text = 1 / (mask.counts.clamp(min=1) * rows.batch.count).double()
            weights = torch.repeat_interleave(of_text, mask.counts)
        if not at_masked:
            chosen, count = mask.chosen, int(mask.batch.lengths.sum())
            weights = weights.new_zeros(count).index_copy(0, chosen, weights)
            labels = labels.new_zeros(count).index_copy(0, chosen.to(labels.device), labels)
        weights = weights.to(torch.promote_types(dtype, torch.float32))
        return labels.to(device, non_blocking=True), weights.to(device, non_blocking=True)

    def _tokens(self, rows: MaskedRows) -> int:
        """Tokens of the whole batch."""
        whole = rows.batch.whole
        return int((rows.drawn.batch.lengths if whole is None else self.read(whole)[1]).sum())


class LabelledTexts:
    """Views of texts with labels, which differ in their dropout (as in SimCSE; Gao et al., 2021).

    Biases and LayerNorms are not decayed, unlike in the image classifier: that is the texts' rule. Nothing is static:
    every batch has other lengths.
    """

    decay_rule: DecayRule = "pretrain"
    static = False

    def draw(self, batch: Batch, views: int) -> None:
        """Nothing is random but dropout and noise."""

    def seen(self, inputs: TokenBatch, drawn: None, views: int) -> TokenBatch:
        """All texts, and then all again."""
        return inputs if views == 1 else TokenBatch(inputs.ids.repeat(views), inputs.lengths.repeat(views))

    def noise(self, module: TextClassifier, seen: TokenBatch, r3f: R3F) -> Tensor:
        """Noise for the words' embeddings: [T, D]."""
        words = module.encoder.word_embeddings.weight
        return r3f.draw((len(seen.ids), words.shape[1]), seen.device, words.dtype)

    def states(self, module: TextClassifier, seen: TokenBatch, cls_tail: bool) -> Tensor:
        """[views * b, D]: the encoded first tokens."""
        return module.first_states(module.encoder.embed(seen), seen.lengths, cls_tail)

    def classify(self, module: TextClassifier, states: Tensor) -> Tensor:
        """Logits of the encoded first tokens: [B, D] -> [B, classes]."""
        return module.classify(states)
