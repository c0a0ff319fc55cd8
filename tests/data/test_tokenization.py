"""Tokenising: the same ids as transformers gives, and a digest of content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_samples import bert_tokenizer, roberta_tokenizer, sentence
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from sdfast.data.tokenization import Tokenization, Tokenizer, load_tokenizer, tokenizer_digest
from sdfast.errors import UserError

TEXTS = [sentence(3), "x", "Unknown \u00e9\u4e2d words, <mask> [MASK] and more.", sentence(8, 40), "a\n b", " \u00ad "]


@pytest.mark.parametrize("make", [bert_tokenizer, roberta_tokenizer])
@pytest.mark.parametrize("max_length", [5, 12, 512])
def test_ids_are_those_of_transformers(make: Any, max_length: int) -> None:
    tokenizer = make([sentence(number) for number in range(50)])
    ours = Tokenizer(tokenizer, max_length)
    expected = tokenizer(TEXTS, truncation=True, max_length=max_length)["input_ids"]
    whole = tokenizer(TEXTS)["input_ids"]
    for one, ids, uncut in zip(ours(TEXTS), expected, whole, strict=True):
        assert one.ids.dtype == np.int32 and one.ids.tolist() == ids
        assert one.truncated == (len(uncut) > max_length)
    assert any(one.truncated for one in ours(TEXTS)) == (max_length < 512)


def test_what_the_tokenization_says() -> None:
    how = Tokenizer(roberta_tokenizer(), 64).tokenization
    assert (how.prefix, how.suffix, how.special_ids) == ((0,), (2,), (0, 1, 2, 3, 4))
    assert (how.mask_id, how.pad_id, how.max_length) == (4, 1, 64) and how.vocabulary == len(roberta_tokenizer())
    assert how.dtype == np.uint16 and Tokenization.from_json(how.to_json()) == how
    assert Tokenizer(bert_tokenizer(), 64).tokenization.prefix == (2,)


def test_settings_of_the_given_tokenizer_do_not_matter_and_stay() -> None:
    tokenizer = bert_tokenizer()
    digest = tokenizer_digest(tokenizer)
    tokenizer(TEXTS, truncation=True, padding=True, max_length=6)
    before = tokenizer.backend_tokenizer.to_str()
    assert len(Tokenizer(tokenizer)([sentence(8, 40)])[0].ids) > 40
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer_digest(tokenizer) == digest


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    texts = [sentence(number) for number in range(50)]
    digests = {tokenizer_digest(make(texts, vocabulary)) for make, vocabulary in _SEVERAL}
    assert len(digests) == len(_SEVERAL)
    tokenizer = roberta_tokenizer(texts)
    for folder in ("one", "two"):
        tokenizer.save_pretrained(tmp_path / folder)
        loaded = load_tokenizer(tmp_path / folder, 32)
        assert loaded.tokenization.tokenizer == tokenizer_digest(tokenizer) and loaded.tokenization.max_length == 32


_SEVERAL = ((bert_tokenizer, 100), (bert_tokenizer, 120), (roberta_tokenizer, 280), (roberta_tokenizer, 300))


def test_the_tokenizers_own_length_is_a_bound() -> None:
    assert Tokenizer(bert_tokenizer(model_max_length=20)).tokenization.max_length == 20
    assert Tokenizer(bert_tokenizer(model_max_length=20), 8).tokenization.max_length == 8
    with pytest.raises(UserError, match="max_length=2 leaves no room"):
        Tokenizer(bert_tokenizer(model_max_length=2))


def test_tokenizers_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the tokenizer of .*nothing cannot be loaded"):
        load_tokenizer(tmp_path / "nothing")
    bert_tokenizer().save_pretrained(tmp_path / "x")
    (tmp_path / "x" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"the tokenizer of .* cannot be loaded") as caught:
        load_tokenizer(tmp_path / "x")
    assert "\n" not in str(caught.value)

    empty = PreTrainedTokenizerFast(tokenizer_object=Backend(models.BPE()))
    with pytest.raises(UserError, match="the tokenizer has no ids for 'a b'"):
        Tokenizer(empty)

    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="Slow is no fast tokenizer"):
        Tokenizer(Slow())  # type: ignore[arg-type]
