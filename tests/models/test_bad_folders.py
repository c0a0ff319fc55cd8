"""Folders that are not, or no longer, a model: one sentence that names the file or tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdfast.errors import UserError
from sdfast.models.checkpoint import load_classifier, load_mae


@pytest.fixture
def folder(hugging_face: Any) -> Path:
    """A whole ViTMAEForPreTraining."""
    path = hugging_face("ViTMAEForPreTraining")[1]
    load_mae(str(path))
    return path


def sentence(spec: Any, load: Callable[..., Any] = load_mae) -> str:
    with pytest.raises(UserError) as caught:
        load(str(spec))
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert text.endswith(".") and "\n" not in text and "Traceback" not in text
    return text


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


KEY = "vit.encoder.layer.1.attention.attention.key.weight"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(KEY), ("no tensor", KEY)),
        (lambda t: t.pop("vit.embeddings.cls_token"), ("no tensor", "'vit.embeddings.cls_token'")),
        (lambda t: t.pop("decoder.mask_token"), ("no tensor", "'decoder.mask_token'")),
        (lambda t: t.update({"vit.extra.weight": torch.zeros(2)}), ("vit.extra.weight", "does not have")),
        (
            lambda t: t.update({KEY.replace(".1.", ".2."): torch.zeros(32, 32)}),
            (KEY.replace(".1.", ".2."), "config.json does not announce"),
        ),
        (lambda t: t.update({KEY: torch.zeros(32, 31)}), (KEY, "[32, 31]", "[32, 32]")),
        (lambda t: t.update({KEY: torch.zeros(32, 32, dtype=torch.int8)}), (KEY, "int8")),
        (lambda t: t[KEY].view(-1)[5].fill_(float("nan")), (KEY, "not finite")),
        (lambda t: t["vit.layernorm.bias"][3].fill_(float("inf")), ("vit.layernorm.bias", "not finite")),
        (
            lambda t: t.update({"vit.layers.1.attention.k_proj.weight": torch.zeros(32, 32)}),
            (KEY, "vit.layers.1.attention.k_proj.weight", "same weights"),
        ),
    ],
)
def test_tensors(folder: Path, change: Any, parts: tuple[str, ...]) -> None:
    edit_tensors(folder, change)
    text = sentence(folder)
    for part in (*parts, "model.safetensors"):
        assert part in text


def test_tensor_names_in_messages_are_those_of_the_file(hugging_face: Any) -> None:
    _, path = hugging_face("Dinov2Model")
    edit_tensors(path, lambda t: t.pop("encoder.layer.0.layer_scale1.lambda1"))
    assert "'encoder.layer.0.layer_scale1.lambda1'" in sentence(path)
    _, path = hugging_face("ViTModel", folder="plain")
    edit_tensors(path, lambda t: t.pop("encoder.layer.0.layernorm_before.bias"))
    assert "'encoder.layer.0.layernorm_before.bias'" in sentence(path)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": None}, ("model_type",)),
        ({"model_type": "swin"}, ("swin", "sdfast takes")),
        ({"model_type": "deit"}, ("deit", "distillation token")),
        ({"model_type": "dinov2_with_registers"}, ("register",)),
        ({"model_type": "dinov2", "use_swiglu_ffn": True}, ("SwiGLU",)),
        ({"hidden_act": "relu"}, ("relu", "gelu")),
        ({"num_attention_heads": 5}, ("5 heads", "32")),
        ({"decoder_num_attention_heads": 5}, ("decoder", "5 heads", "24")),
        ({"num_hidden_layers": "two"}, ("num_hidden_layers", "two")),
        ({"num_hidden_layers": 3}, ("no tensor", "vit.encoder.layer.2.")),
        ({"hidden_size": -32}, ("hidden_size",)),
        ({"image_size": 30}, ("image_size", "30")),
        ({"image_size": 32}, ("position_embeddings", "[1, 50, 32]", "[1, 65, 32]")),
        ({"patch_size": [4, 2]}, ("square patches",)),
        ({"layer_norm_eps": "small"}, ("layer_norm_eps",)),
    ],
)
def test_configurations(folder: Path, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    edit_config(folder, **changes)
    text = sentence(folder)
    for part in parts:
        assert part in text


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\xff"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_broken_json(folder: Path, name: str, content: str) -> None:
    (folder / name).write_bytes(content.encode("latin-1"))
    assert name in sentence(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "kept")
    assert "no weights" in sentence(folder) and "model.safetensors" in sentence(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in sentence(folder)
    assert "no model folder" in sentence(tmp_path / "absent")
    assert "is a file" in sentence(tmp_path / "kept")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_cut_safetensors(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors is cut or damaged" in sentence(folder)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_damaged_torch_file(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin is" in sentence(folder) and "damaged" in sentence(folder)


class Intruder:
    """Unpickling this would run a function of its choice."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (Path("intruded"),))


def test_torch_file_that_would_run_code_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Intruder()}, folder / "pytorch_model.bin")
    assert "more than tensors" in sentence(folder)
    assert not (tmp_path / "intruded").exists()


def test_torch_file_of_something_else(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save([1, 2], folder / "pytorch_model.bin")
    assert "table of tensors" in sentence(folder)
    torch.save({"epoch": 3}, folder / "pytorch_model.bin")
    assert "'epoch', which is not a tensor" in sentence(folder)


def test_missing_shard(hugging_face: Any) -> None:
    theirs, path = hugging_face("ViTMAEForPreTraining")
    (path / "model.safetensors").unlink()
    theirs.save_pretrained(path, max_shard_size="20KB")
    shard = sorted(path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in sentence(path) and "missing" in sentence(path)
    (path / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in sentence(path)


def test_classifier_folders(hugging_face: Any, folder: Path) -> None:
    assert "no ViTForImageClassification" in sentence(folder, load_classifier)
    _, path = hugging_face("ViTForImageClassification", folder="classifier", num_labels=3)
    edit_config(path, id2label={"0": "a", "1": "b"})
    assert "id2label" in sentence(path, load_classifier)
    edit_config(path, id2label=None, hidden_dropout_prob=2)
    assert "hidden_dropout_prob" in sentence(path, load_classifier)
    edit_tensors(path, lambda t: t.pop("classifier.bias"))
    assert "'classifier.bias'" in sentence(path, load_classifier)


def hub_cache(root: Path, source: Path, hub_id: str) -> None:
    """Files where huggingface_hub keeps what it has fetched."""
    base = root / f"models--{hub_id.replace('/', '--')}"
    snapshot = base / "snapshots/0123456789012345678901234567890123456789"
    snapshot.parent.mkdir(parents=True)
    source.rename(snapshot)
    (base / "refs").mkdir()
    (base / "refs/main").write_text(snapshot.name)


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_hub_id_from_the_cache_without_network(folder: Path, offline_cache: Path) -> None:
    digest = load_mae(str(folder)).digest
    hub_cache(offline_cache, folder, "someone/small-mae")
    loaded = load_mae("someone/small-mae")
    assert (loaded.name, loaded.digest) == ("someone/small-mae", digest)


def test_hub_id_with_torch_weights_only(folder: Path, offline_cache: Path) -> None:
    digest = load_mae(str(folder)).digest
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub_cache(offline_cache, folder, "someone/small-mae")
    assert load_mae("someone/small-mae").digest == digest


def test_hub_id_that_cannot_be_fetched(offline_cache: Path) -> None:
    text = sentence("facebook/vit-mae-base")
    assert "facebook/vit-mae-base" in text and "could not be fetched" in text and "network" in text


@pytest.mark.parametrize(("kind", "part"), [("RepositoryNotFoundError", "no such model"), ("GatedRepoError", "gated")])
def test_hub_answers(offline_cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, part: str) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Answer(getattr(hub.errors, kind)):  # type: ignore[misc]
        def __init__(self) -> None:  # the real ones want an HTTP response of the hub's own HTTP library
            Exception.__init__(self, "no")

    def refuse(*_: Any, **__: Any) -> None:
        raise Answer

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    assert part in sentence("someone/absent")
