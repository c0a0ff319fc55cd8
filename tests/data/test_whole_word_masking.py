"""Whole-word masking: what a word is, by a table over the vocabulary, and that a word is masked or it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from test_text_masking import MASKING, read, spans, texts
from text_samples import bert_tokenizer, roberta_tokenizer, sentence
from tokenizer_samples import SENTENCES, write_python, write_sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sdfast.data.order import Batch
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.masking import TokenMasking, batch_token_mask, first_of_word, token_mask
from sdfast.modalities.texts.tokenization import Tokenizer, load_tokenizer
from sdfast.ranks import Ranks

WORDS = torch.stack(((torch.arange(1000) % 3 == 0), torch.arange(1000) % 7 == 5), -1)
WHOLE = TokenMasking(MASKING.mask_id, MASKING.vocabulary, MASKING.special_ids, words=WORDS)


def words_of(ids: list[int], words: torch.Tensor, special: set[int]) -> list[list[int]]:
    """Places of each word's tokens, one by one as the definition says."""
    found: list[list[int]] = []
    for place, number in enumerate(ids):
        before = ids[place - 1] if place else None
        goes_on = before is not None and before not in special and number not in special
        if goes_on and (words[number, 0] or words[before, 1]):
            found[-1].append(place)
        elif number not in special:
            found.append([place])
        else:
            found.append([])
    return [each for each in found if each]


def by_words(batch: TokenBatch) -> list[list[int]]:
    found = []
    for first, last in spans(batch):
        ids = batch.ids[first:last].tolist()
        found += [[first + place for place in word] for word in words_of(ids, WORDS, set(MASKING.special_ids))]
    return found


def test_a_word_is_chosen_or_it_is_not() -> None:
    rows = torch.arange(400)
    batch = texts(rows)
    chosen = set(token_mask(1, 0, rows, batch, WHOLE).chosen.tolist())
    words = by_words(batch)
    assert max(map(len, words)) > 4 and sum(map(len, words)) == len(batch.ids) - 2 * len(rows)
    assert all(len(chosen & set(word)) in (0, len(word)) for word in words)
    first = set(token_mask(1, 0, rows, batch, MASKING).chosen.tolist())  # a word goes by what its first token drew
    assert {word[0] for word in words if word[0] in chosen} == {word[0] for word in words if word[0] in first}
    assert chosen == {place for word in words if word[0] in first for place in word}


def test_shares_of_words_and_tokens() -> None:
    rows = torch.arange(900)
    batch = texts(rows)
    drawn, words = token_mask(1, 0, rows, batch, WHOLE), by_words(batch)
    tokens, chosen = sum(map(len, words)), set(drawn.chosen.tolist())
    squares = sum(len(word) ** 2 for word in words)
    assert abs(len(chosen) / tokens - 0.15) < 4 * (0.15 * 0.85 * squares) ** 0.5 / tokens
    assert abs(sum(word[0] in chosen for word in words) / len(words) - 0.15) < 4 * (0.1275 / len(words)) ** 0.5
    seen, count = drawn.batch.ids[drawn.chosen], len(drawn.chosen)
    for share, wanted in (((seen == 4).sum() / count, 0.8), ((seen == drawn.labels).sum() / count, 0.1)):
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / count) ** 0.5
    masked = seen == 4  # what becomes of a token is drawn for it alone: some words are masked in part
    of = {place: number for number, word in enumerate(words) for place in word}
    several = {of[place] for place in drawn.chosen.tolist() if len(words[of[place]]) > 1}
    counts = {number: [0, 0] for number in several}
    for place, is_masked in zip(drawn.chosen.tolist(), masked.tolist(), strict=True):
        if of[place] in several:
            counts[of[place]][is_masked] += 1
    assert sum(all(count) for count in counts.values()) > len(counts) / 4


def test_the_address_alone_decides_and_processes_agree() -> None:
    rows = torch.tensor([7, 300, 2, 19])
    together = token_mask(5, 1, rows, texts(rows), WHOLE)
    for place, row in enumerate(rows):
        alone = token_mask(5, 1, row[None], texts(row[None]), WHOLE)
        part = together[place : place + 1]
        assert torch.equal(alone.chosen, part.chosen) and torch.equal(alone.batch.ids, part.batch.ids)
    whole = Batch(2, torch.tensor([5, 0, 3, 8, 1]))
    alone = batch_token_mask(4, whole, read, WHOLE)
    parts = [batch_token_mask(4, whole.shared(Ranks(rank, 2)), read, WHOLE) for rank in range(2)]
    assert {part.whole_count for part in parts} == {alone.whole_count} == {len(alone.chosen)}
    assert torch.equal(torch.cat([part.labels for part in parts]), alone.labels)


def test_a_table_of_single_tokens_masks_as_without() -> None:
    rows = torch.arange(60)
    batch = texts(rows)
    alone = TokenMasking(4, 1000, MASKING.special_ids, words=torch.zeros(1000, 2, dtype=torch.bool))
    one, other = (token_mask(3, 2, rows, batch, masking) for masking in (MASKING, alone))
    assert torch.equal(one.batch.ids, other.batch.ids) and torch.equal(one.chosen, other.chosen)


def test_words_do_not_go_over_special_tokens_and_ends_of_texts() -> None:
    ids = torch.tensor([0, 6, 6, 2, 6, 2, 6, 6, 0, 6, 9, 5, 7])
    batch = TokenBatch(ids, torch.tensor([6, 7]))
    special = torch.isin(ids, torch.tensor([0, 2]))
    first = first_of_word(ids, batch.places, special, WORDS)
    assert first.tolist() == [0, 1, 1, 3, 4, 5, 6, 6, 8, 9, 9, 11, 11]
    assert first_of_word(ids[:0], batch.places[:0], special[:0], WORDS).tolist() == []


def pieces_of(tokenizer: PreTrainedTokenizerBase, ours: Tokenizer, text: str) -> list[str]:
    """A text by the words of the table."""
    (found,) = ours([text])
    assert found is not None
    ids, how = found.ids.tolist(), ours.tokenization
    words = words_of(ids, torch.from_numpy(ours.word_table()), set(how.special_ids))
    return [" ".join(tokenizer.convert_ids_to_tokens([ids[place] for place in word])) for word in words]


TEXT = "The proteins bind, parsers don't; cells"


def test_words_of_bert_and_roberta() -> None:
    bert, roberta = bert_tokenizer(SENTENCES), roberta_tokenizer(SENTENCES)
    found = pieces_of(bert, Tokenizer(bert), TEXT)
    joined = [each.replace(" ##", "") for each in found]
    assert joined == ["the", "proteins", "bind", *joined[3:-1], "cells"] and any(" ##" in each for each in found)
    assert "don" in joined[3:] or "parsers" in joined[3:]
    found = pieces_of(roberta, Tokenizer(roberta), TEXT)
    assert [each.replace(" ", "").replace("\u0120", "") for each in found] == TEXT.split()
    table = Tokenizer(roberta).word_table()
    assert table is not None
    assert table.dtype == np.bool_ and table.shape == (len(roberta), 2) and not table[:5].any()


@pytest.mark.parametrize("kind", ["xlm-roberta", "camembert"])
def test_words_of_sentencepiece(kind: str, tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("sentencepiece", "google.protobuf")):
        pytest.skip("needs sentencepiece and protobuf")
    from transformers import AutoTokenizer

    folder = write_sentencepiece(tmp_path / "x", kind)
    text = sentence(5, 8)
    found = pieces_of(AutoTokenizer.from_pretrained(folder), load_tokenizer(folder), text)
    assert [each.replace(" ", "").replace("\u2581", "") for each in found] == text.split()


@pytest.mark.parametrize("name", ["PhobertTokenizer", "BertweetTokenizer"])
def test_words_of_python(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write_python(tmp_path / "x", name)
    found = pieces_of(AutoTokenizer.from_pretrained(folder), load_tokenizer(folder), "the proteins bind cells")
    assert [each.replace("@@ ", "") for each in found] == ["the", "proteins", "bind", "cells"]


def test_other_signs() -> None:
    letters = {token: number for number, token in enumerate(("<unk>", "a", "b", "a</w>", "b</w>", "new"))}

    def tokenizer(model: models.Model, splitter: pre_tokenizers.PreTokenizer | None) -> Tokenizer:
        backend = Backend(model)
        if splitter is not None:
            backend.pre_tokenizer = splitter
        return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))

    ending = models.BPE(letters, [], unk_token="<unk>", end_of_word_suffix="</w>")
    assert tokenizer(ending, pre_tokenizers.Whitespace()).word_table()[:, 1].tolist() == [0, 1, 1, 0, 0, 1]
    assert not tokenizer(models.WordLevel(letters, "<unk>"), pre_tokenizers.Whitespace()).word_table().any()
    assert tokenizer(models.BPE(letters, [], unk_token="<unk>"), None).word_table() is None
