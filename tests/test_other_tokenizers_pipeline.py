"""A model with a tokenizer of sentencepiece or of Python alone, from the hub's files to those that are written."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from text_fixtures import FEW_STEPS, write_text_model
from tokenizer_samples import SENTENCES, write_python, write_sentencepiece
from transformers import AutoTokenizer

import sdfast
from sdfast.modalities.texts.tokenization import load_tokenizer
from sdfast.models import hub

FEW = [*FEW_STEPS, "pretrain.steps=2", "distill.steps=2", "finetune.steps=2", "data.max_length=16"]


def write_model(folder: Path, kind: str) -> Path:
    """A RoBERTa of random weights, with as many words as that tokenizer has and not one more."""
    if kind in ("xlm-roberta", "camembert"):
        if not all(importlib.util.find_spec(name) for name in ("sentencepiece", "google.protobuf")):
            pytest.skip("needs sentencepiece and protobuf")
        write_sentencepiece(folder, kind)
    else:
        write_python(folder, kind)
    words = load_tokenizer(folder).tokenization.vocabulary
    plain = write_text_model(folder.parent / "plain", words=words)
    config = json.loads((plain / "config.json").read_text()) | json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(plain / "model.safetensors", folder)
    return folder


@pytest.mark.parametrize("kind", ["xlm-roberta", "camembert", "PhobertTokenizer", "BertweetTokenizer"])
def test_a_run_writes_the_tokenizer_that_it_was_given(kind: str, tmp_path: Path) -> None:
    folder, data = write_model(tmp_path / "model", kind), tmp_path / "data"
    data.mkdir()
    for split, rows in (("train", SENTENCES[:20]), ("test", SENTENCES[20:25])):
        records = [{"text": text, "label": f"class{number % 2}"} for number, text in enumerate(rows)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    keys = [*FEW, "pretrain.whole_word=true", "data.add_tokens=[covid]"]
    run = sdfast.Pipeline(folder, data, tmp_path / "run", device="cpu", overrides=keys)
    result = run.run()
    texts = [f"{text} covid" for text in SENTENCES[:8]]
    before = AutoTokenizer.from_pretrained(folder)
    for stage in ("pretrain", "distill", "finetune"):
        written = AutoTokenizer.from_pretrained(tmp_path / "run" / stage / "model")
        assert type(written) is type(before) and written.convert_tokens_to_ids("covid") == len(before)
        ids = written(texts, truncation=True)["input_ids"]
        whole = [[*before(text[:-6])["input_ids"][:-1], len(before), before.sep_token_id] for text in texts]
        longest = 16 if stage == "finetune" else 41
        assert ids == [each if len(each) <= longest else [*each[: longest - 1], each[-1]] for each in whole]
    again = sdfast.Pipeline(out=tmp_path / "run", device="cpu")
    assert again.evaluate(str(data))["accuracy"] == pytest.approx(result.metrics["accuracy"])


def test_all_files_of_a_tokenizer_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    (tmp_path / "model.safetensors").write_bytes(b"")
    fetched = SimpleNamespace(
        snapshot_download=lambda hub_id, allow_patterns: asked.extend(allow_patterns) or str(tmp_path),
        list_repo_files=lambda hub_id: [],
    )
    errors = SimpleNamespace(GatedRepoError=KeyError, RepositoryNotFoundError=KeyError)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fetched)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    hub.find_model_folder("some/model")
    assert {"sentencepiece.bpe.model", "spiece.model", "bpe.codes", "vocab.txt", "added_tokens.json"} <= set(asked)
