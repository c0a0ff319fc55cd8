"""Tokenising: the same ids as transformers gives, and a digest of content."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_samples import WORDS, bert_tokenizer, roberta_tokenizer, sentence
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import sdfast
from sdfast.errors import UserError
from sdfast.modalities.texts import tokenization
from sdfast.modalities.texts.backends import tokenizer_digest
from sdfast.modalities.texts.tokenization import Tokenization, Tokenizer, load_tokenizer
from sdfast.modalities.texts.word_ends import word_ends

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


def long_texts(seed: int) -> list[str]:
    """Texts of many kinds, some of them longer than what is tokenised at first."""
    draw = random.Random(seed)
    parts = [*WORDS, "don't", "we'll", "they're", "'s", "!?", "e\u0301", "\u4e2d\u6587", "\u00ad", "<mask>", "[MASK]"]
    parts += [
        "</s>",
        "\x00x",
        "\u2460",
        "\ufb01ne",
        "\u0399\u03a3",
        "\u1100\u1161\u11a8",
        "x" * 150,
        "\x1c",
        "7",
        "3.14",
    ]
    blanks = [" ", "  ", "\n", " \t ", "\u3000", "\u00a0", "\r\n", "", "\x0b", "\x85"]
    return [
        "".join(draw.choice(parts) + draw.choice(blanks) for _ in range(draw.randrange(1, 1500))).strip()
        for _ in range(40)
    ]


@pytest.mark.parametrize("max_length", [5, 24, 100])
@pytest.mark.parametrize("which", ["bert", "roberta", "bundled"])
def test_a_beginning_gives_the_ids_of_the_whole(which: str, max_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [sentence(number) for number in range(50)]
    bundled = Path(sdfast.__file__).parent / "bundled" / "text-model"
    tokenizer = {
        "bert": lambda: bert_tokenizer(sentences),
        "roberta": lambda: roberta_tokenizer(sentences),
        "bundled": lambda: AutoTokenizer.from_pretrained(bundled),
    }[which]()
    ours, texts = Tokenizer(tokenizer, max_length), long_texts(max_length)
    monkeypatch.setattr(tokenization, "_FIRST", 2)  # so that most begin too short at first
    monkeypatch.setattr(tokenization, "_GROWTH", 2)
    whole = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    uncut = tokenizer(texts)["input_ids"]
    for one, ids, all_ids in zip(ours(texts), whole, uncut, strict=True):
        assert one is not None and one.ids.tolist() == ids and one.truncated == (len(all_ids) > max_length)


@pytest.mark.parametrize("make", [bert_tokenizer, roberta_tokenizer])
def test_every_beginning_gives_the_first_ids(make: Any) -> None:
    ours = Tokenizer(make([sentence(number) for number in range(50)]), 512)
    for text in long_texts(1)[:10]:
        uncut = ours._backend.encode([text])[0]
        for size in range(0, min(len(text), 1500), 7):
            start = ours._beginning(text, size)
            if start is not None and len(start) < len(text):
                assert len(start) <= size and text.startswith(start) and text[len(start)] in " \t\r\n"
                ids = ours._backend.encode([start])[0]
                assert uncut[: len(ids)] == ids


def test_tokenizers_whose_tokens_reach_over_a_blank_get_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(roberta_tokenizer().backend_tokenizer.to_str())
    assert word_ends(content) and word_ends(json.loads(bert_tokenizer().backend_tokenizer.to_str()))
    whole = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": False}
    replacing = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
    sequence = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, whole]}
    assert word_ends({**content, "pre_tokenizer": sequence})
    for change in (
        {"pre_tokenizer": whole},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {**content["pre_tokenizer"], "use_regex": False}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, replacing]}},
        {"added_tokens": [{"content": "new york"}]},
    ):
        assert not word_ends({**content, **change})
    vocabulary = {token: number for number, token in enumerate(("<unk>", "a", "b", " ", "b ", "ab "))}
    merges = [("b", " "), ("a", "b ")]  # "ab " is one token, and "ab" at the end two
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    text = "ab " * 600
    uncut = tokenizer(text)["input_ids"]
    for first in (2, 3):
        monkeypatch.setattr(tokenization, "_FIRST", first)
        for max_length in range(2, 60):
            (found,) = Tokenizer(tokenizer, max_length)([text])
            assert found is not None and found.ids.tolist() == uncut[:max_length] and found.truncated


def test_what_is_no_text_is_not_tokenised_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "LONGEST", 2000)
    for make in (bert_tokenizer, roberta_tokenizer):
        ours = Tokenizer(make([sentence(number) for number in range(50)]), 16)
        fine, word, blanks = sentence(3, 2000), "a" * 2001, "the" + " " * 2000 + "cell"
        found = ours([fine, word, blanks, word[:2000], f"{sentence(4, 50)} {word}", sentence(5)])
        assert [one is None for one in found] == [False, True, True, False, False, False]
        assert [one.truncated for one in found if one is not None][-1:] == [False]


_CHILD = """
import resource, sys
from text_samples import bert_tokenizer, roberta_tokenizer, sentence
from sdfast.modalities.texts.tokenization import Tokenizer
make = {"bert": bert_tokenizer, "roberta": roberta_tokenizer}[sys.argv[1]]
tokenizer = Tokenizer(make([sentence(n) for n in range(50)]), 128)
text = {"words": "the cell binds ", "word": "kinase"}[sys.argv[2]] * (12 << 17)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = tokenizer([text])[0]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 0 if ids is None else len(ids.ids))
"""


@pytest.mark.parametrize("which", ["bert", "roberta"])
@pytest.mark.parametrize(("kind", "tokens"), [("words", 128), ("word", 0)])
def test_memory_does_not_grow_with_the_text(which: str, kind: str, tokens: int) -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, which, kind],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(here)},
    )
    kilobytes, found = map(int, done.stdout.split())
    assert found == tokens and kilobytes < 200 << 10  # whole they take 0.4 to 2 GB


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
    empty.save_pretrained(tmp_path / "empty")
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path / 'empty'))}: the tokenizer has no ids for 'a b'"):
        load_tokenizer(tmp_path / "empty")

    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="Slow is no tokenizer of transformers"):
        Tokenizer(Slow())  # type: ignore[arg-type]
