"""Tokenizers of sentencepiece and of Python alone: their ids are those of transformers, whatever is cut and how."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_tokenization import TEXTS, long_texts
from text_samples import WORDS, bert_tokenizer, roberta_tokenizer, sentence
from tokenizer_samples import SENTENCES, write_python, write_sentencepiece
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sdfast.errors import UserError
from sdfast.modalities.texts import tokenization
from sdfast.modalities.texts.checkpoint import Companions, cut_at, read_tokenizer_files
from sdfast.modalities.texts.tokenization import Tokenizer, load_tokenizer
from sdfast.modalities.texts.vocabulary import folder_of, with_tokens
from sdfast.modalities.texts.word_ends import (
    _LLAMA_3,
    AFTER_A_WORD,
    SPACE_AFTER_A_WORD,
    SPACE_BETWEEN,
    word_begins,
    word_ends,
)

KINDS = ["xlm-roberta", "camembert", "PhobertTokenizer", "BertweetTokenizer"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    found = {name: write_python(root / name, name) for name in KINDS[2:]}
    if all(importlib.util.find_spec(name) for name in ("sentencepiece", "google.protobuf")):
        found |= {kind: write_sentencepiece(root / kind, kind) for kind in KINDS[:2]}
    return found


def given(kind: str, folders: dict[str, Path]) -> Path:
    if kind not in folders:
        pytest.skip("needs sentencepiece and protobuf")
    return folders[kind]


def odd_texts(seed: int) -> list[str]:
    """As `long_texts`, with signs that are drawn together with a blank, or become one."""
    draw = random.Random(seed)
    parts = [*WORDS, "\u0600", "\u0d4e", "\u0301x", "\u0e33", "\u037a", "\ufdfa", "\u1100", "\u3000", "7", "e\u0301"]
    parts += ["<mask>", "</s>", ".", "n't", "\u00ad", "\uff9e", "\u200d", "\u4e2d\u6587"]
    blanks = [" ", " ", " ", "  ", "\n", "\t", " \u0301", "", "\r\n", "\u2028"]
    return [
        "".join(draw.choice(parts) + draw.choice(blanks) for _ in range(draw.randrange(1, 900))).strip()
        for _ in range(12)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers_however_long(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = given(kind, folders)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ in (kind, {"xlm-roberta": "XLMRobertaTokenizer"}.get(kind, "CamembertTokenizer"))
    for name, value in (("_FIRST", 2), ("_PIECE", 90), ("_GROWTH", 2)):
        monkeypatch.setattr(tokenization, name, value)
    ours = load_tokenizer(folder, 12)
    assert ours.in_python == (kind in KINDS[2:])
    texts = [*TEXTS, *long_texts(3)[:12], *odd_texts(5), *SENTENCES[:3]]
    for one, text in zip(ours(texts, whole=True), texts, strict=True):
        whole = theirs(text)["input_ids"]
        assert one is not None and one.ids.tolist() == theirs(text, truncation=True, max_length=12)["input_ids"]
        assert [*one.ids.tolist()[:-1], *one.rest.tolist(), one.ids[-1]] == whole and not one.unread
        assert one.truncated == (len(whole) > 12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_document_is_tokenised_in_parts(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_tokenizer(given(kind, folders), 12)
    monkeypatch.setattr(tokenization, "_PIECE", 90)
    seen, encode = list[int](), ours._backend.encode
    monkeypatch.setattr(ours._backend, "encode", lambda texts: (seen.extend(map(len, texts)), encode(texts))[1])
    (found,) = ours([sentence(3, 4000)], whole=True)
    assert found is not None and len(found.rest) > 4000 and max(seen) <= max(90, 10 * 32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_carried_along(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = given(kind, folders)
    files = read_tokenizer_files(folder)
    assert sorted(files) == sorted({each.name for each in folder.iterdir()} - {"config.json"})
    trained = load_tokenizer(folder, 12)
    shutil.copy(folder / "config.json", tmp_path)
    for name, content in cut_at(files, 12).items():
        (tmp_path / name).write_bytes(content)
    theirs, texts = AutoTokenizer.from_pretrained(tmp_path), [*SENTENCES[:3], *odd_texts(9)[:3]]
    assert theirs(texts, truncation=True)["input_ids"] == [one.ids.tolist() for one in trained(texts) if one]
    assert load_tokenizer(tmp_path, 12).tokenization == trained.tokenization


@pytest.mark.parametrize("name", KINDS[2:])
def test_what_a_tokenizer_of_python_says(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    how = load_tokenizer(folders[name], 20).tokenization
    pieces = len((folders[name] / "vocab.txt").read_text().splitlines())
    assert (how.prefix, how.suffix, how.pad_id) == ((0,), (2,), 1)
    assert (how.mask_id, how.vocabulary, how.special_ids) == (4 + pieces, 5 + pieces, (0, 1, 2, 3, 4 + pieces))
    digests = {how.tokenizer}
    for number, change in enumerate(("vocab.txt", "bpe.codes", "tokenizer_config.json", "config.json")):
        shutil.copytree(folders[name], tmp_path / str(number))
        path = tmp_path / str(number) / change
        if change.endswith("json"):
            other = {"tokenizer_class": next(each for each in KINDS[2:] if each != name)}
            told = {"unk_token": "w"} if change.startswith("tokenizer") else {"model_type": "roberta", **other}
            path.write_text(json.dumps(told))
        else:
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        digests.add(load_tokenizer(tmp_path / str(number), 20).tokenization.tokenizer)
    assert len(digests) == 5


def test_a_text_that_is_normalised_first_is_tokenised_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    """BERTweet on request: an address or a smiley is one sign, also with a blank inside."""
    shutil.copytree(folders["BertweetTokenizer"], tmp_path / "x")
    (tmp_path / "x" / "tokenizer_config.json").write_text('{"normalization": true}')
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "x"), load_tokenizer(tmp_path / "x", 24)
    assert ours._ends is None and load_tokenizer(folders["BertweetTokenizer"])._ends is SPACE_AFTER_A_WORD
    texts = [f"{sentence(4, 300)} @someone http://x.org we cannot p . m . {sentence(5, 300)}", "we don't, @you"]
    for one, ids in zip(ours(texts), theirs(texts, truncation=True, max_length=24)["input_ids"], strict=True):
        assert one is not None and one.ids.tolist() == ids
    assert ours.tokenization.tokenizer != load_tokenizer(folders["BertweetTokenizer"]).tokenization.tokenizer


def test_threads_share_a_tokenizer_of_python(folders: dict[str, Path]) -> None:
    ours, texts = load_tokenizer(folders["PhobertTokenizer"], 30), [sentence(number, 9) for number in range(60)]
    alone = [one.ids.tolist() for one in load_tokenizer(folders["PhobertTokenizer"], 30)(texts) if one]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: ours([text])[0], texts))
    assert [one.ids.tolist() for one in together if one] == alone


@pytest.mark.parametrize("kind", [*KINDS, "bert", "roberta"])
def test_tokens_are_added(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Behind what the tokenizer has, and met as whole words; other texts have the ids that they had."""
    if kind in ("bert", "roberta"):
        folder = tmp_path / kind
        (bert_tokenizer if kind == "bert" else roberta_tokenizer)(SENTENCES, 400).save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    else:
        folder = given(kind, folders)
    config = json.loads((folder / "config.json").read_text())
    files, before = read_tokenizer_files(folder), load_tokenizer(folder, 60)
    grown = with_tokens(Companions(config, files), ["covid", "[DRUG]"])
    assert {name: grown.tokenizer[name] for name in files if "token" not in name} == {
        name: content for name, content in files.items() if "token" not in name
    }
    for name, content in {**cut_at(grown.tokenizer, 60), "config.json": json.dumps(config).encode()}.items():
        (tmp_path / name).write_bytes(content)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path, 60)
    count = before.tokenization.vocabulary
    assert theirs.convert_tokens_to_ids(["covid", "[DRUG]"]) == [count, count + 1]
    assert ours.own_words == before.own_words and ours.tokenization.special_ids == before.tokenization.special_ids
    with folder_of(grown) as own:
        assert load_tokenizer(own, 60).tokenization == ours.tokenization != before.tokenization
    texts = [*SENTENCES[:5], "the covid cell", "covids and xcovid", "covid", "cell[DRUG]binds", "a [DRUG] b"]
    assert [one.ids.tolist() for one in ours(texts) if one] == theirs(texts, truncation=True)["input_ids"]
    assert [one.ids.tolist() for one in ours(texts[:5]) if one] == [o.ids.tolist() for o in before(texts[:5]) if o]
    found = [[number >= count for number in one.ids.tolist()].count(True) for one in ours(texts) if one]
    assert found == [0, 0, 0, 0, 0, 1, 0, 1, 1, 1]
    assert ours.has_word("covid") and ours.has_word("[DRUG]") and not before.has_word("covid")
    assert before.has_word("the") and not before.has_word("\u4e2d")  # with the sign of a space, and unknown
    alone, more = (each(["the cell", "the covid cell"]) for each in (before, ours))
    assert more[1] and alone[0] and len(more[1].ids) == len(alone[0].ids) + 1


def test_sentencepiece_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"x")
    monkeypatch.setattr(tokenization, "_SENTENCEPIECE", {"no_such.module": "first", "no_such": "second", "json": "x"})
    with pytest.raises(
        UserError, match=r"a model of sentencepiece \(sentencepiece.bpe.model\).*`pip install first sec"
    ):
        load_tokenizer(tmp_path)


def test_what_is_known_of_a_tokenizers_blanks() -> None:
    content = json.loads(roberta_tokenizer().backend_tokenizer.to_str())
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    words = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}
    runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    quotes = {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}

    def of(**change: Any) -> Any:
        changed = {**content, **change}
        return word_ends(changed), word_begins(changed)

    def steps(*normalizers: dict[str, Any]) -> dict[str, Any]:
        return {"type": "Sequence", "normalizers": list(normalizers)}

    assert of() == of(pre_tokenizer=words) == (AFTER_A_WORD, SPACE_AFTER_A_WORD)
    for strict in (
        of(pre_tokenizer=metaspace),
        of(pre_tokenizer=words, normalizer=steps(runs, {"type": "NFKC"}, quotes)),
        of(pre_tokenizer=metaspace, normalizer=steps(runs, {"type": "NFC"})),
        of(normalizer={"type": "Strip", "strip_left": False, "strip_right": True}),
        of(added_tokens=[{"content": "   "}]),
    ):
        assert strict == (SPACE_BETWEEN, SPACE_BETWEEN)
    for whole in (
        of(pre_tokenizer=metaspace, normalizer=steps(runs, {"type": "NFKC"})),
        of(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
        of(normalizer={**runs, "content": "\u2581"}),
        of(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}),
        of(normalizer={"type": "Nmt"}),
        of(added_tokens=[{"content": "a "}]),
    ):
        assert whole == (None, None)
    assert of(pre_tokenizer={**metaspace, "prepend_scheme": "first"}) == (SPACE_BETWEEN, None)


def test_places_between_words() -> None:
    text = "a b\u0600 c \u0301d e\u0d4e f\u0e01 \u0e33 g  h.\u4e2d \u6587i \uff9e(j k) 7 _"
    found = [match.start() for match in SPACE_BETWEEN.finditer(text)]
    assert [text[max(0, place - 1) : place + 2] for place in found] == [
        *("a b", "d e", "\u0e33 g", "\u4e2d \u6587", "j k", ") 7", "7 _")
    ]


def test_the_pattern_of_llama_3(monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(roberta_tokenizer(SENTENCES).backend_tokenizer.to_str())
    split = {"type": "Split", "pattern": {"Regex": _LLAMA_3}, "behavior": "Isolated", "invert": False}
    parts = [split, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    theirs = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(json.dumps(content)), unk_token="<unk>")
    for name, value in (("_FIRST", 2), ("_PIECE", 90), ("_GROWTH", 2)):
        monkeypatch.setattr(tokenization, name, value)
    ours, texts = Tokenizer(theirs, 12), [*long_texts(3)[:12], *odd_texts(5)]
    assert ours._ends is ours._begins is SPACE_BETWEEN
    for one, text in zip(ours(texts, whole=True), texts, strict=True):
        whole = theirs(text, add_special_tokens=False)["input_ids"]
        assert one is not None and [*one.ids.tolist()[1:-1], *one.rest.tolist()] == whole
