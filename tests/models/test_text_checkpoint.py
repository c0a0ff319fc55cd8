"""Text checkpoints in and out: lossless, as transformers writes and reads them, and one sentence for a broken one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_bad_folders import edit_config, edit_tensors, sentence
from test_round_trip import loaded_cleanly
from text_model_samples import BATCH, padded, unpadded

from sdfast.errors import UserError
from sdfast.models.text import Dropouts, MaskedLanguageModel, TextShape
from sdfast.models.text_checkpoint import (
    Companions,
    fresh_mlm,
    load_mlm,
    load_text_classifier,
    save_mlm,
    save_text_classifier,
    text_classifier_from_mlm,
)
from sdfast.models.vit import TransformerShape
from sdfast.models.weights import weights_digest

TIGHT = {"rtol": 0.0, "atol": 1e-10}
KINDS = ["roberta", "bert"]
DROPOUTS = Dropouts(0.2, 0.3, 0.4)
NAMES = ["oak", "elm", "fir"]
TOKENIZER = {"tokenizer.json": b'{"made": "up"}', "vocab.txt": "[PAD]\nélan\n".encode()}


def scrambled(kind: Any, seed: int = 1) -> MaskedLanguageModel:
    shape = TextShape(kind, 60, 40, 2, {"roberta": 1, "bert": 0}[kind], TransformerShape(32, 2, 4, 48), 1e-5)
    module = fresh_mlm(shape, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_mlm_in_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = scrambled(kind)
    save_mlm(ours, tmp_path, Companions(), DROPOUTS)
    theirs = loaded_cleanly(transformers.AutoModelForMaskedLM, tmp_path)
    assert type(theirs).__name__ == {"roberta": "RobertaForMaskedLM", "bert": "BertForMaskedLM"}[kind]
    ids, mask = padded(BATCH, ours.shape.pad_id or 0)
    ours.double()
    wanted = unpadded(theirs(ids, attention_mask=mask).logits, BATCH)
    torch.testing.assert_close(ours.logits(ours.encoder(BATCH)), wanted, **TIGHT)
    assert (theirs.config.hidden_dropout_prob, theirs.config.attention_probs_dropout_prob) == (0.2, 0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_classifier_in_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    mlm = scrambled(kind)
    ours = text_classifier_from_mlm(mlm, 3, DROPOUTS, seed=5)
    save_text_classifier(ours, tmp_path, Companions({}, TOKENIZER), NAMES, DROPOUTS)
    theirs = loaded_cleanly(transformers.AutoModelForSequenceClassification, tmp_path)
    assert theirs.config.id2label == dict(enumerate(NAMES)) and theirs.config.classifier_dropout == 0.4
    ids, mask = padded(BATCH, ours.shape.pad_id or 0)
    wanted = theirs(ids, attention_mask=mask).logits
    torch.testing.assert_close(ours.double().eval()(BATCH), wanted, **TIGHT)
    again, companions, names = load_text_classifier(tmp_path)
    assert names == NAMES and companions.tokenizer == TOKENIZER
    assert weights_digest(again) == weights_digest(ours.float())
    assert again.training and again.drop == 0.4
    assert torch.equal(mlm.encoder.norm.weight, ours.encoder.norm.weight)
    ours.encoder.norm.weight.data.zero_()
    assert mlm.encoder.norm.weight.all()  # the start is left as it was


def test_the_head_is_decided_by_the_seed() -> None:
    mlm = scrambled("roberta")
    one, same, other = (text_classifier_from_mlm(mlm, 3, DROPOUTS, seed) for seed in (5, 5, 6))
    assert torch.equal(one.dense.weight, same.dense.weight) and not torch.equal(one.dense.weight, other.dense.weight)
    assert 0.015 < one.dense.weight.std() < 0.025 and not one.classifier.bias.any()


@pytest.mark.parametrize("kind", KINDS)
def test_mlm_bit_for_bit(kind: str, tmp_path: Path) -> None:
    ours = scrambled(kind)
    companions = Companions({"bos_token_id": 3, "architectures": ["Other"], "dtype": "float16"}, TOKENIZER)
    save_mlm(ours, tmp_path, companions, DROPOUTS)
    again = load_mlm(str(tmp_path))
    assert again.notes == [] and not again.fresh_head
    assert again.shape == ours.shape == again.module.shape and again.dropouts == DROPOUTS
    assert again.digest == weights_digest(ours) == weights_digest(again.module)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
    assert again.companions.tokenizer == TOKENIZER
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["bos_token_id"] == 3 and "dtype" not in config and "ForMaskedLM" in config["architectures"][0]
    save_mlm(again.module, tmp_path / "second", again.companions, again.dropouts)
    for name in ("model.safetensors", "config.json", *TOKENIZER):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("kind", ["Roberta", "Bert"])
def test_the_file_has_the_names_of_transformers(kind: str, hugging_face: Any, tmp_path: Path) -> None:
    _, path = hugging_face(f"{kind}ForMaskedLM")
    loaded = load_mlm(str(path))
    assert [note.split("has no")[-1] for note in loaded.notes] == [" tokenizer (tokenizer.json or vocab.txt)."]
    save_mlm(loaded.module, tmp_path / "ours", loaded.companions, loaded.dropouts)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (path, tmp_path / "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    with safe_open(tmp_path / "ours/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", ["Roberta", "Bert"])
@pytest.mark.parametrize("source", ["Model", "ForSequenceClassification"])
def test_an_encoder_alone_gets_a_new_head(kind: str, source: str, hugging_face: Any) -> None:
    theirs, path = hugging_face(f"{kind}{source}")
    loaded, same, other = (load_mlm(str(path), seed=seed) for seed in (1, 1, 2))
    assert loaded.fresh_head and loaded.digest == same.digest != other.digest
    assert any("has no language-model head" in note and note.startswith("warning") for note in loaded.notes)
    unused = {"Model": "pooler.dense.bias", "ForSequenceClassification": "classifier"}[source]
    assert any(note.startswith("not used: ") and unused in note for note in loaded.notes)
    ids, mask = padded(BATCH, loaded.shape.pad_id or 0)
    base = theirs if source == "Model" else getattr(theirs, kind.lower())
    wanted = unpadded(base.double()(ids, attention_mask=mask).last_hidden_state, BATCH)
    torch.testing.assert_close(loaded.module.double().eval().encoder(BATCH), wanted, **TIGHT)


def test_old_files(hugging_face: Any) -> None:
    """BERT's first release: gamma and beta, and copies of the embeddings and biases as the head's last layer."""
    _, path = hugging_face("BertForMaskedLM")
    digest = load_mlm(str(path)).digest

    def old(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            tensors[name.replace(".weight", ".gamma").replace(".bias", ".beta")] = tensors.pop(name)
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
        tensors["cls.seq_relationship.weight"] = torch.zeros(2, 32)
        tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]

    edit_tensors(path, old)
    loaded = load_mlm(str(path))
    assert loaded.digest == digest
    assert "not used: cls.seq_relationship.weight of the checkpoint." in loaded.notes


def test_the_digest_knows_the_shape(tmp_path: Path) -> None:
    save_mlm(scrambled("bert"), tmp_path, Companions(), DROPOUTS)
    before = load_mlm(str(tmp_path)).digest
    edit_config(tmp_path, num_attention_heads=2)
    heads = load_mlm(str(tmp_path)).digest
    edit_config(tmp_path, num_attention_heads=4, hidden_dropout_prob=0.5)
    assert heads != before == load_mlm(str(tmp_path)).digest


def test_loading_and_saving_import_no_large_library(tmp_path: Path) -> None:
    save_mlm(scrambled("roberta"), tmp_path / "a", Companions(), DROPOUTS)
    script = (
        "import sys; from sdfast.models.text_checkpoint import load_mlm, save_mlm; "
        f"m = load_mlm({str(tmp_path / 'a')!r}); "
        f"save_mlm(m.module, {str(tmp_path / 'b')!r}, m.companions, m.dropouts); "
        "print([name for name in ('transformers', 'tokenizers', 'datasets', 'triton') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
    assert load_mlm(str(tmp_path / "b")).digest == load_mlm(str(tmp_path / "a")).digest


# ---- what is not a model ---------------------------------------------------------------------------------------


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
        (lambda t: t.update({"roberta.adapter.weight": torch.zeros(2)}), ("roberta.adapter.weight", "plain BERT")),
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
        ({"model_type": "vit"}, ("vit model", "bert and roberta")),
        ({"model_type": None}, ("None model", "bert and roberta")),
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
    ],
)
def test_configurations(folder: Path, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    edit_config(folder, **changes)
    text = sentence(folder, load_mlm)
    for part in parts:
        assert part in text


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
    assert "holds no RobertaForSequenceClassification" in sentence(folder, load_text_classifier)
    classifier = text_classifier_from_mlm(scrambled("bert"), 3, DROPOUTS, seed=0)
    with pytest.raises(UserError, match="3 outputs needs as many distinct class names"):
        save_text_classifier(classifier, tmp_path / "twice", Companions(), ["a", "b", "b"], DROPOUTS)
    path = tmp_path / "classifier"
    save_text_classifier(classifier, path, Companions(), NAMES, DROPOUTS)
    edit_config(path, id2label={"0": "a"})
    assert "id2label" in sentence(path, load_text_classifier)
    tensors = load_file(path / "model.safetensors")
    del tensors["bert.pooler.dense.bias"]
    save_file(tensors, path / "model.safetensors")
    assert "'bert.pooler.dense.bias'" in sentence(path, load_text_classifier)
