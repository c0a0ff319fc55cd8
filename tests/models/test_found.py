"""Folders whose weights are sharded, wrapped, of half precision, or a part of what was saved: the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_bad_folders import sentence
from torch import Tensor

from sdfast.modalities.images.checkpoint import load_mae
from sdfast.modalities.texts.checkpoint import load_mlm


@pytest.fixture(params=["images", "texts"])
def model(request: Any, hugging_face: Any) -> tuple[Path, Any]:
    """A folder of transformers, and what loads it."""
    if request.param == "images":
        return hugging_face("ViTMAEForPreTraining")[1], load_mae
    return hugging_face("BertForMaskedLM")[1], load_mlm


def write(folder: Path, tensors: dict[str, Any], name: str = "pytorch_model.bin") -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    (save_file if name.endswith("safetensors") else torch.save)(tensors, folder / name)


def shard(folder: Path, suffix: str, below: str = "") -> list[Path]:
    """Write the tensors in three shards, perhaps in a folder below, and give back their files."""
    tensors, places, files = load_file(folder / "model.safetensors"), {}, []
    (folder / below).mkdir(exist_ok=True)
    for number in range(3):
        part = dict(list(tensors.items())[number::3])
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        file = f"{below}{stem}-{number + 1:05}-of-00003.{suffix}"
        write(folder, part, file)
        places |= dict.fromkeys(part, file)
        files.append(folder / file)
    index = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    (folder / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return files


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("below", ["", "shards/"])
def test_shards(model: tuple[Path, Any], suffix: str, below: str) -> None:
    folder, load = model
    digest = load(str(folder)).digest
    files = shard(folder, suffix, below)
    assert load(str(folder)).digest == digest
    files[1].unlink()
    text = sentence(folder, load)
    assert f"{files[1]} is missing although" in text and ".index.json names it" in text


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/etc/hostname"])
def test_shards_outside_of_the_folder(model: tuple[Path, Any], place: str) -> None:
    folder, load = model
    index = shard(folder, "safetensors")[0].parent / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": place}}))
    assert f"names {place}, which is not in its folder" in sentence(folder, load)


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("how", ["Lightning", "a dictionary", "DataParallel in a table", "a table in a table"])
def test_a_model_inside_of_what_was_saved(model: tuple[Path, Any], how: str) -> None:
    folder, load = model
    digest, tensors = load(str(folder)).digest, load_file(folder / "model.safetensors")
    saved = {
        "Lightning": {"state_dict": prefixed(tensors, "model.net.") | {"metric.total": torch.zeros(1)}, "epoch": 3},
        "a dictionary": {"model_state_dict": tensors, "loss": 0.5},
        "DataParallel in a table": {"module": prefixed(tensors, "module."), "args": None},
        "a table in a table": {"model": {"state_dict": tensors}},
    }
    write(folder, saved[how])
    loaded = load(str(folder))
    assert loaded.digest == digest
    notes = " ".join(loaded.notes)
    assert ("metric.total" in notes and "model.net" in notes) == (how == "Lightning")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_float32_here_and_said(model: tuple[Path, Any], dtype: torch.dtype) -> None:
    folder, load = model
    assert not any("float32" in note for note in load(str(folder)).notes)
    tensors = {name: each.to(dtype) for name, each in load_file(folder / "model.safetensors").items()}
    write(folder, tensors, "model.safetensors")
    loaded = load(str(folder))
    name = str(dtype).removeprefix("torch.")
    assert [note for note in loaded.notes if "float32" in note and name in note]
    assert {each.dtype for each in loaded.module.parameters()} == {torch.float32}
    again = folder.parent / "again"
    shutil.copytree(folder, again)
    write(again, {name: each.float() for name, each in tensors.items()}, "model.safetensors")
    assert load(str(again)).digest == loaded.digest


def test_safetensors_by_another_name(model: tuple[Path, Any]) -> None:
    folder, load = model
    digest = load(str(folder)).digest
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert load(str(folder)).digest == digest
