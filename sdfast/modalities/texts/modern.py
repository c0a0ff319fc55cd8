"""ModernBERT and EuroBERT: pre-norm encoders with rotary positions, and the heads that stand on them.

Equal to the modules of transformers (`ModernBertForMaskedLM`, `ModernBertForSequenceClassification`, and EuroBERT's)
for the same weights; the tests compare them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from sdfast.modalities.texts.batch import TokenBatch, starts
from sdfast.modalities.texts.model import (
    NO_DROPOUT,
    Asking,
    Dropouts,
    MaskedLanguageModel,
    Seen,
    TextClassifier,
    TextEncoder,
    TextShape,
    TextView,
    word_table,
)
from sdfast.modalities.texts.prenorm import PreNorm, PreNormBlock, rotary_table
from sdfast.models.base import Encoder
from sdfast.models.blocks import ACTIVATIONS, Turn
from sdfast.models.compiled import Compilable, segment
from sdfast.ops.attention import Groups
from sdfast.ops.linear import Linear


def masked_model(shape: TextShape, dropouts: Dropouts = NO_DROPOUT) -> MaskedLanguageModel:
    """The masked language model of a shape."""
    return (MaskedLanguageModel if shape.pre_norm is None else ModernLanguageModel)(shape, dropouts)


def text_classifier(shape: TextShape, classes: int, dropouts: Dropouts = NO_DROPOUT) -> TextClassifier:
    """The classifier of a shape."""
    return (TextClassifier if shape.pre_norm is None else ModernClassifier)(shape, classes, dropouts)


class ModernEncoder(TextEncoder):
    """Embeddings of words, their norm where the model has one, the blocks, and a norm behind the last of them."""

    def __init__(self, shape: TextShape, dropouts: Dropouts = NO_DROPOUT) -> None:
        Encoder.__init__(self)
        self.shape = shape
        how, style, width, traits = _pre_norm(shape), shape.encoder.style, shape.encoder.width, shape.traits
        self.word_embeddings = word_table(shape.vocabulary, width)
        self.norm_words = style.make_norm(width, shape.norm_eps) if traits.norms_words else None
        first = dropouts.hidden if dropouts.embeddings is None else dropouts.embeddings
        inside, projected = (dropouts.hidden, dropouts.attention) if traits.drops_states else (0.0, 0.0)
        self.dropout = nn.Dropout(first if traits.drops_states else 0.0)
        self.blocks = nn.ModuleList(
            PreNormBlock(
                shape.encoder,
                shape.norm_eps,
                how.qkv_bias,
                inside,
                dropouts.attention,
                projected,
                normed=number > 0 or self.norm_words is None,
            )
            for number in range(shape.encoder.depth)
        )
        self.norm_last = style.make_norm(width, shape.norm_eps)

    @override
    def embed(self, batch: TokenBatch, types: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        self.check_lengths(batch)
        return self.embed_at(batch.ids, batch.ids, types, noise)

    @override
    def embed_at(self, ids: Tensor, places: Tensor, types: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        x = F.embedding(ids, self.word_embeddings.weight, self.shape.pad_id)
        if noise is not None:
            x = torch.cat((x, x.detach() + noise))
        return self.dropout(x if self.norm_words is None else self.norm_words(x))

    @override
    def seen(self, lengths: list[Tensor], asking: list[Asking | None] | None = None) -> Seen:
        return TurnedSeen(self.shape, lengths, asking)

    @override
    def finish(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm_last(x)
        return out


class TurnedSeen(Seen):
    """What pre-norm blocks are told: the sequences, all or what is near, and the turns of the tokens' places."""

    def __init__(self, shape: TextShape, lengths: list[Tensor], asking: list[Asking | None] | None = None) -> None:
        super().__init__(lengths, asking)
        self.how, self.dim = _pre_norm(shape), shape.encoder.width // shape.encoder.heads
        self.near = Groups(self.groups.groups, self.how.window)
        self._turns: dict[float, Any] = {}

    @override
    def by(self, depth: int, device: torch.device) -> tuple[Any, ...]:
        local = self.how.is_local(depth - 1)
        base = self.how.local_base if local else self.how.base
        if base not in self._turns:
            self._turns[base] = self._turned(base, device)
        return (self.near if local else self.groups), self._turns[base]

    def _turned(self, base: float, device: torch.device) -> Turn | tuple[Turn, Turn]:
        """The turns of all tokens, [T, d]; where only some ask, those of these and those of all."""
        lengths = torch.cat(self.lengths)
        places = torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts(lengths), lengths)
        table = rotary_table(base, self.dim, int(lengths.max()) if len(lengths) else 0, device)

        def at(places: Tensor) -> Turn:
            here = places.to(device, non_blocking=True)
            return Turn(*(each.index_select(0, here) for each in table))

        if self.asking is None:
            return at(places)
        return at(places[self.rows(torch.device("cpu"))]), at(places)


class ModernHead(Compilable):
    """What a token or a text is scored with: a dense layer, an activation and a norm, as far as the model has them.

    As the head of a language model it also has a bias for each word, and a matrix of its own, where it is not tied.
    """

    def __init__(self, shape: TextShape, words: bool) -> None:
        super().__init__()
        how, width, traits = _pre_norm(shape), shape.encoder.width, shape.traits
        self.activation = ACTIVATIONS[how.activation]
        dense = traits.has_dense or not words
        self.dense = Linear(width, width, how.dense_bias, rows_vary=True) if dense else None
        self.norm = shape.encoder.style.make_norm(width, shape.norm_eps) if traits.has_dense else None
        own, biased = words and not how.tied, words and how.word_bias
        self.weight = nn.Parameter(torch.zeros(shape.vocabulary, width)) if own else None
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary)) if biased else None

    @segment(dynamic=True)
    def forward(self, encoded: Tensor) -> Tensor:
        """[M, D] -> [M, D]."""
        x = encoded if self.dense is None else self.activation(self.dense(encoded))
        return x if self.norm is None else self.norm(x)


class ModernLanguageModel(MaskedLanguageModel):
    """A pre-norm encoder with a language-model head, which may have a matrix of its own."""

    @override
    def parts(self, dropouts: Dropouts) -> tuple[TextEncoder, nn.Module]:
        return ModernEncoder(self.shape, dropouts), ModernHead(self.shape, words=True)

    @property
    @override
    def head_weight(self) -> Tensor:
        own = cast("Tensor | None", self.head.weight)
        return super().head_weight if own is None else own


class ModernClassifier(TextClassifier):
    """A pre-norm encoder and a classifier on the first token, or on the mean of all."""

    @override
    def add_parts(self, dropouts: Dropouts) -> None:
        self.encoder = ModernEncoder(self.shape, dropouts)
        self.head = ModernHead(self.shape, words=False)

    @override
    def first_states(self, tokens: Tensor, lengths: Tensor, cls_tail: bool = True) -> Tensor:
        """What the texts are told by: the encoded first tokens, or the means of all, for which no tail is cut.

        Args:
            tokens, lengths, cls_tail: as `TextClassifier.first_states` has them.

        Returns:
            [B, D].
        """
        pooling = _pre_norm(self.shape).pooling
        if pooling == "cls":
            return super().first_states(tokens, lengths, cls_tail)
        encoded = self.encoder.encode(TextView(tokens, lengths))[0]
        encoded = self.head(self.standard(encoded)) if pooling == "late" else encoded
        return torch.stack([text.mean(dim=0) for text in encoded.split(lengths.tolist())])

    @override
    def classify(self, first: Tensor) -> Tensor:
        headed = first if _pre_norm(self.shape).pooling == "late" else self.head(self.standard(first))
        drop = self.drop if self.shape.traits.drops_states else 0.0
        out: Tensor = self.classifier(F.dropout(headed, drop, self.training))
        return out


def _pre_norm(shape: TextShape) -> PreNorm:
    assert shape.pre_norm is not None
    return shape.pre_norm
