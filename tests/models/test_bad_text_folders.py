"""Folders that are not, or no longer, a text model: one sentence that names the file or tensor."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_bad_folders import edit_config, edit_tensors, sentence
from test_text_checkpoint import DROPOUTS, NAMES, TOKENIZER, scrambled
from text_model_samples import SHAPES

from sdfast.errors import UserError
from sdfast.modalities.texts.checkpoint import (
    Companions,
    classifier_from_mlm,
    load_classifier,
    load_mlm,
    save_classifier,
    save_mlm,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_mlm(scrambled("roberta"), tmp_path / "model", Companions({}, TOKENIZER), DROPOUTS)
    return tmp_path / "model"


KEY = "roberta.encoder.layer.1.attention.self.key.weight"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(KEY), ("no tensor", KEY)),
        (lambda t: t.pop("lm_head.bias"), ("no tensor", "'lm_head.bias'")),
        (lambda t: t.pop("roberta.embeddings.word_embeddings.weight"), ("no tensor", "word_embeddings")),
        (lambda t: t.update({"roberta.adapter.weight": torch.zeros(2)}), ("roberta.adapter.weight", "plain RoBERTa")),
        (lambda t: t.update({KEY.replace(".1.", ".2."): torch.zeros(32, 32)}), ("does not announce", ".2.")),
        (lambda t: t.update({KEY: torch.zeros(32, 31)}), (KEY, "[32, 31]", "[32, 32]")),
        (lambda t: t[KEY].view(-1)[5].fill_(float("nan")), (KEY, "not finite")),
        (lambda t: t.update({"lm_head.decoder.weight": torch.zeros(60, 32)}), ("lm_head.decoder.weight", "tied")),
        (lambda t: t.update({"lm_head.decoder.bias": torch.ones(60)}), ("lm_head.decoder.bias", "lm_head.bias")),
    ],
)
def test_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], parts: tuple[str, ...]) -> None:
    edit_tensors(folder, change)
    text = sentence(folder, load_mlm)
    for part in (*parts, "model.safetensors"):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "vit"}, ("vit model", "text models sdfast takes bert, roberta,")),
        ({"model_type": None}, ("None model", "text models sdfast takes bert, roberta,")),
        ({"hidden_act": "relu"}, ("relu", "gelu")),
        ({"position_embedding_type": "relative_key"}, ("relative_key", "absolute")),
        ({"is_decoder": True}, ("decoder",)),
        ({"num_attention_heads": 5}, ("5 heads", "32")),
        ({"num_hidden_layers": "two"}, ("num_hidden_layers", "two")),
        ({"vocab_size": 61}, ("[60, 32]", "[61, 32]")),
        ({"max_position_embeddings": 2}, ("2 positions", "none for a token")),
        ({"pad_token_id": 60}, ("pad_token_id", "60")),
        ({"layer_norm_eps": 2}, ("layer_norm_eps",)),
        ({"hidden_dropout_prob": 1.5}, ("hidden_dropout_prob", "1.5")),
        ({"attention_probs_dropout_prob": "some"}, ("attention_probs_dropout_prob", "some")),
        ({"classifier_dropout": -1}, ("classifier_dropout", "-1")),
        ({"model_type": "gpt2"}, ("gpt2 model", "text models sdfast takes bert, roberta,")),
        ({"model_type": ["bert"]}, ("['bert'] model", "text models sdfast takes bert, roberta,")),
    ],
)
def test_configurations(folder: Path, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    edit_config(folder, **changes)
    text = sentence(folder, load_mlm)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("kind", "changes", "parts"),
    [
        ("distilbert", {"activation": "relu"}, ("relu", "gelu only")),
        ("distilbert", {"n_heads": 5}, ("5 heads", "32")),
        ("distilbert", {"dim": 31, "n_heads": 1}, ("[60, 32]", "[60, 31]")),
        ("distilbert", {"hidden_dim": 0}, ("hidden_dim", "0")),
        ("distilbert", {"seq_classif_dropout": 1.5}, ("seq_classif_dropout", "1.5")),
        ("electra", {"embedding_size": 23}, ("[60, 24]", "[60, 23]")),
        ("electra", {"embedding_size": 32}, ("electra.embeddings_project", "does not announce")),
        ("electra", {"embedding_size": "24"}, ("embedding_size", "'24'")),
        ("electra", {"is_decoder": True}, ("decoder",)),
        ("xlm-roberta", {"model_type": "xlm-roberta-xl"}, ("xlm-roberta-xl model", "xlm-roberta, camembert")),
    ],
)
def test_configurations_of_other_kinds(
    kind: str, changes: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    save_mlm(scrambled(kind), tmp_path, Companions(), DROPOUTS)
    edit_config(tmp_path, **changes)
    text = sentence(tmp_path, load_mlm)
    for part in parts:
        assert part in text


def test_positions_that_transformers_does_not_train(tmp_path: Path) -> None:
    save_mlm(scrambled("distilbert"), tmp_path, Companions(), DROPOUTS)
    assert load_mlm(str(tmp_path)).notes[:-1] == []
    edit_config(tmp_path, sinusoidal_pos_embds=True)
    assert (
        "sinusoidal_pos_embds=True of config.json; the table of positions is trained"
        in load_mlm(str(tmp_path)).notes[0]
    )


@pytest.mark.parametrize("value", [10**6, 10**9, 10**18, 0, -1, 2.5, "32", True, [], {}])
@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "type_vocab_size",
    ],
)
def test_sizes_that_are_none(folder: Path, key: str, value: Any) -> None:
    edit_config(folder, **{key: value})
    tracemalloc.start()
    text = sentence(folder, load_mlm)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    whole = type(value) is int and value >= 10**6
    assert "parameters, but" in text if whole else key in text


@pytest.mark.parametrize("kind", SHAPES)
def test_a_budget_is_that_of_the_parameters(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_mlm(scrambled(kind), tmp_path, Companions(), DROPOUTS)
    edit_config(tmp_path, vocab_size=10**6)
    with torch.device("meta"):
        theirs = transformers.AutoModelForMaskedLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    wanted = sum(parameter.numel() for parameter in theirs.parameters() if parameter.shape != (10**6,))
    assert f"2 blocks and {wanted:,} parameters, but" in sentence(tmp_path, load_mlm)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.txt"])
def test_files_that_are_none(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert sentence(folder, load_mlm) == f"{folder / name} cannot be read: a named pipe, not a regular file."


def test_names_of_a_wrapped_model(folder: Path) -> None:
    digest = load_mlm(str(folder)).digest
    tensors = load_file(folder / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    loaded = load_mlm(str(folder))
    assert loaded.digest == digest and ["taken off" in note for note in loaded.notes] == [True]


def test_settings_that_have_no_place_are_said_and_kept(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, initializer_range=0.01, tie_word_embeddings=False, num_labels=7, problem_type="regression")
    loaded = load_mlm(str(folder))
    assert ["initializer_range=0.01" in note for note in loaded.notes] == [True, False]
    assert "tie_word_embeddings" in loaded.notes[1]
    save_mlm(loaded.module, tmp_path / "out", loaded.companions, loaded.dropouts)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["initializer_range"] == 0.01 and written["tie_word_embeddings"] is True
    assert "num_labels" not in written and "problem_type" not in written  # of a head that is not there


def test_files(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    assert "model.safetensors is cut or damaged" in sentence(folder, load_mlm)
    path.unlink()
    assert "no weights" in sentence(folder, load_mlm)
    (folder / "config.json").write_text("{")
    assert "config.json is not readable JSON" in sentence(folder, load_mlm)
    assert "no model folder" in sentence(tmp_path / "absent", load_mlm)


def test_classifier_folders(folder: Path, tmp_path: Path) -> None:
    assert "holds no RobertaForSequenceClassification" in sentence(folder, load_classifier)
    classifier = classifier_from_mlm(scrambled("bert"), 3, DROPOUTS, seed=0)
    with pytest.raises(UserError, match="3 outputs needs as many distinct class names"):
        save_classifier(classifier, tmp_path / "twice", Companions(), ["a", "b", "b"], DROPOUTS)
    path = tmp_path / "classifier"
    save_classifier(classifier, path, Companions(), NAMES, DROPOUTS)
    edit_config(path, id2label={"0": "a"})
    assert "id2label" in sentence(path, load_classifier)
    tensors = load_file(path / "model.safetensors")
    del tensors["bert.pooler.dense.bias"]
    save_file(tensors, path / "model.safetensors")
    assert "'bert.pooler.dense.bias'" in sentence(path, load_classifier)
