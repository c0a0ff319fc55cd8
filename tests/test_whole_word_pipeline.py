"""Whole-word masking in a run: the words are those of the model's tokenizer, and the stages that mask go by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from text_fixtures import FEW_STEPS, write_text_model, write_texts

import sdfast
from sdfast import bundled
from sdfast.errors import UserError
from sdfast.modalities.texts.tokenization import load_tokenizer

FEW = ("data.limit=12", "pretrain.steps=1", "pretrain.batch_size=2", "distill.steps=1", "distill.batch_size=2")


def test_the_stages_that_mask_take_words(tmp_path: Path) -> None:
    def run(*keys: str) -> sdfast.Pipeline:
        return sdfast.Pipeline("bundled-text", out=tmp_path / "run", device="cpu", overrides=[*FEW, *keys])

    whole = run("pretrain.whole_word=true")
    first = whole.distill()
    views = whole.context.modality.masked_views(whole.context, "distill", 3)
    table = load_tokenizer(bundled.model_folder("bundled-text")).word_table()
    assert torch.equal(views.masking.words, torch.from_numpy(table)) and table[:, 0].any()
    assert run("pretrain.whole_word=true").distill() == first
    tokens = run()
    assert tokens.distill().fingerprint != first.fingerprint
    assert tokens.context.modality.masked_views(tokens.context, "pretrain", 3).masking.words is None


def test_a_tokenizer_that_does_not_tell_words(tmp_path: Path) -> None:
    model, texts = write_text_model(tmp_path / "model"), write_texts(tmp_path / "texts")
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"] = {"type": "BPE", "vocab": content["model"]["vocab"], "merges": [], "unk_token": "<unk>"}
    path.write_text(json.dumps(content))
    keys = [*FEW_STEPS, "pretrain.whole_word=true", "data.duplicates=keep"]
    with pytest.raises(UserError, match=r"model does not tell where words begin.*pretrain.whole_word"):
        sdfast.Pipeline(model, texts, tmp_path / "run", device="cpu", overrides=keys).pretrain()
