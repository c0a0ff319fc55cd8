"""Texts as a person reads them: masked words and what a model guesses, and features after each block."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sdfast.modalities.texts.batch import TokenBatch, TokenReader
from sdfast.modalities.texts.model import Asking, MaskedLanguageModel, TextEncoder, starts
from sdfast.modalities.texts.order import sorted_batches
from sdfast.modalities.texts.prenorm import PreNormBlock
from sdfast.modalities.texts.tokenization import Tokenization, Tokenizer
from sdfast.models.blocks import PostNormBlock
from sdfast.rng import STREAM_TOKEN, philox_bits

GUESSES = 5  # that are shown of a masked word
_PASSAGE, _WORDS, _BEGINNING = (
    48,
    3,
    60,
)  # tokens of a passage that are shown, words masked in it, tokens of a beginning
_TOKENS = 8192  # of a batch


class Reader:
    """Turns ids into what a person reads."""

    def __init__(self, tokenizer: Tokenizer, how: Tokenization) -> None:
        """tokenizer: the model's; how: the tokenization of the pack."""
        self.tokenizer, self.special = tokenizer, frozenset(how.special_ids)
        self.words = tokenizer.word_table()

    def continues(self, ids: list[int], place: int) -> bool:
        """Whether the token at a place goes on with the word of the one before it."""
        if self.words is None or place >= len(ids) or ids[place] in self.special:
            return False
        before = place > 0 and ids[place - 1] not in self.special and bool(self.words[ids[place - 1], 1])
        return bool(self.words[ids[place], 0]) or before

    def text(self, ids: list[int]) -> str:
        """Some tokens in a row, without special ones."""
        return printable(self.tokenizer.decode([each for each in ids if each not in self.special]).strip())

    def token(self, number: int) -> str:
        """A token by itself: a word, or a part of one, which then begins with dots."""
        if self.words is not None and number < len(self.words) and self.words[number, 0]:
            return "\N{HORIZONTAL ELLIPSIS}" + self.text([number]).removeprefix("##")
        return printable(self.tokenizer.decode([number]).strip()) or "(blank)"


def printable(text: str) -> str:
    """A text without what does not print and does not belong into a file: controls, halves of characters."""
    return "".join(
        each if each.isprintable() else " " if each.isspace() else "\N{REPLACEMENT CHARACTER}" for each in text
    )


def beginning(reader: Reader, ids: list[int]) -> str:
    """The first words of a text, as a model sees them."""
    cut = len(ids) > _BEGINNING
    return reader.text(ids[:_BEGINNING]) + (" \N{HORIZONTAL ELLIPSIS}" if cut else "")


class Hidden(NamedTuple):
    """A word that is masked.

    Attributes:
        text: the number of its text.
        place: of its token there.
        number: its token.
    """

    text: int
    place: int
    number: int


class MaskedWords:
    """Texts of which the same words are hidden from every model: such as are one token, where the tokenizer tells.

    A model sees the whole text; words are hidden in the passage that is shown, its beginning.
    """

    def __init__(self, texts: list[list[int]], reader: Reader, mask_id: int, seed: int, rate: float) -> None:
        """Hide words.

        Args:
            texts: ids of each, special ones included.
            reader: of them.
            mask_id: the mask token.
            seed: of the choice, a pure function of it and the text's number.
            rate: share of the words that are hidden; one at least, and at most three.
        """
        self.texts, self.reader = texts, reader
        self.hidden = [each for number in range(len(texts)) for each in self._chosen(number, seed, rate)]
        self.masked = [list(text) for text in texts]
        for each in self.hidden:
            self.masked[each.text][each.place] = mask_id

    def _chosen(self, number: int, seed: int, rate: float) -> list[Hidden]:
        ids, reader = self.texts[number], self.reader
        passage = range(min(len(ids), _PASSAGE))
        free = [
            place
            for place in passage
            if ids[place] not in reader.special
            and not reader.continues(ids, place)
            and not reader.continues(ids, place + 1)
            and any(map(str.isalnum, reader.token(ids[place])))
        ]
        words = philox_bits(seed, 0, torch.tensor([number]), len(passage), STREAM_TOKEN)[0]
        count = min(_WORDS, max(1, round(rate * len(free))))
        chosen = sorted(free, key=lambda place: int(words[place]))[:count]
        return [Hidden(number, place, ids[place]) for place in sorted(chosen)]

    def shown(self) -> list[dict[str, Any]]:
        """The `parts` of each text: `text`, and of a hidden word also `masked`, its number among all of them."""
        return [{"parts": self._parts(number)} for number in range(len(self.texts))]

    def _parts(self, number: int) -> list[dict[str, Any]]:
        ids, parts, first = self.texts[number], list[dict[str, Any]](), 0
        cut = len(ids) > _PASSAGE
        for count, each in enumerate(self.hidden):
            if each.text == number:
                parts.append({"text": self.reader.text(ids[first : each.place])})
                parts.append({"text": self.reader.token(each.number), "masked": count})
                first = each.place + 1
        parts.append({"text": self.reader.text(ids[first:_PASSAGE]) + (" \N{HORIZONTAL ELLIPSIS}" if cut else "")})
        return [each for each in parts if each["text"]]

    def logits(self, module: MaskedLanguageModel) -> Tensor:
        """[hidden words, V] float32 on the CPU: what a model in evaluation mode scores every word with."""
        device, lengths = module.head_weight.device, torch.tensor([len(text) for text in self.texts])
        batch = TokenBatch(torch.tensor([each for text in self.masked for each in text]), lengths).to(device)
        first = starts(lengths).tolist()
        places = torch.tensor([first[each.text] + each.place for each in self.hidden], dtype=torch.int64)
        counts = torch.bincount(
            torch.tensor([each.text for each in self.hidden], dtype=torch.int64), minlength=len(lengths)
        )
        return module.logits(module.encoder(batch, Asking(places, counts))).float().cpu()

    def filled(self, module: MaskedLanguageModel, given: bool) -> dict[str, Any]:
        """What a model guesses.

        Args:
            module: in evaluation mode.
            given: whether it is the model as given, which makes no difference.

        Returns:
            `guesses`, of each hidden word `top`, the likeliest words with their probabilities, which of them is right
            (`right`, None for none), the `probability` of the right one and its `rank` from 1; and `error`, the mean
            cross-entropy of the hidden words.
        """
        if not self.hidden:
            return {"guesses": [], "error": None}
        probabilities = self.logits(module).softmax(dim=1)
        top, found = probabilities.topk(min(GUESSES, probabilities.shape[1]), dim=1), []
        for number, each in enumerate(self.hidden):
            right = float(probabilities[number, each.number])
            ids = top.indices[number].tolist()
            found.append(
                {
                    "top": [[self.reader.token(i), p] for i, p in zip(ids, top.values[number].tolist(), strict=True)],
                    "right": ids.index(each.number) if each.number in ids else None,
                    "probability": right,
                    "rank": 1 + int((probabilities[number] > right).sum()),
                }
            )
        own = torch.tensor([each["probability"] for each in found], dtype=torch.float64)
        return {"guesses": found, "error": float(-own.clamp(min=1e-45).log().mean())}


def layer_features(encoder: TextEncoder, read: TokenReader, rows: Tensor, lengths: Tensor) -> tuple[Tensor, str]:
    """What stands for each text after every block.

    Args:
        encoder: in evaluation mode.
        read: the ids of some rows.
        rows: [n] int64.
        lengths: [n] int64, of these rows.

    Returns:
        [depth, n, D] float32 on the CPU, the last after what comes behind the last block; and what it is, `first token`
        or, where a classifier of the kind takes that, `mean of the tokens`.
    """
    how, device = encoder.shape.pre_norm, encoder.word_embeddings.weight.device
    mean = how is not None and how.pooling != "cls"
    found = torch.empty(len(encoder.blocks), len(rows), encoder.shape.encoder.width)
    for batch in sorted_batches(torch.arange(len(rows)), lengths, _TOKENS):
        some = TokenBatch(*read(rows[batch.rows])).to(device)
        x, seen = encoder.embed(some), encoder.seen([some.lengths])
        for depth, block in enumerate(cast("list[PostNormBlock | PreNormBlock]", list(encoder.blocks)), 1):
            x = block.run(block, x, *seen.by(depth, device))
            out = encoder.finish(x) if depth == len(encoder.blocks) else x
            if mean:
                out = torch.stack([text.mean(dim=0) for text in out.split(some.lengths.tolist())])
            else:
                out = out[some.first.to(device)]
            found[depth - 1, batch.rows] = out.float().cpu()
    return found, "mean of the tokens" if mean else "first token"
