"""Documents of test that nearly equal one of train, against sets of runs of three tokens by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from text_samples import WORDS, bert_tokenizer, write_json_lines

from sdfast import bundled
from sdfast.data.config import DataConfig
from sdfast.modalities.texts.near import ALIKE, FEWEST, Sketches, nearest, sketches
from sdfast.modalities.texts.pack import TextPack
from sdfast.modalities.texts.tokenization import load_tokenizer

Document = NDArray[np.int32]


def runs(document: Document) -> set[tuple[int, ...]]:
    return {tuple(document[at : at + 3].tolist()) for at in range(len(document) - 2)}


def jaccard(one: Document, other: Document) -> float:
    return len(runs(one) & runs(other)) / max(len(runs(one) | runs(other)), 1)


def sketched(documents: list[Document], before: int = 0, behind: int = 0) -> Sketches:
    ids = np.concatenate([np.zeros(0, np.int32), *documents])
    return sketches(ids, np.cumsum([0, *map(len, documents)]), before, behind)


def changed(documents: list[Document], random: np.random.Generator) -> list[Document]:
    """Up to a tenth of the tokens are others."""
    found = []
    for document in documents:
        copy = document.copy()
        places = random.choice(len(copy), int(len(copy) * random.uniform(0, 0.1)), replace=False)
        copy[places] = random.integers(0, 2000, len(places))
        found.append(copy)
    return found


def test_short_documents_are_told_exactly() -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(0, 2000, random.integers(10, 60)).astype(np.int32) for _ in range(300)]
    others = changed(documents[:150], random)
    found = {other: row for row, other in nearest(sketched(documents), sketched(others))}
    wanted = {
        row for row in range(150) if jaccard(documents[row], others[row]) >= ALIKE and len(runs(others[row])) >= FEWEST
    }
    assert found.keys() <= wanted and all(row == other for other, row in found.items())
    assert len(found) >= 0.97 * len(wanted) and len(wanted) > 50


def test_long_documents_are_told_nearly() -> None:
    random = np.random.default_rng(1)
    documents = [random.integers(0, 2000, random.integers(150, 400)).astype(np.int32) for _ in range(120)]
    others = changed(documents[:60], random)
    found = {other: row for row, other in nearest(sketched(documents), sketched(others))}
    likeness = [jaccard(documents[row], others[row]) for row in range(60)]
    assert all(found.get(row) == row for row in range(60) if likeness[row] > ALIKE + 0.15)
    assert not [row for row in found if likeness[row] < ALIKE - 0.15]


def test_short_ones_and_special_tokens_do_not_count() -> None:
    short = [np.arange(FEWEST + 1, dtype=np.int32)]
    assert nearest(sketched(short), sketched(short)) == []
    just = [np.arange(FEWEST + 2, dtype=np.int32)]
    assert nearest(sketched(just), sketched(just)) == [(0, 0)]
    assert nearest(sketched(just, 1, 1), sketched(just, 1, 1)) == []
    assert nearest(sketched([]), sketched(just)) == nearest(sketched(just), sketched([])) == []


def test_nothing_of_the_bundled_texts_is_near() -> None:
    tokenizer = load_tokenizer(bundled.model_folder("bundled-text"), 128)
    both = []
    for split in ("train", "test"):
        path = Path(bundled.__file__).parent / f"wordnet-glosses/{split}.jsonl.gz"
        texts = [json.loads(line)["text"] for line in gzip.decompress(path.read_bytes()).splitlines()]
        both.append(sketched([np.asarray(each.ids, np.int32) for each in tokenizer(texts, False) if each], 1, 1))
    assert nearest(*both) == [] and len(nearest(*both, alike=0.5)) >= 1  # "the tongue (the brain) of a calf ..."


def test_a_pack_of_texts_says_how_many(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, 25)) for _ in range(30)]
    near = [texts[3] + " this", texts[7].upper() + " !", " ".join(texts[9].split()[2:])]
    rows = [{"text": text, "label": "ab"[row % 2]} for row, text in enumerate(texts)]
    folder = tmp_path / "texts"
    write_json_lines(folder / "train.jsonl", rows[:20])
    write_json_lines(folder / "test.jsonl", rows[20:] + [{"text": text, "label": "a"} for text in near])
    bert_tokenizer().save_pretrained(tmp_path / "model")
    how = load_tokenizer(tmp_path / "model", 64)
    pack = TextPack.prepare(str(folder), tmp_path / "pack", how, DataConfig(), lambda sentence: None)
    (said,) = (warning for warning in pack.warnings if "nearly equal" in warning)
    assert said.startswith(
        "Documents of test that nearly equal one of train (at least 70 % of the runs of three tokens of either are in "
        "both): 3 of 13 (the first: train.jsonl:4 (train) and test.jsonl:11 (test))."
    )
    assert pack.manifest["duplicates"]["near"] == {"train, test": 3}
