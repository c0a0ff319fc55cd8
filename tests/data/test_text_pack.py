"""The pack of texts: what it holds, when it is built again, what it counts and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from text_samples import bert_tokenizer, records, roberta_tokenizer, sentence, write_json_lines, write_splits

from sdfast.data.config import DataConfig
from sdfast.data.items import Item
from sdfast.errors import UserError
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.texts import pack as text_pack
from sdfast.modalities.texts.pack import TextPack, TextSplit, _blocks, ids_digest
from sdfast.modalities.texts.tokenization import Tokenizer

Build = Callable[..., TextPack]
RAW = roberta_tokenizer([sentence(number) for number in range(50)])
UNCASED = bert_tokenizer([sentence(number) for number in range(50)])
LONGEST = 48
TOKENIZER = Tokenizer(RAW, LONGEST)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Prepares the pack of a source in <tmp>/out/pack; the sentences go to `.said`, a list on the function."""

    def prepare(spec: Path, tokenizer: Tokenizer = TOKENIZER, threads: int | None = None, **options: Any) -> TextPack:
        said.clear()
        where = tmp_path / "out" / "pack"
        return TextPack.prepare(str(spec), where, tokenizer, DataConfig(**options), said.append, threads=threads)

    said: list[str] = []
    prepare.said = said  # type: ignore[attr-defined]
    return prepare


def documents(split: TextSplit) -> list[list[int]]:
    return [split.ids[start:end].tolist() for start, end in zip(split.offsets[:-1], split.offsets[1:], strict=True)]


def texts_of(pack: TextPack, split: str) -> set[str]:
    return {RAW.decode(ids, skip_special_tokens=True) for ids in documents(pack.split(split))}


def test_ids_offsets_labels_and_digests(tmp_path: Path, build: Build) -> None:
    pack = build(write_splits(tmp_path / "mine", 300))
    assert list(pack.splits) == ["train", "val", "test"] and pack.class_names == ["class 0", "class 1"]
    train = pack.split("train")
    expected = RAW([sentence(number) for number in range(300)], truncation=True, max_length=LONGEST)["input_ids"]
    assert documents(train) == expected and len(train) == 300
    assert isinstance(train.ids, np.memmap) and not train.ids.flags.writeable and train.ids.dtype == np.uint16
    assert train.offsets.dtype == np.int64 and train.lengths.tolist() == [len(ids) for ids in expected]
    assert train.labels is not None and train.labels.tolist() == [0, 1] * 150
    assert train.names[:2] == ["train.jsonl:1", "train.jsonl:2"]
    assert train.digests[7].tobytes() == ids_digest(np.array(expected[7], np.int32))
    assert train.text_digests[7].tobytes() == hashlib.sha256(sentence(7).encode()).digest()
    assert pack.tokenization == TOKENIZER.tokenization


def test_tokens_of_rows(tmp_path: Path, build: Build) -> None:
    train = build(write_splits(tmp_path / "mine")).split("train")
    whole = documents(train)
    ids, lengths = train.tokens(torch.tensor([4, 0, 4]))
    assert ids.dtype == lengths.dtype == torch.int64
    assert ids.tolist() == whole[4] + whole[0] + whole[4]
    assert lengths.tolist() == [len(whole[4]), len(whole[0]), len(whole[4])]
    ids, lengths = train.tokens(torch.tensor([], dtype=torch.int64))
    assert ids.shape == lengths.shape == (0,) and ids.dtype == torch.int64


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path, build: Build) -> None:
    large = roberta_tokenizer()
    large.add_tokens([f"word{number}" for number in range(70_000)])
    write_json_lines(tmp_path / "x.jsonl", [{"text": "word69999"}])
    train = build(tmp_path / "x.jsonl", Tokenizer(large)).split("train")
    assert train.ids.dtype == np.int32 and train.ids.max() == len(large) - 1
    assert train.digests[0].tobytes() == ids_digest(train.ids.astype(np.int64))


def test_manifest(tmp_path: Path, build: Build) -> None:
    pack = build(write_splits(tmp_path / "mine"))
    manifest = json.loads((pack.directory / "manifest.json").read_text())
    assert manifest == pack.manifest and manifest["format"] == "text 1"
    assert manifest["source"]["name"] == "mine" and manifest["source"]["kind"] == "jsonl"
    assert manifest["tokenization"]["max_length"] == LONGEST
    part = manifest["splits"]["train"]
    assert part["rows"] == 6 and part["classes"] == {"class 0": 3, "class 1": 3}
    assert part["tokens"] == len(pack.split("train").ids) and part["longest"] == pack.split("train").lengths.max()
    assert str(tmp_path) not in json.dumps(manifest)
    files = {entry["file"] for split in manifest["splits"].values() for entry in split["files"].values()}
    assert files | {"manifest.json"} == {path.name for path in pack.directory.iterdir()}


def test_the_pack_does_not_depend_on_threads_blocks_or_place(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_splits(tmp_path / "mine", 300)
    one = build(tmp_path / "mine", threads=1)
    files = {path.name: path.read_bytes() for path in one.directory.iterdir()}
    shutil.rmtree(one.directory)
    shutil.copytree(tmp_path / "mine", tmp_path / "elsewhere" / "mine")
    monkeypatch.setattr(text_pack, "_BLOCK", 7)
    two = build(tmp_path / "elsewhere" / "mine", threads=3)
    assert {path.name: path.read_bytes() for path in two.directory.iterdir()} == files


# When it is built again.


def test_an_unchanged_source_is_not_tokenised_again(tmp_path: Path, build: Build) -> None:
    source = write_splits(tmp_path / "mine")
    inode = (build(source).directory / "manifest.json").stat().st_ino
    RAW.save_pretrained(tmp_path / "tokenizer")
    from sdfast.modalities.texts.tokenization import load_tokenizer

    again = build(source, load_tokenizer(tmp_path / "tokenizer", LONGEST), limit=3, image_size=7, token_budget=9)
    assert (again.directory / "manifest.json").stat().st_ino == inode


@pytest.mark.parametrize("change", ["text", "label", "length", "tokenizer", "options"])
def test_what_makes_it_be_built_again(tmp_path: Path, build: Build, change: str) -> None:
    source = write_splits(tmp_path / "mine", train=8)
    before = build(source)
    tokenizer, options = TOKENIZER, {}
    if change in ("text", "label"):
        rows = records(8)
        rows[3][change] = "class 0" if change == "label" else "New words."
        write_json_lines(source / "train.jsonl", rows)
    elif change == "length":
        tokenizer = Tokenizer(RAW, 9)
    elif change == "tokenizer":
        tokenizer = Tokenizer(bert_tokenizer(), LONGEST)
    else:
        options = {"test_fraction": 0.5}
    after = build(source, tokenizer, **options)
    assert after.manifest != before.manifest
    assert (after.fingerprint == before.fingerprint) == (change == "options")


def test_names_and_places_are_not_in_the_fingerprint(tmp_path: Path, build: Build) -> None:
    one = build(write_splits(tmp_path / "mine")).fingerprint
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    assert build(tmp_path / "other").fingerprint == one


# What is counted, and what is too much.


def test_long_documents_are_cut_and_counted(tmp_path: Path, build: Build) -> None:
    source = write_splits(tmp_path / "mine")
    write_json_lines(source / "test.jsonl", [{"text": sentence(90_000 + n, 40), "label": f"class {n}"} for n in (0, 1)])
    pack = build(source)
    assert (
        pack.warnings
        == build.said
        == [  # type: ignore[attr-defined]
            "Documents of more than 48 tokens, of which the first 48 are kept (data.max_length): 2 "
            "(test.jsonl:1, test.jsonl:2)."
        ]
    )
    assert pack.split("test").lengths.tolist() == [48, 48] and all(
        ids[-1] == 2 for ids in documents(pack.split("test"))
    )
    assert [pack.manifest["splits"][split]["truncated"] for split in ("train", "test")] == [0, 2]


def test_empty_documents_are_skipped_and_counted(tmp_path: Path, build: Build) -> None:
    source = write_splits(tmp_path / "mine", train=60)
    with open(source / "train.jsonl", "a") as file:
        file.write('\n{"text": " \\n ", "label": "class 0"}\n{"text": null}\n')
    pack = build(source)
    assert len(pack.split("train")) == 60
    assert pack.warnings == [
        "Skipped 3 of 67 documents, which cannot be used: train.jsonl:61 (empty), train.jsonl:62 (empty), "
        "train.jsonl:63 (empty)."
    ]
    with pytest.raises(UserError) as caught:
        build(source, max_broken=0.04)
    assert str(caught.value) == (
        "mine: 3 of 67 documents cannot be used, more than data.max_broken=0.04 allows; the first is train.jsonl:61: "
        "empty. Repair or remove them, or raise data.max_broken."
    )


def write_news(root: Path, *files: tuple[str, bytes]) -> Path:
    """40 documents of two classes, and these."""
    for number in range(40):
        path = root / "ab"[number % 2] / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(sentence(number))
    for name, content in files:
        (root / name).write_bytes(content)
    return root


def text_digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def test_documents_in_cp1252_are_read_so_and_counted(tmp_path: Path, build: Build) -> None:
    """Each file for itself, by the rule of lines: a folder of many authors is not all in one encoding."""
    texts = {"a/x.txt": "Subject: x\n\nna\xefve", "b/y.txt": "Gr\xf6\xdfe\nplain", "b/z.txt": "caf\xe9 \u20ac\u2013"}
    latin = [(name, text.encode("cp1252") + b"\n") for name, text in texts.items()]
    utf8 = ("b/u.txt", "Gr\xf6\xdfe\nplain \u20ac".encode())
    pack = build(write_news(tmp_path / "news", *latin, utf8, ("b/m.txt", b"\xef\xbb\xbf" + sentence(500).encode())))
    assert (
        "Documents that are not UTF-8 and are read as cp1252 (if that is wrong, name the right encoding by "
        "data.encoding): 3 (a/x.txt, b/y.txt, b/z.txt)." in pack.warnings
    )
    assert not any("Skipped" in sentence for sentence in pack.warnings)
    assert pack.manifest["conversions"]["cp1252"] == 3
    found = {bytes(digest) for split in pack.splits.values() for digest in split.text_digests}
    by_hand = [content.decode("cp1252").strip() for _, content in latin]
    assert {text_digest(text) for text in (*by_hand, utf8[1].decode(), sentence(500))} <= found
    assert build(tmp_path / "news").fingerprint == pack.fingerprint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Gr\xf6\xdfe\n".encode() + b"na\xefve\n", "not UTF-8 (line 2)"),  # two encodings in one file
        (b"na\xefve\n" + "Gr\xf6\xdfe\n".encode(), "not UTF-8 (line 1)"),
        (b"\xef\xbb\xbfna\xefve", "not UTF-8"),  # its mark says otherwise
        ("\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440".encode("cp1251"), "not UTF-8"),
        ("\u3053\u3093\u306b\u3061\u306f".encode("cp932"), "not UTF-8"),
        (b"caf\xe9 \x00\x01", "not UTF-8"),
        (b"caf\xe9 \x81", "not UTF-8"),  # cp1252 has no such letter
    ],
)
def test_documents_that_are_not_surely_cp1252_are_skipped(
    tmp_path: Path, build: Build, content: bytes, reason: str
) -> None:
    pack = build(write_news(tmp_path / "news", ("a/x.txt", content)), test_fraction=0)
    assert pack.warnings == [f"Skipped 1 of 41 documents, which cannot be used: a/x.txt ({reason})."]


def test_documents_in_another_encoding(tmp_path: Path, build: Build) -> None:
    root = tmp_path / "news"
    (root / "a").mkdir(parents=True)
    text = "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440:"
    for number in range(9):
        (root / "a" / f"{number}.txt").write_bytes(f"{text} {sentence(number)}".encode("cp1251"))
    with pytest.raises(UserError) as caught:
        build(root)
    assert str(caught.value) == (
        "news: 9 of 9 documents cannot be used, more than data.max_broken=0.05 allows; the first is a/0.txt: not "
        f"UTF-8. In cp1251 it reads '{text} The the'; if that is right, set data.encoding=cp1251, else the "
        "one it was saved in. Repair or remove them, or raise data.max_broken."
    )
    digests = build(root, encoding="cp1251", test_fraction=0).split("train").text_digests
    assert digests[0].tobytes() == text_digest(f"{text} {sentence(0)}")
    for number in range(9):
        (root / "a" / f"{number}.txt").write_bytes(f"{text} {sentence(number)}".encode("utf-16"))
    assert build(root, test_fraction=0).split("train").text_digests.tolist() == digests.tolist()
    for number in range(9):
        (root / "a" / f"{number}.txt").write_bytes(sentence(number).encode("utf-16-le"))
    with pytest.raises(UserError, match=r"cannot be read \(it looks like utf-16-le; set data.encoding=utf-16-le\)"):
        build(root)


def test_a_pack_of_tar_shards_is_that_of_json_lines(tmp_path: Path, build: Build) -> None:
    rows = [(f"{number:03d}", sentence(number), number % 2) for number in range(12)]
    write_json_lines(tmp_path / "x.jsonl", [{"text": text, "label": label} for _, text, label in rows])
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for key, text, label in rows:
            writer.write({"__key__": key, "txt": text, "cls": label})
    shards = build(tmp_path / "x.tar")
    lines = build(tmp_path / "x.jsonl")
    assert shards.fingerprint == lines.fingerprint and shards.class_names == ["0", "1"]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for key, text, label in rows:
            for kind, content in (("txt", f"caf\xe9 {text}".encode("cp1252")), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    digests = build(tmp_path / "x.tar", test_fraction=0).split("train").text_digests
    assert [bytes(digest) for digest in digests] == [text_digest(f"caf\xe9 {text}") for _, text, _ in rows]
    assert build(tmp_path / "x.tar", test_fraction=0, encoding="cp1252").split("train").text_digests.tolist() == (
        digests.tolist()
    )


def test_a_document_that_is_no_text_is_counted(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdfast.modalities.texts.tokenization.LONGEST", 20_000)
    write_json_lines(tmp_path / "x.jsonl", [{"text": "x" * 20_001}, {"text": f"{'long ' * 9000}"}, {"text": "fine"}])
    pack = build(tmp_path / "x.jsonl", max_broken=1)
    assert "Skipped 1 of 3 documents, which cannot be used: x.jsonl:1 (no text in its first" in pack.warnings[0]
    assert "1 (x.jsonl:2)" in pack.warnings[1] and len(pack.split("train").lengths) == 2


def test_a_flood_of_blank_lines_ends_early(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdfast.modalities.texts.pack.TextPackBuilder.flood", 200)
    (tmp_path / "x.txt").write_text("fine\n" + "\n" * 9_999)
    with pytest.raises(UserError, match=r"x.txt: 767 of 10,000 documents cannot be used"):  # 6 blocks of 128
        build(tmp_path / "x.txt")


def test_few_characters_are_in_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdfast.modalities.texts.pack._HELD", 100)
    held = [10] * 300 + [500, 99, 1, 0]
    items = [Item(str(row), None, bytes, held=characters) for row, characters in enumerate(held)]
    blocks = list(_blocks(items))
    assert [item for block in blocks for item in block] == items
    assert [len(block) for block in blocks] == [10] * 30 + [1, 2, 1]


def test_half_a_surrogate_pair_is_not_utf_8(tmp_path: Path, build: Build) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a \\ud800 b"}\n' + '{"text": "fine"}\n')
    assert "x.jsonl:1 (not UTF-8)" in build(tmp_path / "x.jsonl", max_broken=1).warnings[0]


def test_documents_without_any_token(tmp_path: Path, build: Build) -> None:
    write_json_lines(tmp_path / "x.jsonl", [{"text": "\u200b\u00ad"}, {"text": "fine"}])
    pack = build(tmp_path / "x.jsonl", Tokenizer(bert_tokenizer()), max_broken=1)
    assert pack.warnings == ["Skipped 1 of 2 documents, which cannot be used: x.jsonl:1 (without any token)."]


def test_a_split_without_a_usable_document(tmp_path: Path, build: Build) -> None:
    source = write_splits(tmp_path / "mine", train=40)
    (source / "test.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"mine: no document of test is left: test.jsonl:1 is empty\."):
        build(source)


def test_documents_without_a_label_are_kept_and_counted(tmp_path: Path, build: Build) -> None:
    source = write_splits(tmp_path / "mine")
    write_json_lines(source / "train.jsonl", [*records(6), {"text": "No label."}])
    assert build(source).warnings == [
        "Documents of train without a label, which take no part in fine-tuning: 1 of 7 (train.jsonl:7)."
    ]


def test_many_copies_in_train_are_counted(tmp_path: Path, build: Build) -> None:
    source = write_splits(tmp_path / "mine")
    write_json_lines(source / "train.jsonl", [*records(6), *records(1), *records(2)])
    assert build(source).warnings == [
        "Documents of train that repeat another document of train: 3 of 9; the most frequent one is there 3 times "
        "(train.jsonl:1). Look whether they should differ; else remove the copies, as each counts in training."
    ]


# The same document in train and test.


def share_documents(root: Path) -> Path:
    """Two documents of train are also in test: one as it is, one that is equal where it is cut at 48 tokens."""
    source = write_splits(root)
    rows = [*records(6), {"text": sentence(20_000), "label": "class 0"}, {"text": sentence(7, 50), "label": "class 1"}]
    write_json_lines(source / "train.jsonl", rows)
    write_json_lines(
        source / "test.jsonl", [*records(2, first=20_000), {"text": sentence(7, 50) + " More.", "label": "class 1"}]
    )
    return source


def test_shared_documents_stop_the_build(tmp_path: Path, build: Build) -> None:
    with pytest.raises(UserError) as caught:
        build(share_documents(tmp_path / "mine"))
    assert str(caught.value) == (
        "train.jsonl:7 (train) and test.jsonl:1 (test) are the same document; in all, 2 documents of train are in "
        "test; remove them, or set data.duplicates=drop to leave them out of train or data.duplicates=keep to train on "
        "them."
    )


def test_shared_documents_are_dropped_or_kept(tmp_path: Path, build: Build) -> None:
    source = share_documents(tmp_path / "mine")
    dropped = build(source, duplicates="drop")
    assert len(dropped.split("train")) == 6 and len(dropped.split("test")) == 3
    assert not texts_of(dropped, "train") & texts_of(dropped, "test")
    assert dropped.warnings[1] == (
        "Documents of train that are also in test and were left out of train: 2 (train.jsonl:7, train.jsonl:8)."
    )
    assert len(dropped.manifest["duplicates"]["dropped_from_train"]) == 2
    kept = build(source, duplicates="keep")
    assert len(kept.split("train")) == 8 and kept.warnings[1].startswith("Documents of train that are also in test: 2")


# Held out and limited rows.


def test_held_out_documents_are_the_same_for_every_tokenizer(tmp_path: Path, build: Build) -> None:
    write_json_lines(tmp_path / "x.jsonl", records(40, 4))
    tokenizers = (TOKENIZER, Tokenizer(RAW, 512), Tokenizer(bert_tokenizer([sentence(n) for n in range(40)]), 512))
    packs = [build(tmp_path / "x.jsonl", tokenizer) for tokenizer in tokenizers]
    names = [{split: part.names for split, part in pack.splits.items()} for pack in packs]
    assert names[0] == names[1] == names[2] and len(names[0]["test"]) == 12
    limits = [[pack.split("train").names[row] for row in pack.split("train").limited(9, 1)] for pack in packs]
    assert limits[0] == limits[1] == limits[2] and len(limits[0]) == 9
    assert build.said == [  # type: ignore[attr-defined]
        "x.jsonl has no test split: 12 of 40 documents are held out of train (data.test_fraction=0.25, "
        "data.split_seed=42)."
    ]
    train, test = packs[0].split("train"), packs[0].split("test")
    every = {f"x.jsonl:{number + 1}": number for number in range(40)}
    for part in (train, test):
        expected = RAW([sentence(every[name]) for name in part.names], truncation=True, max_length=LONGEST)["input_ids"]
        assert documents(part) == expected
        assert part.labels is not None and part.labels.tolist() == [every[name] % 4 for name in part.names]
    assert build(tmp_path / "x.jsonl", split_seed=1).split("test").names != test.names


def test_documents_of_equal_ids_stay_on_one_side(tmp_path: Path, build: Build) -> None:
    """Two spellings of each document: other texts, the same ids under an uncased tokenizer."""
    rows = [{"text": text, "label": n % 2} for n in range(20) for text in (sentence(n), sentence(n).upper())]
    write_json_lines(tmp_path / "x.jsonl", rows)
    pack = build(tmp_path / "x.jsonl", Tokenizer(UNCASED))
    train, test = ({digest.tobytes() for digest in pack.split(name).digests} for name in ("train", "test"))
    assert len(pack.split("test")) == 8 and len(test) == 4 and not train & test
    write_json_lines(tmp_path / "x.jsonl", reversed(rows))
    again = build(tmp_path / "x.jsonl", Tokenizer(UNCASED)).split("test")
    assert {digest.tobytes() for digest in again.digests} == test


def test_texts_of_equal_ids_are_other_texts_to_the_fingerprint(tmp_path: Path, build: Build) -> None:
    """As the choice of rows goes by texts, a pack that chooses others is another pack."""
    found = set()
    for text in ("The cell.", "the CELL."):
        write_json_lines(tmp_path / "x.jsonl", [{"text": text}])
        found.add(build(tmp_path / "x.jsonl", Tokenizer(UNCASED)).fingerprint)
    assert len(found) == 2


# What lies at the place of the pack.


@pytest.mark.parametrize(
    "ending", ["ids.npy", "offsets.npy", "labels.npy", "digests.npy", "text-digests.npy", "names.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_pack_is_refused_and_built_again(tmp_path: Path, build: Build, ending: str, damage: str) -> None:
    source = write_splits(tmp_path / "mine")
    pack = build(source)
    path = pack.directory / f"test-{ending}"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(UserError, match=f"test-{ending} is missing or differs from its manifest; delete"):
        TextPack.open(pack.directory)
    again = build(source)
    assert again.fingerprint == pack.fingerprint == TextPack.open(pack.directory).fingerprint
    assert f"test-{ending}" in build.said[0] and "built again" in build.said[0]  # type: ignore[attr-defined]


def test_packs_of_images_and_texts_are_told_apart(tmp_path: Path, build: Build) -> None:
    pack = build(write_splits(tmp_path / "mine"))
    with pytest.raises(UserError, match="is a pack of format text 1, not 1; delete it"):
        ImagePack.open(pack.directory)
    with pytest.raises(UserError, match="holds no pack"):
        TextPack.open(tmp_path / "nothing")


def test_a_directory_with_other_things_is_never_replaced(tmp_path: Path, build: Build) -> None:
    (tmp_path / "out" / "pack").mkdir(parents=True)
    (tmp_path / "out" / "pack" / "train-images.npy").write_text("an image pack's")
    with pytest.raises(UserError, match=r"pack holds 'train-images.npy', which is no part of a pack"):
        build(write_splits(tmp_path / "mine"))
    assert (tmp_path / "out" / "pack" / "train-images.npy").exists()
