"""A lean BERT and its kin: encoder, language-model head and classifier, over tokens that lie in one matrix unpadded.

Equal to the modules of transformers (`BertForMaskedLM`, `BertForSequenceClassification` and those of RoBERTa,
DistilBERT and ELECTRA) for the same weights; the tests compare them. A token's position is its place in its sequence,
also where a token is the padding id by accident (transformers' RoBERTa does not count such a one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from sdfast.errors import UserError
from sdfast.modalities.texts.batch import TokenBatch, starts
from sdfast.modalities.texts.kinds import TRAITS, Traits
from sdfast.modalities.texts.prenorm import PreNorm, PreNormBlock
from sdfast.models.base import Classifier, Encoder, Layer, MaskedModel, Tokens, blocks_before
from sdfast.models.blocks import PostNormBlock, TransformerShape
from sdfast.models.compiled import Compilable, segment
from sdfast.models.weights import later
from sdfast.ops.attention import Groups, Ragged
from sdfast.ops.gelu import gelu
from sdfast.ops.linear import Linear, linear


@dataclass(frozen=True)
class TextShape:
    """Everything that decides the architecture of a BERT or one of its kin.

    Attributes:
        kind: its `model_type`, which decides what the sizes do not say: see `Traits`.
        vocabulary: words.
        positions: rows of the position table.
        types: token types; RoBERTa has one, DistilBERT 0: no table of them.
        pad_id: id of the padding token, whose embedding is not trained; None for none.
        encoder: the blocks.
        norm_eps: of every LayerNorm.
        embedding: width of the embeddings, which a linear layer brings to the blocks'; None for theirs.
        pre_norm: what pre-norm models have, which have no table of positions (see `modern`); None for BERT's kin.
    """

    kind: str
    vocabulary: int
    positions: int
    types: int
    pad_id: int | None
    encoder: TransformerShape
    norm_eps: float = 1e-12
    embedding: int | None = later(None)
    pre_norm: PreNorm | None = later(None)

    @property
    def traits(self) -> Traits:
        """What its kind decides."""
        return TRAITS[self.kind]

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings, E."""
        return self.embedding or self.encoder.width

    @property
    def first_position(self) -> int:
        """Row of the position table for the first token."""
        return (self.pad_id or 0) + 1 if self.traits.behind_padding else 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.positions - self.first_position

    @property
    def parameters(self) -> int:
        """How many numbers the encoder with its embeddings and a head's own layer have."""
        if self.pre_norm is not None:
            return self._pre_norm_parameters(self.pre_norm)
        width, narrow = self.encoder.width, self.embedding_width
        tables = narrow * (self.vocabulary + self.positions + self.types + 2)
        between = 0 if width == narrow else width * (narrow + 1)
        head = narrow * (width + 3)
        return tables + between + head + self.encoder.depth * self.encoder.block_parameters(qkv_bias=True)

    def _pre_norm_parameters(self, how: PreNorm) -> int:
        encoder, width = self.encoder, self.encoder.width
        norm = width * (1 + (encoder.style.norm == "layer" and encoder.style.norm_bias))
        tables = width * self.vocabulary * (1 if how.tied else 2)
        head = width * (width + how.dense_bias) + norm if self.traits.has_dense else 0
        return tables + norm + head + encoder.depth * encoder.block_parameters(how.qkv_bias)


@dataclass(frozen=True)
class Dropouts:
    """Probabilities of dropping.

    Attributes:
        hidden: after the embeddings, the attention projections and the MLPs.
        attention: attention weights.
        classifier: around the classifier's first layer; None for that of `hidden`.
        embeddings: after the embeddings, where a model has one of its own there; None for that of `hidden`.
    """

    hidden: float = 0.0
    attention: float = 0.0
    classifier: float | None = None
    embeddings: float | None = later(None)


NO_DROPOUT = Dropouts()


class Asking(NamedTuple):
    """Tokens of some sequences whose result is wanted.

    Attributes:
        rows: [M] int64 on the CPU, their places in the matrix of all tokens, ascending.
        counts: [B] int64 on the CPU, how many there are of each sequence.
    """

    rows: Tensor
    counts: Tensor


def first_tokens(lengths: Tensor) -> Asking:
    """The first token of every sequence (`<s>`, `[CLS]`)."""
    return Asking(starts(lengths), torch.ones_like(lengths))


def asked_tokens(lengths: Tensor, tokens: Tokens) -> Asking | None:
    """Those of texts that are matched: `cls`, the first (`<s>`, `[CLS]`), or `all` (equation 3 read literally), None.

    Raises:
        UserError: these are patches.
    """
    check_text_tokens(tokens)
    return first_tokens(lengths) if tokens == "cls" else None


def check_text_tokens(tokens: Tokens) -> None:
    """Check that texts have such tokens.

    Raises:
        UserError: these are patches.
    """
    if tokens == "patch":
        raise UserError("distill.tokens=patch is for images; for texts use cls (the first token) or all.")


@dataclass(frozen=True, eq=False)
class TextView:
    """What the encoder is given of some sequences.

    Attributes:
        tokens: [T, D] from `TextEncoder.embed`.
        lengths: [B] int64 on the CPU, tokens of each sequence.
        asking: the tokens whose result is wanted; None for all.
        layer: stop after so many blocks; None goes through all.
    """

    tokens: Tensor
    lengths: Tensor
    asking: Asking | None = None
    layer: int | None = None


class TextEncoder(Encoder):
    """Embeddings of words, positions and token types, their LayerNorm, and the blocks.

    Where the embeddings are narrower or wider than the blocks, a linear layer, `project`, comes between them.
    """

    static = False

    def __init__(self, shape: TextShape, dropouts: Dropouts = NO_DROPOUT) -> None:
        super().__init__()
        self.shape = shape
        width, narrow = shape.encoder.width, shape.embedding_width
        self.word_embeddings = word_table(shape.vocabulary, narrow)
        self.position_embeddings = word_table(shape.positions, narrow)
        self.type_embeddings = word_table(shape.types, narrow) if shape.types else None
        self.norm = nn.LayerNorm(narrow, eps=shape.norm_eps)
        self.dropout = nn.Dropout(dropouts.hidden)
        self.project = None if width == narrow else Linear(narrow, width, rows_vary=True)
        rates = dropouts.hidden, dropouts.attention, dropouts.hidden if shape.traits.drops_attention else 0.0
        self.blocks = nn.ModuleList(
            PostNormBlock(shape.encoder, shape.norm_eps, *rates) for _ in range(shape.encoder.depth)
        )

    def forward(self, batch: TokenBatch, asking: Asking | None = None, layer: int | None = None) -> Tensor:
        """Encode sequences.

        Args:
            batch: their tokens.
            asking, layer: see `TextView`.

        Returns:
            [T, D], or [M, D] at the tokens asked for.
        """
        return self.encode(TextView(self.embed(batch), batch.lengths, asking, layer))[0]

    def embed(self, batch: TokenBatch, types: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Tokens before the first block.

        Args:
            batch: the sequences.
            types: [T] int64 token types; None for 0 everywhere, and where the model has none.
            noise: [T, E]: the sequences come once more, with it added to their words' embeddings, which then carry no
                gradient; positions, types, LayerNorm and dropout come after it.

        Returns:
            [T, D], or [2T, D] with `noise`.

        Raises:
            UserError: a sequence is longer than the table of positions.
        """
        self.check_lengths(batch)
        places = (batch.places + self.shape.first_position).to(batch.ids.device, non_blocking=True)
        return self.embed_at(batch.ids, places, types, noise)

    def embed_at(self, ids: Tensor, places: Tensor, types: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """`embed` of ids [T] int64 at rows [T] int64 of the table of positions, which are not checked."""
        x = F.embedding(ids, self.word_embeddings.weight, self.shape.pad_id)
        if noise is not None:
            x, places = torch.cat((x, x.detach() + noise)), places.repeat(2)
            types = None if types is None else types.repeat(2)
        if self.type_embeddings is not None:
            x = x + (self.type_embeddings.weight[0] if types is None else self.type_embeddings(types))
        x = self.dropout(self.norm(x + self.position_embeddings(places)))
        return x if self.project is None else self.project(x).to(x.dtype)  # a residual, also under autocast

    def check_lengths(self, batch: TokenBatch) -> None:
        """Raise a UserError where a sequence is longer than the model has positions."""
        longest = int(batch.lengths.max()) if len(batch) else 0
        if longest > self.shape.longest:
            raise UserError(
                f"a text has {longest} tokens, but the model has positions for {self.shape.longest}: truncate it."
            )

    @override
    def features(self, inputs: TokenBatch, tokens: Tokens, layer: Layer = "last") -> Tensor:
        """Texts -> [B, D] for `cls`, [T, D] for `all`, sequence after sequence (fidelity 3.3)."""
        return self(inputs, asked_tokens(inputs.lengths, tokens), blocks_before(layer))

    def encode(self, *views: TextView) -> list[Tensor]:
        """Send views through the blocks together: their tokens are rows of one matrix in every linear layer and norm.

        Returns:
            for each view [T, D]; or [M, D] where only some tokens are asked for: there its last block computes keys
            and values for all tokens, and everything else for those alone.
        """
        going = list(range(len(views)))
        x, seen = _together([view.tokens for view in views]), self.seen([view.lengths for view in views])
        ended: dict[int, Tensor] = {}
        for depth, block in enumerate(cast("list[PostNormBlock | PreNormBlock]", list(self.blocks)), 1):
            ending = [number for number in going if depth == (views[number].layer or len(self.blocks))]
            asking = [views[number].asking if number in ending else None for number in going]
            if any(each is not None for each in asking):
                seen = self.seen([views[number].lengths for number in going], asking)
                x = block.run(block.some_rows, x, seen.rows(x.device), *seen.by(depth, x.device))
            else:
                x = block.run(block, x, *seen.by(depth, x.device))
            if ending:
                split = dict(zip(going, x.split(seen.groups.query_sizes), strict=True))
                for number in ending:
                    out = split.pop(number)
                    ended[number] = self.finish(out) if views[number].layer is None else out
                going = list(split)
                if not going:
                    break
                x, seen = _together(list(split.values())), self.seen([views[number].lengths for number in going])
        return [ended[number] for number in range(len(views))]

    def seen(self, lengths: list[Tensor], asking: list[Asking | None] | None = None) -> Seen:
        """What the blocks are told of the sequences of some views."""
        return Seen(lengths, asking)

    def finish(self, x: Tensor) -> Tensor:
        """What comes after the last block: [T, D] -> [T, D]."""
        return x


def word_table(rows: int, width: int) -> nn.Embedding:
    """Embeddings, all zero: random ones on the meta device have torch import its compiler, which takes seconds."""
    return nn.Embedding(rows, width, _weight=torch.zeros(rows, width))


def _together(parts: list[Tensor]) -> Tensor:
    """Rows of some views as one matrix; those of one view are not copied."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class Seen:
    """What the blocks are told of the sequences of some views, one after the other.

    Attributes:
        groups: the sequences.
    """

    def __init__(self, lengths: list[Tensor], asking: list[Asking | None] | None = None) -> None:
        """lengths: [B] each, of the views' sequences; asking: tokens of each view, or None for all of all views."""
        self.lengths, self.asking = lengths, asking
        asked = asking or [None] * len(lengths)
        self.groups = Groups(tuple(_ragged(keys, some) for keys, some in zip(lengths, asked, strict=True)))

    def rows(self, device: torch.device) -> Tensor:
        """[M] int64: the rows that ask in the matrix of all tokens."""
        rows, first = [], 0
        for keys, some in zip(self.lengths, self.asking or [], strict=True):
            count = int(keys.sum())
            rows.append(first + (torch.arange(count) if some is None else some.rows))
            first += count
        return torch.cat(rows).to(device, non_blocking=True)

    def by(self, depth: int, device: torch.device) -> tuple[Any, ...]:
        """What the block of that number, from 1, is given beside its tokens."""
        return (self.groups,)


def _ragged(keys: Tensor, some: Asking | None) -> Ragged:
    if some is None:
        return Ragged(keys)
    return Ragged(keys, some.counts, some.rows - torch.repeat_interleave(starts(keys), some.counts))


class LanguageModelHead(Compilable):
    """From an encoded token to what is compared with every word: dense layer, GELU, LayerNorm; and a bias for each."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        width, narrow = shape.encoder.width, shape.embedding_width
        self.dense = Linear(width, narrow, rows_vary=True)
        self.norm = nn.LayerNorm(narrow, eps=shape.norm_eps)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))

    @segment(dynamic=True)
    def forward(self, encoded: Tensor) -> Tensor:
        """What words are scored with, out of encoded tokens: [M, D] -> [M, E]."""
        return self.norm(gelu(self.dense(encoded)))


class MaskedLanguageModel(MaskedModel):
    """An encoder with a language-model head, whose last matrix is that of the words' embeddings."""

    shape: TextShape
    encoder: TextEncoder

    def __init__(self, shape: TextShape, dropouts: Dropouts = NO_DROPOUT) -> None:
        super().__init__()
        self.shape = shape
        self.encoder, self.head = self.parts(dropouts)

    def parts(self, dropouts: Dropouts) -> tuple[TextEncoder, nn.Module]:
        """The encoder, and a head that makes of encoded tokens [M, D] what words are scored with."""
        return TextEncoder(self.shape, dropouts), LanguageModelHead(self.shape)

    @property
    def head_weight(self) -> Tensor:
        """[V, E], the matrix that words are scored with."""
        return self.encoder.word_embeddings.weight

    @property
    def head_bias(self) -> Tensor | None:
        """[V], what is added to the scores, if anything."""
        return cast("Tensor | None", self.head.bias)

    def logits(self, encoded: Tensor) -> Tensor:
        """[M, D] encoded tokens -> [M, V]; training does not make them for all (see the objectives)."""
        return linear(self.head(encoded), self.head_weight, self.head_bias, rows_vary=True)


class TextClassifier(Classifier):
    """An encoder and a classifier on the first token, as transformers' models of the kind have it.

    Dropout where the kind has it, dense layer, activation, dropout, linear layer; BERT's dense layer is called the
    pooler.
    """

    shape: TextShape
    encoder: TextEncoder

    def __init__(self, shape: TextShape, classes: int, dropouts: Dropouts = NO_DROPOUT) -> None:
        super().__init__()
        self.shape = shape
        self.add_parts(dropouts)
        self.classifier = nn.Linear(shape.encoder.width, classes)
        self.drop = dropouts.hidden if dropouts.classifier is None else dropouts.classifier

    def add_parts(self, dropouts: Dropouts) -> None:
        """Make the encoder, and what stands between it and the last layer."""
        width = self.shape.encoder.width
        self.encoder = TextEncoder(self.shape, dropouts)
        self.dense = nn.Linear(width, width)

    def forward(self, batch: TokenBatch, cls_tail: bool = True, noise: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            batch: the sequences.
            cls_tail: see `first_states`.
            noise: see `TextEncoder.embed`.

        Returns:
            [B, classes] logits; with `noise` [2B, classes], those of the noised sequences after the others.
        """
        lengths = batch.lengths if noise is None else batch.lengths.repeat(2)
        return self.classify(self.first_states(self.encoder.embed(batch, noise=noise), lengths, cls_tail))

    def first_states(self, tokens: Tensor, lengths: Tensor, cls_tail: bool = True) -> Tensor:
        """The encoded first tokens.

        Args:
            tokens: [T, D] from `TextEncoder.embed`.
            lengths: [B] int64 on the CPU, tokens of each sequence.
            cls_tail: the last block computes nothing but keys and values for the others.

        Returns:
            [B, D].
        """
        first = first_tokens(lengths)
        encoded = self.encoder.encode(TextView(tokens, lengths, first if cls_tail else None))[0]
        return encoded if cls_tail else encoded[first.rows]

    def classify(self, first: Tensor) -> Tensor:
        """[B, D], the encoded first tokens -> [B, classes]."""
        traits, first = self.shape.traits, self.standard(first)
        if traits.drops_first:
            first = F.dropout(first, self.drop, self.training)
        return self.classifier(F.dropout(traits.activation(self.dense(first)), self.drop, self.training))
