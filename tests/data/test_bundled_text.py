"""The bundled texts and tokenizer: what the recipes promise of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdfast.bundled import model_folder, text_folder
from sdfast.data.config import DataConfig
from sdfast.modalities.texts.pack import TextPack
from sdfast.modalities.texts.tokenization import load_tokenizer


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> TextPack:
    tokenizer = load_tokenizer(model_folder("bundled-text"))
    where = tmp_path_factory.mktemp("bundled") / "pack"
    return TextPack.prepare(str(text_folder()), where, tokenizer, DataConfig(), pytest.fail)


def test_classes_are_balanced_and_no_document_is_twice(pack: TextPack) -> None:
    counts = {split: set(part["classes"].values()) for split, part in pack.manifest["splits"].items()}
    assert counts == {"train": {200}, "test": {100}} and pack.class_names is not None and len(pack.class_names) == 10
    digests = np.concatenate([split.digests for split in pack.splits.values()])
    assert len({digest.tobytes() for digest in digests}) == 3000


def test_the_tokenizer_knows_the_words_and_ends_of_a_document(pack: TextPack) -> None:
    how = pack.tokenization
    assert how.vocabulary == 8000 and how.max_length == 128 and how.mask_id == 4
    unknown = sum(int(np.sum(split.ids == 1)) for split in pack.splits.values())
    assert unknown < 30 and all(part["truncated"] == 0 for part in pack.manifest["splits"].values())
    train = pack.split("train")
    assert set(train.ids[train.offsets[:-1]]) == {2} and set(train.ids[train.offsets[1:] - 1]) == {3}
    assert 12 < train.lengths.mean() < 40


def test_the_licence_is_there() -> None:
    assert "Princeton" in (text_folder() / "LICENSE").read_text()
    assert sum(path.stat().st_size for path in Path(text_folder()).iterdir()) < 200_000
