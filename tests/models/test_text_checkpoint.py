"""Text checkpoints in and out: lossless, as transformers writes and reads them, and one sentence for a broken one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pre_norm_shapes
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_bad_folders import edit_config, edit_tensors, sentence
from test_round_trip import loaded_cleanly
from text_fixtures import WORDS, write_tokenizer
from text_model_samples import BATCH, KINDS, SHAPES, padded, unpadded

from sdfast import bundled
from sdfast.modalities.texts.checkpoint import (
    Companions,
    classifier_from_mlm,
    cut_at,
    fresh_mlm,
    load_classifier,
    load_mlm,
    read_tokenizer_files,
    save_classifier,
    save_mlm,
)
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.model import Dropouts, MaskedLanguageModel, TextShape
from sdfast.modalities.texts.tokenization import load_tokenizer
from sdfast.models.blocks import TransformerShape
from sdfast.models.weights import weights_digest

TIGHT = {"rtol": 0.0, "atol": 1e-10}
DROPOUTS = Dropouts(0.2, 0.3, 0.4)
NAMES = ["oak", "elm", "fir"]
TOKENIZER = {"tokenizer.json": b'{"made": "up"}', "vocab.txt": "[PAD]\nélan\n".encode()}


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    pre_norm_shapes.in_float64(monkeypatch)


def dropouts_of(kind: str) -> Dropouts:
    """What a kind's configuration keeps of them: EuroBERT drops weights of the attention alone."""
    own = {"modernbert": Dropouts(0.2, 0.3, 0.4, 0.2), "eurobert": Dropouts(0.0, 0.3)}
    return own.get(kind, DROPOUTS)


def scrambled(kind: str, seed: int = 1) -> MaskedLanguageModel:
    module = fresh_mlm(SHAPES[kind], seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


@pytest.mark.parametrize("kind", SHAPES)
def test_mlm_in_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = scrambled(kind)
    save_mlm(ours, tmp_path, Companions(), DROPOUTS)
    theirs = loaded_cleanly(transformers.AutoModelForMaskedLM, tmp_path)
    assert type(theirs).__name__ == f"{FAMILIES[kind].name}ForMaskedLM"
    ids, mask = padded(BATCH, ours.shape.pad_id or 0)
    ours.double()
    wanted = unpadded(theirs(ids, attention_mask=mask).logits, BATCH)
    torch.testing.assert_close(ours.logits(ours.encoder(BATCH)), wanted, **TIGHT)
    rates = {field.place: getattr(theirs.config, field.key) for field in FAMILIES[kind].dropouts}
    assert Dropouts(**rates) == dropouts_of(kind)


@pytest.mark.parametrize("kind", SHAPES)
def test_classifier_in_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    mlm = scrambled(kind)
    ours = classifier_from_mlm(mlm, 3, DROPOUTS, seed=5)
    save_classifier(ours, tmp_path, Companions({}, TOKENIZER), NAMES, DROPOUTS)
    theirs = loaded_cleanly(transformers.AutoModelForSequenceClassification, tmp_path)
    assert theirs.config.id2label == dict(enumerate(NAMES))
    ids, mask = padded(BATCH, ours.shape.pad_id or 0)
    wanted = theirs(ids, attention_mask=mask).logits
    torch.testing.assert_close(ours.double().eval()(BATCH), wanted, **TIGHT)
    again, companions, names = load_classifier(tmp_path)
    assert names == NAMES and companions.tokenizer == TOKENIZER
    assert weights_digest(again) == weights_digest(ours.float())
    assert again.training and again.drop == (dropouts_of(kind).classifier or 0.0)
    started, start = ours.encoder.word_embeddings.weight, mlm.encoder.word_embeddings.weight
    assert torch.equal(start, started)
    started.data.zero_()
    assert start.all()  # it is left as it was


def test_the_head_is_decided_by_the_seed() -> None:
    mlm = scrambled("roberta")
    one, same, other = (classifier_from_mlm(mlm, 3, DROPOUTS, seed) for seed in (5, 5, 6))
    assert torch.equal(one.dense.weight, same.dense.weight) and not torch.equal(one.dense.weight, other.dense.weight)
    assert 0.015 < one.dense.weight.std() < 0.025 and not one.classifier.bias.any()


@pytest.mark.parametrize("kind", SHAPES)
def test_mlm_bit_for_bit(kind: str, tmp_path: Path) -> None:
    ours = scrambled(kind)
    companions = Companions({"bos_token_id": 3, "architectures": ["Other"], "dtype": "float16"}, TOKENIZER)
    save_mlm(ours, tmp_path, companions, DROPOUTS)
    again = load_mlm(str(tmp_path))
    assert again.notes == [] and not again.fresh_head
    assert again.shape == ours.shape == again.module.shape and again.dropouts == dropouts_of(kind)
    assert again.digest == weights_digest(ours) == weights_digest(again.module)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
    assert again.companions.tokenizer == TOKENIZER
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["bos_token_id"] == 3 and "dtype" not in config and "ForMaskedLM" in config["architectures"][0]
    save_mlm(again.module, tmp_path / "second", again.companions, again.dropouts)
    for name in ("model.safetensors", "config.json", *TOKENIZER):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_has_the_names_of_transformers(kind: str, hugging_face: Any, tmp_path: Path) -> None:
    _, path = hugging_face(f"{kind}ForMaskedLM")
    loaded = load_mlm(str(path))
    assert [note.split("has no")[-1] for note in loaded.notes] == [
        " tokenizer (tokenizer.json, vocab.txt or a sentencepiece model)."
    ]
    save_mlm(loaded.module, tmp_path / "ours", loaded.companions, loaded.dropouts)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (path, tmp_path / "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    with safe_open(tmp_path / "ours/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        *((f"{kind}ForSequenceClassification", "classifier") for kind in KINDS),
        *((f"{kind}Model", "pooler.dense.bias") for kind in ("Bert", "Roberta")),
        *((f"{kind}Model", None) for kind in ("DistilBert", "Electra", "ModernBert", "EuroBert")),
        ("ElectraForPreTraining", "discriminator_predictions.dense.bias"),
    ],
)
def test_an_encoder_alone_gets_a_new_head(name: str, unused: str | None, hugging_face: Any) -> None:
    theirs, path = hugging_face(name)
    loaded, same, other = (load_mlm(str(path), seed=seed) for seed in (1, 1, 2))
    assert loaded.fresh_head and loaded.digest == same.digest != other.digest
    assert any("has no language-model head" in note and note.startswith("warning") for note in loaded.notes)
    said = [note for note in loaded.notes if note.startswith("not used: ")]
    assert [str(unused) in note for note in said] == [True] * (unused is not None)
    ids, mask = padded(BATCH, loaded.shape.pad_id or 0)
    wanted = unpadded(theirs.base_model.double()(ids, attention_mask=mask).last_hidden_state, BATCH)
    torch.testing.assert_close(loaded.module.double().eval().encoder(BATCH), wanted, **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_copy_of_the_embeddings_is_their_copy(kind: str, hugging_face: Any) -> None:
    _, path = hugging_face(f"{kind}ForMaskedLM", tie_word_embeddings=True)
    loaded = load_mlm(str(path))
    last = f"{FAMILIES[loaded.shape.kind].decoder}.weight"
    edit_tensors(path, lambda t: t.update({last: loaded.module.encoder.word_embeddings.weight.detach().clone()}))
    assert load_mlm(str(path)).digest == loaded.digest
    edit_tensors(path, lambda t: t[last].view(-1)[3].add_(1))
    assert f"the tensor '{last}' in" in (text := sentence(path, load_mlm)) and "tied to the embeddings only" in text


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


@pytest.mark.parametrize("kind", SHAPES)
def test_the_encoder_in_transformers(kind: str, tmp_path: Path) -> None:
    """`AutoModel` of the folder as it is gives the features: nothing in it is random."""
    transformers = pytest.importorskip("transformers")
    ours = scrambled(kind)
    save_mlm(ours, tmp_path, Companions(), DROPOUTS)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).double()
    ids, mask = padded(BATCH, ours.shape.pad_id or 0)
    output = theirs(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(unpadded(output, BATCH), ours.double().encoder(BATCH), **TIGHT)
    assert torch.equal(theirs(ids, attention_mask=mask).last_hidden_state, output)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "shorter": {"model_max_length": 9},
    "longer": {"model_max_length": 512},
    "unbounded": {"model_max_length": int(1e30)},
    "old": {"max_len": 9},
    "left": {"truncation_side": "left"},
}


@pytest.mark.parametrize("own", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_the_tokenizer_cuts_as_training_did(own: dict[str, Any], tmp_path: Path) -> None:
    """By transformers' own words and by those of tokenizers alone, on a document longer than the model's positions."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = write_tokenizer(tmp_path / "given")
    path = tmp_path / "given/tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "model_max_length"}
    path.write_text(json.dumps({**config, **own}))
    shape = TextShape("roberta", words, 43, 1, 1, TransformerShape(32, 2, 4, 48), 1e-5)
    companions = Companions({}, read_tokenizer_files(tmp_path / "given"))
    save_mlm(fresh_mlm(shape, 0), tmp_path / "ours", companions, DROPOUTS, max_length=12)
    long = " ".join(WORDS[number % 40] for number in range(5555))
    trained = load_tokenizer(tmp_path / "given", 12)
    (wanted,) = trained([long])
    assert len(wanted.ids) == (9 if 9 in own.values() else 12)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs(long, truncation=True)["input_ids"] == wanted.ids.tolist()
    alone = tokenizers.Tokenizer.from_file(str(tmp_path / "ours/tokenizer.json"))
    assert alone.encode(long).ids == wanted.ids.tolist()
    assert load_tokenizer(tmp_path / "ours", 12).tokenization == trained.tokenization
    again = load_mlm(str(tmp_path / "ours"))
    save_mlm(again.module, tmp_path / "again", again.companions, DROPOUTS, max_length=12)
    assert read_tokenizer_files(tmp_path / "again") == again.companions.tokenizer


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_tokenizer_of_one_file_cuts_too(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    content = (bundled.model_folder("bundled-text") / "tokenizer.json").read_bytes()
    if name == "vocab.txt":
        vocabulary = json.loads(content)["model"]["vocab"]
        content = "".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.get)).encode()
    (tmp_path / name).write_bytes(content)
    long = "an animal with a backbone " * 1000
    trained = load_tokenizer(tmp_path, 12)
    for file, written in cut_at(read_tokenizer_files(tmp_path), 12).items():
        (tmp_path / file).write_bytes(written)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(long, truncation=True)["input_ids"] == trained([long])[0].ids.tolist()
    assert theirs.model_max_length == 12
    assert load_tokenizer(tmp_path, 12).tokenization == trained.tokenization


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
        "import sys; from sdfast.modalities.texts.checkpoint import load_mlm, save_mlm; "
        f"m = load_mlm({str(tmp_path / 'a')!r}); "
        f"save_mlm(m.module, {str(tmp_path / 'b')!r}, m.companions, m.dropouts); "
        "print([name for name in ('transformers', 'tokenizers', 'datasets', 'triton') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
    assert load_mlm(str(tmp_path / "b")).digest == load_mlm(str(tmp_path / "a")).digest
