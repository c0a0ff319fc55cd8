"""Folders that are not, or no longer, a model: one sentence that names the file or tensor."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from argparse import Namespace
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import load_classifier, load_mae


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
        ({"model_type": "siglip2"}, ("siglip2", "model_type siglip")),
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
        ({"model_type": ["vit"]}, ("['vit'] model", "sdfast takes vit_mae")),
        (
            {"model_type": "gpt2", "vocab_size": 60, "image_size": None},
            ("gpt2 model, a language model with causal attention", "of image models sdfast takes vit_mae"),
        ),
        ({"qkv_bias": "no"}, ("qkv_bias", "true or false", "'no'")),
        ({"norm_pix_loss": 1}, ("norm_pix_loss", "true or false", "1")),
        ({"mask_ratio": 1.0}, ("mask_ratio", "from 0 to 1", "1.0")),
        ({"model_type": "dinov2", "mlp_ratio": "4"}, ("mlp_ratio", "positive number", "'4'")),
        ({"model_type": "dinov2", "mlp_ratio": -1}, ("mlp_ratio", "positive number", "-1")),
    ],
)
def test_configurations(folder: Path, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    edit_config(folder, **changes)
    text = sentence(folder)
    for part in parts:
        assert part in text


SIZES = [
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_channels",
    "image_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_intermediate_size",
]


@pytest.mark.parametrize("value", [10**6, 10**9, 10**18, 0, -1, 2.5, "32", True, [], {}])
@pytest.mark.parametrize("key", SIZES)
def test_sizes_that_are_none(folder: Path, key: str, value: Any) -> None:
    """One sentence, before anything of that size is allocated."""
    whole = isinstance(value, int) and value >= 10**6
    edit_config(folder, **{key: value * 12 if whole and "hidden_size" in key else value})  # the heads divide it
    tracemalloc.start()
    text = sentence(folder)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    assert "config.json" in text
    assert "parameters, but" in text or "describes a model of" in text if whole else key in text


def test_a_budget_is_that_of_the_parameters(folder: Path) -> None:
    """The numbers in the sentence are those of the file, and of a model of transformers with those sizes."""
    transformers = pytest.importorskip("transformers")
    edit_config(folder, intermediate_size=10**6)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        theirs = transformers.ViTMAEForPreTraining(config)
    wanted = sum(parameter.numel() for parameter in theirs.parameters())
    held = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert f"4 blocks and {wanted:,} parameters, but" in sentence(folder)
    assert f"holds {held:,}:" in sentence(folder)


@pytest.mark.parametrize("side", [10**6, 10**9])
def test_an_image_size_beyond_all_memory(folder: Path, side: int) -> None:
    text = sentence(folder, lambda spec: load_mae(spec, image_size=side))
    assert f"{(side // 4) ** 2:,} patches" in text


NESTED = {
    "brackets": "[" * 100_000,
    "objects": '{"a":' * 100_000,
    "whole": '{"a":' * 200 + "1" + "}" * 200,
    "a little": '{"a":' * 65 + "1" + "}" * 65,
}


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", NESTED.values(), ids=NESTED)
def test_nested_json(folder: Path, name: str, content: str) -> None:
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(content)
    text = sentence(folder)
    assert name in text and "nested too deeply" in text


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1" * 5000])
def test_numbers_that_are_none(folder: Path, number: str) -> None:
    """What cannot be written again would be found when the trained model is."""
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("{", f'{{"further": {number},', 1))
    assert "config.json is not readable JSON" in sentence(folder)


FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_permission_denied(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open
    (folder / name).touch()

    def refuse(path: Any, *arguments: Any, **more: Any) -> int:  # chmod does not stop a test that runs as root
        if str(path).endswith(f"/{name}"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    assert sentence(folder) == f"{folder / name} cannot be read: permission denied; allow yourself to read it."


@pytest.mark.parametrize("name", [*FILES, "pytorch_model.bin", "model.safetensors.index.json"])
def test_files_that_are_none(folder: Path, name: str) -> None:
    """A pipe is not waited for, and a device not read."""
    if name.startswith(("pytorch", "model")):
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert sentence(folder) == f"{folder / name} cannot be read: a named pipe, not a regular file."
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert "a device, not a regular file" in sentence(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")
    assert f"{folder / name} cannot be read: no such file" in sentence(folder)


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
    assert "is a file of weights alone" in sentence(tmp_path / "kept")


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


@pytest.mark.parametrize(
    ("name", "file"), [("model.safetensors", "/proc/cpuinfo"), ("pytorch_model.bin", "/proc/self/mem")]
)
def test_weights_that_a_disk_does_not_give_are_not_called_damaged(folder: Path, name: str, file: str) -> None:
    """Of these files, regular as the kernel says, one cannot be mapped and the other not be read."""
    (folder / "model.safetensors").unlink()
    (folder / name).symlink_to(file)
    assert sentence(folder) == f"{folder / name} cannot be read: input/output error."


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


def test_what_a_training_script_keeps_beside_its_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    digest = load_mae(str(folder)).digest
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({"model": tensors, "args": Namespace(lr=0.1, device="cuda"), "epoch": 3}, path)
    loaded = load_mae(str(folder))
    assert loaded.digest == digest
    assert loaded.notes[0] == "not used: args, epoch of pytorch_model.bin."
    torch.save({"model": tensors, "args": Fraction(1, 2), "epoch": 3}, path)
    text = sentence(folder)
    assert "fractions.Fraction" in text and "may run code" in text and "save its table of tensors alone" in text
    around: dict[str, Any] = {}
    around["model"] = around
    torch.save(around, path)
    assert "which is not a tensor" in sentence(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_names_of_a_wrapped_model(folder: Path, prefix: str) -> None:
    digest = load_mae(str(folder)).digest
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    loaded = load_mae(str(folder))
    assert loaded.digest == digest
    note = loaded.notes[0]
    assert "taken off" in note
    assert ("DataParallel" in note) == ("module" in prefix) and ("torch.compile" in note) == ("orig" in prefix)


def test_names_of_facebookresearch(folder: Path) -> None:
    width = {"cls_token": torch.zeros(1, 1, 32), "pos_embed": torch.zeros(1, 50, 32)}
    encoder = {**width, "blocks.0.attn.qkv.weight": torch.zeros(96, 32), "blocks.0.mlp.fc1.weight": torch.zeros(48, 32)}
    encoder["patch_embed.proj.weight"] = torch.zeros(32, 3, 4, 4)
    decoder = {"decoder_blocks.0.attn.qkv.weight": torch.zeros(72, 24), "mask_token": torch.zeros(1, 1, 24)}
    save_file(encoder, folder / "model.safetensors")
    text = sentence(folder)
    assert "'blocks.0.attn.qkv.weight'" in text and "facebook" in text and "timm's config.json" in text
    save_file(encoder | decoder, folder / "model.safetensors")
    assert "give the file itself, without a config.json" in sentence(folder)
    timm = {"architecture": "vit_small_patch4_28", "model_args": {"img_size": 28, "num_heads": 4}}
    (folder / "config.json").write_text(json.dumps(timm))
    text = sentence(folder)
    assert "decoder of facebookresearch/mae" in text and "'decoder_blocks.0.attn.qkv.weight'" in text


def test_a_file_is_given(folder: Path, tmp_path: Path) -> None:
    """Beside its config.json it is not read alone: the sentence says what is missing, its name or only the folder."""
    text = sentence(folder / "model.safetensors")
    assert f"give its folder, {folder}." in text and "name it" not in text
    (folder / "mae.pth").write_bytes(b"")
    assert "name it pytorch_model.bin and give its folder" in sentence(folder / "mae.pth")
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "mae_pretrain.pth").write_bytes(b"")
    for place in (lone, lone / "mae_pretrain.pth"):
        assert "mae_pretrain.pth is cut or damaged" in sentence(place)
    (lone / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    text = sentence(lone / "model.safetensors")
    assert "a file of weights alone" in text and "a model of transformers" in text and "config.json" in text
    (folder / "model.safetensors").unlink()
    assert "no weights" in sentence(folder) and "mae.pth is there" in sentence(folder)


@pytest.mark.parametrize("spec", ["~nobody-of-this-name/model", "x" * 5000, "a\0b", "/etc/passwd/model"])
def test_paths_that_are_none(spec: str) -> None:
    assert "the model" in sentence(spec) or "no model folder" in sentence(spec)


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
