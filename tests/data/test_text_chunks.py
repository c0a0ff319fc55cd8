"""Long documents as several rows: what the tokenizer gives for the whole document is in them, and nothing else is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tokenization import long_texts
from text_samples import bert_tokenizer, roberta_tokenizer, sentence, write_json_lines

from sdfast.data.config import DataConfig
from sdfast.durable import read_json, sealed, write_json
from sdfast.errors import UserError
from sdfast.modalities.texts import tokenization
from sdfast.modalities.texts.chunks import TextChunks, rows_of_documents
from sdfast.modalities.texts.pack import TextPack, ids_digest
from sdfast.modalities.texts.tokenization import Tokenizer
from sdfast.modalities.texts.word_ends import word_begins

SENTENCES = [sentence(number) for number in range(50)]
RAW = {"bert": bert_tokenizer(SENTENCES), "roberta": roberta_tokenizer(SENTENCES)}
LONGEST = 20
TEXTS = [sentence(number, 1 + number * 7 % 90) for number in range(60)]
Build = Callable[..., TextPack]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """The pack of some texts of train and test, in <tmp>/pack; the sentences go to `.said`, a list on the function."""

    def prepare(texts: list[str] = TEXTS, kind: str = "bert", test: int = 2, **options: Any) -> TextPack:
        write_json_lines(tmp_path / "texts" / "train.jsonl", [{"text": text} for text in texts])
        if test:
            rows = [{"text": sentence(9_000 + number, 80)} for number in range(test)]
            write_json_lines(tmp_path / "texts" / "test.jsonl", rows)
        said.clear()
        tokenizer = Tokenizer(RAW[kind], LONGEST)
        return TextPack.prepare(
            str(tmp_path / "texts"), tmp_path / "pack", tokenizer, DataConfig(**options), said.append
        )

    said: list[str] = []
    prepare.said = said  # type: ignore[attr-defined]
    return prepare


def view_of(pack: TextPack, stride: int = 0, chunk: bool | None = None, **options: Any) -> Any:
    options |= {"chunk": chunk, "chunk_stride": stride}
    return rows_of_documents(pack.split("train"), pack.tokenization, DataConfig(**options))


def rows_in(view: Any) -> list[list[int]]:
    ids, lengths = view.tokens(torch.arange(len(view)))
    return [row.tolist() for row in ids.split(lengths.tolist())]


@pytest.mark.parametrize("stride", [0, 1, 7, 17])
@pytest.mark.parametrize("kind", RAW)
def test_chunks_without_what_they_share_are_the_document(kind: str, stride: int, build: Build) -> None:
    view, raw = view_of(build(kind=kind), stride), RAW[kind]
    assert isinstance(view, TextChunks)
    rows = rows_in(view)
    of = {document: [rows[row] for row in np.flatnonzero(view.document == document)] for document in range(len(TEXTS))}
    assert sum(map(len, of.values())) == len(view) == len(rows) > 2 * len(TEXTS)
    for document, text in enumerate(TEXTS):
        whole, chunks = raw(text, add_special_tokens=False)["input_ids"], of[document]
        assert all((row[0], row[-1]) == (raw.cls_token_id, raw.sep_token_id) for row in chunks)
        bare = [row[1:-1] for row in chunks]
        assert bare[0] + [id for row in bare[1:] for id in row[stride:]] == whole
        assert all(before[len(before) - stride :] == row[:stride] for before, row in itertools.pairwise(bare))
        sizes = {len(row) for row in chunks}
        assert max(sizes) <= LONGEST and max(sizes) - min(sizes) <= 1
        options = {"truncation": True, "max_length": LONGEST, "stride": stride, "return_overflowing_tokens": True}
        assert len(chunks) == len(raw(text, **options)["input_ids"])  # as few as transformers makes
    assert view.lengths.tolist() == [len(row) for row in rows]
    assert [digest.tobytes() for digest in view.digests] == [ids_digest(np.array(row, np.int32)) for row in rows]


def test_some_rows_in_any_order(build: Build) -> None:
    view = view_of(build(), 3)
    rows = rows_in(view)
    ids, lengths = view.tokens(torch.tensor([9, 2, 9, len(view) - 1]))
    assert ids.tolist() == rows[9] + rows[2] + rows[9] + rows[-1] and ids.dtype == lengths.dtype == torch.int64
    assert [len(part) for part in view.tokens(torch.tensor([], dtype=torch.int64))] == [0, 0]


def test_a_limit_counts_documents(build: Build) -> None:
    pack = build()
    view, train = view_of(pack), pack.split("train")
    documents = train.limited(13, 5)
    assert view.limited(13, 5).tolist() == [row for row in range(len(view)) if view.document[row] in documents]
    assert view.limited(None, 5).tolist() == list(range(len(view)))


def test_too_much_in_common(build: Build) -> None:
    with pytest.raises(UserError, match=r"data.chunk_stride=18 is too much: a chunk has 18 tokens beside the special"):
        view_of(build(), 18)


@pytest.mark.parametrize("kind", ["bert", "roberta", "prefix"])
def test_a_document_in_pieces_has_the_ids_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = RAW["roberta" if kind == "prefix" else kind]
    if kind == "prefix":
        content = json.loads(raw.backend_tokenizer.to_str())
        content["pre_tokenizer"]["add_prefix_space"] = True
        raw = type(raw)(tokenizer_object=type(raw.backend_tokenizer).from_str(json.dumps(content)))
    for name, value in (("_FIRST", 2), ("_PIECE", 90), ("_GROWTH", 2)):
        monkeypatch.setattr(tokenization, name, value)
    ours, texts = Tokenizer(raw, 12), long_texts(5)
    special = len(ours.tokenization.prefix) + len(ours.tokenization.suffix)
    rests = 0
    for one, text in zip(ours(texts, whole=True), texts, strict=True):
        whole = raw(text, add_special_tokens=False)["input_ids"]
        assert one is not None and one.rest.tolist() == whole[12 - special :] and not one.unread
        rests += len(one.rest) > 0
    assert rests > 30
    assert all(one is not None and not len(one.rest) for one in ours(texts))


def test_a_tokenizer_that_knows_the_beginning_of_a_text_gets_it_whole() -> None:
    content = json.loads(RAW["roberta"].backend_tokenizer.to_str())
    assert word_begins(content) and word_begins(json.loads(RAW["bert"].backend_tokenizer.to_str()))
    first = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": False}
    sequence = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, first]}
    assert not word_begins({**content, "pre_tokenizer": sequence})
    assert not word_begins({**content, "added_tokens": [{"content": "<x>", "rstrip": True}]})


def test_an_end_that_is_no_text_is_counted(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "LONGEST", 4000)
    monkeypatch.setattr(tokenization, "_PIECE", 1000)
    text = sentence(3, 600)
    pack = build([f"{text} {'x' * 9000} more", sentence(5)])
    whole = RAW["bert"](text, add_special_tokens=False)["input_ids"]
    kept = [id for row in rows_in(view_of(pack))[:-1] for id in row[1:-1]]
    assert kept == whole
    assert (
        pack.warnings[1] == "Documents of which the end is not read, as no word ends in it for long: 1 (train.jsonl:1)."
    )


# Short documents joined.


def joined_by_hand(texts: list[str], kind: str, wanted: list[int]) -> list[list[int]]:
    """Rows of the short documents that are wanted, one after the other, from what transformers gives for each."""
    raw, rows = RAW[kind], list[list[int]]()
    for number, text in enumerate(texts):
        ids = raw(text)["input_ids"]
        if number not in wanted or len(ids) > LONGEST:
            continue
        if rows and len(rows[-1]) + len(ids) - 1 <= LONGEST:
            rows[-1] += ids[1:]  # without another token of a beginning
        else:
            rows.append(ids)
    return rows


@pytest.mark.parametrize("limit", [None, 25])
@pytest.mark.parametrize("kind", RAW)
def test_short_documents_are_joined(kind: str, limit: int | None, build: Build) -> None:
    texts = [sentence(number, 1 + number * 3 % 11) for number in range(50)] + TEXTS[:10]
    pack = build(texts, kind=kind)
    wanted = pack.split("train").limited(limit, 42).tolist()
    view, plain = view_of(pack, 3, limit=limit, pack_short=True), view_of(pack, 3)
    chosen = view.limited(limit, 42)
    rows = [rows_in(view)[row] for row in chosen]
    joined, whole = joined_by_hand(texts, kind, wanted), RAW[kind](texts)["input_ids"]
    assert max(map(len, joined)) <= LONGEST and len(joined) < 0.8 * len(wanted)
    chunks = [row for row in (rows_in(plain)[row] for row in plain.limited(limit, 42)) if row not in whole]
    assert len(chunks) > 3 and sorted(rows) == sorted(joined + chunks)
    assert view.lengths[chosen].tolist() == [len(row) for row in rows]
    digests = [ids_digest(np.array(row, np.int32)) for row in rows]
    assert [digest.tobytes() for digest in view.digests[chosen]] == digests
    assert view is view_of(pack, 3, limit=limit, pack_short=True) is not plain


def test_joined_documents_of_a_pack_without_rests(build: Build) -> None:
    """Long ones are rows of their own, cut."""
    pack = build(chunk=False)
    view = view_of(pack, chunk=False, pack_short=True)
    cut = RAW["bert"](TEXTS, truncation=True, max_length=LONGEST)["input_ids"]
    long = [ids for ids, text in zip(cut, TEXTS, strict=True) if len(RAW["bert"](text)["input_ids"]) > LONGEST]
    assert len(view) < len(TEXTS)
    assert {tuple(ids) for ids in long} <= {tuple(row) for row in rows_in(view)}


# What lies on the disk.


def of_length(said: list[str]) -> list[str]:
    """All sentences but those about documents that nearly equal others, as sentences of few words do."""
    return [sentence for sentence in said if "nearly equal" not in sentence]


def test_the_classifier_sees_what_it_saw(build: Build, tmp_path: Path) -> None:
    """A pack with the rests has the files of one without, and two more; what is cut is said in one sentence each."""
    cut = build(chunk=False)
    files = {path.name: path.read_bytes() for path in cut.directory.iterdir() if path.name != "manifest.json"}
    long = [line for line, text in enumerate(TEXTS, 1) if len(RAW["bert"](text)["input_ids"]) > LONGEST]
    names = f"{len(long) + 2} (test.jsonl:1, test.jsonl:2, train.jsonl:{long[0]} and {len(long) - 1} more)"
    assert of_length(cut.warnings) == [
        f"Documents of more than 20 tokens, of which the first 20 are kept (data.max_length): {names}."
    ]
    assert view_of(cut) is cut.split("train")
    whole = build(chunk=True)
    more = {path.name: path.read_bytes() for path in whole.directory.iterdir() if path.name != "manifest.json"}
    assert more.keys() - files.keys() == {"train-rest.npy", "train-rest-offsets.npy"} and more.items() >= files.items()
    assert whole.fingerprint != cut.fingerprint and whole.tokenization == cut.tokenization
    assert of_length(build.said) == [  # type: ignore[attr-defined]
        f"Documents of more than 20 tokens (data.max_length): {names}; those of train become several rows of pretrain "
        "and distill (data.chunk), and fine-tuning and evaluation see the first 20 tokens."
    ]
    assert view_of(whole, chunk=False) is whole.split("train") and view_of(whole) is view_of(whole)


def made_at(pack: TextPack) -> int:
    return (pack.directory / "manifest.json").stat().st_mtime_ns


def test_a_pack_of_before_is_kept_until_chunks_are_asked_for(build: Build) -> None:
    before = build(chunk=False)
    assert "rests" not in before.manifest and list(before.manifest["splits"]["train"]["files"]) == [
        *("ids", "offsets", "text_digests", "digests", "names")
    ]
    made = made_at(before)
    again = build()
    assert made_at(again) == made and again.split("train").rest is None
    asked = build(chunk=True)
    assert made_at(asked) != made and asked.split("train").rest is not None
    made = made_at(asked)
    assert {made_at(build(chunk=chunk)) for chunk in (None, False, True)} == {made}


def test_without_long_documents_nothing_is_new(build: Build) -> None:
    short = [sentence(number, 3) for number in range(20)]
    cut = build(short, test=0, chunk=False)
    made = made_at(cut)
    assert {made_at(build(short, test=0, chunk=chunk)) for chunk in (None, True)} == {made}
    before = cut.manifest
    write_json(cut.directory / "manifest.json", sealed({"other": 1}))
    new = build(short, test=0, chunk=True)
    assert new.manifest == before == read_json(new.directory / "manifest.json")
    assert view_of(new, chunk=True) is new.split("train")


def test_rests_stay_with_their_documents_where_some_are_held_out(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "x.jsonl", [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS)])
    tokenizer = Tokenizer(RAW["roberta"], LONGEST)
    pack = TextPack.prepare(str(path), tmp_path / "pack", tokenizer, DataConfig(), lambda said: None)
    train, view = pack.split("train"), view_of(pack)
    assert len(train) + len(pack.split("test")) == len(TEXTS) and len(pack.split("test")) > 10
    rows = rows_in(view)
    for document, name in enumerate(train.names):
        kept = [id for row in np.flatnonzero(view.document == document) for id in rows[row][1:-1]]
        assert kept == RAW["roberta"](TEXTS[int(name.split(":")[1]) - 1], add_special_tokens=False)["input_ids"]
    assert "rest" not in pack.manifest["splits"]["test"]["files"]
    assert TextPack.open(pack.directory).fingerprint == pack.fingerprint


def test_a_damaged_rest_is_noticed(build: Build) -> None:
    path = build().directory / "train-rest.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-rest.npy is missing or differs from its manifest"):
        TextPack.open(path.parent)
