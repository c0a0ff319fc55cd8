"""A BERT or one of its kin as one function of padded token ids: for ONNX and torch.export."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import Companions
from sdfast.modalities.texts.model import TextClassifier, TextEncoder
from sdfast.modalities.texts.prenorm import rotary_table
from sdfast.models.blocks import Turn
from sdfast.models.portable import Portable, Tensors, outputs_of
from sdfast.ops.attention import Group, Groups

_MADE_UP = 12  # tokens of a made-up text


class PortableTexts(nn.Module):
    """An encoder, and the classifier on it where there is one, of texts with padding anywhere."""

    def __init__(self, module: Any, classifies: bool) -> None:
        """module: a classifier, or whatever has an `encoder`."""
        super().__init__()
        self.module, self.classifies = (module if classifies else module.encoder), classifies

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensors:
        """Encode or classify.

        Args:
            input_ids: [B, N] int64, special tokens included.
            attention_mask: [B, N] int64, 0 at padding, which may lie anywhere.

        Returns:
            logits [B, classes]; or tokens [B, N, D], zero at padding, and the first token of each text [B, D].
        """
        encoder: TextEncoder = self.module.encoder if self.classifies else self.module
        valid = attention_mask != 0
        batch, length = input_ids.shape
        lengths = valid.sum(dim=1, keepdim=True)
        # where each goes, so that the tokens of a text lie together and its padding follows
        target = torch.where(valid, valid.cumsum(dim=1) - 1, lengths + (~valid).cumsum(dim=1) - 1)
        places = torch.arange(length, device=input_ids.device)
        there = (places < lengths) | (places == 0)  # of a text without any token one is computed, to stay finite
        ids = torch.zeros_like(input_ids).scatter(1, target, input_ids) * there
        rows = places.expand(batch, length).flatten()
        x = encoder.embed_at(ids.flatten(), rows + encoder.shape.first_position)
        blocks: list[Any] = list(encoder.blocks)
        for block, told in zip(blocks, self._told(encoder, places, there), strict=True):
            x = block(x, *told)
        encoded = encoder.finish(x).view(batch, length, -1)
        if not self.classifies:
            back = encoded.gather(1, target.unsqueeze(-1).expand(-1, -1, encoded.shape[-1]))
            return back * valid.unsqueeze(-1), encoded[:, 0]
        whole: Any = self.module
        if not isinstance(whole, TextClassifier):
            return (whole.classifier(encoded[:, 0]),)
        how, headed = encoder.shape.pre_norm, cast(Any, whole)
        if how is None or how.pooling == "cls":
            return (headed.classify(encoded[:, 0]),)
        encoded = headed.head(encoded) if how.pooling == "late" else encoded
        weights = there.unsqueeze(-1).to(encoded.dtype)
        return (headed.classify((encoded * weights).sum(dim=1) / weights.sum(dim=1)),)

    @staticmethod
    def _told(encoder: TextEncoder, places: Tensor, there: Tensor) -> list[tuple[Any, ...]]:
        """What each block is told of the texts: which tokens see which, and how they turn."""
        how, depth = encoder.shape.pre_norm, len(encoder.blocks)
        batch, length = there.shape
        whole = Groups((Group(batch, length, length, there),))
        if how is None:
            return [(whole,)] * depth
        near = there[:, None] & ((places[:, None] - places).abs() <= how.window)
        near = near | ~near.any(dim=2, keepdim=True)  # a query of padding that is far from all else
        local, dim = Groups((Group(batch, length, length, near),)), encoder.shape.encoder
        told = []
        for number in range(depth):
            is_local = how.is_local(number)
            table = rotary_table(
                how.local_base if is_local else how.base, dim.width // dim.heads, length, places.device
            )
            turn = Turn(*(each.expand(batch, -1, -1).flatten(0, 1) for each in table))
            told.append((local if is_local else whole, turn))
        return told


def portable(module: Any, companions: Companions) -> Portable:
    """A classifier, or the encoder of a masked language model, as a `Portable`."""
    encoder: TextEncoder = module.encoder
    shape, classifies = encoder.shape, hasattr(module, "classifier")

    def own(ids: Tensor, mask: Tensor) -> Tensor:
        batch = TokenBatch(ids[mask != 0], mask.sum(dim=1))
        found: Tensor = module(batch) if classifies else encoder.features(batch, "cls")
        return found

    def given(split: Any, rows: Tensor) -> Tensors:
        if split is None:
            generator = torch.Generator().manual_seed(0)
            lengths = torch.arange(len(rows)) % min(_MADE_UP, shape.longest) + 1
            ids = torch.randint(shape.vocabulary, (int(lengths.sum()),), generator=generator)
        else:
            ids, lengths = split.tokens(rows)
        return _padded(ids, lengths)

    about = {
        "input_ids": "int64 [batch, length], special tokens included",
        "attention_mask": "int64 [batch, length], 0 at padding, which may lie anywhere",
        "longest": shape.longest,
        "pad_id": shape.pad_id,
    }
    sizes = {0: "batch", 1: "length"}
    return Portable(
        PortableTexts(module, classifies),
        {"input_ids": sizes, "attention_mask": sizes},
        outputs_of(classifies),
        own,
        given,
        shape.longest,
        about,
    )


def _padded(ids: Tensor, lengths: Tensor) -> Tensors:
    """Texts one after the other, [T] and [B], as ids and mask [B, N]: padding before every second one, else behind."""
    longest, places = int(lengths.max()), torch.arange(int(lengths.max()))
    first = torch.where(torch.arange(len(lengths)) % 2 == 1, longest - lengths, 0)[:, None]
    mask = (places >= first) & (places < first + lengths[:, None])
    padded = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter(mask, ids.to(torch.int64))
    return padded, mask.to(torch.int64)
