"""A hub id: found in the cache without a network, or one sentence on why it cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_bad_folders import sentence

from sdfast.modalities.images.checkpoint import load_mae


@pytest.fixture
def folder(hugging_face: Any) -> Path:
    """A whole ViTMAEForPreTraining."""
    return hugging_face("ViTMAEForPreTraining")[1]


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


@pytest.mark.parametrize("saved", [["mae.pth"], ["a.pth", "b.pth"]])
def test_a_hub_model_that_is_a_file_of_weights(
    tmp_path: Path, offline_cache: Path, monkeypatch: pytest.MonkeyPatch, saved: list[str]
) -> None:
    """As RETFound is published: no config.json, and the one file that a training script wrote."""
    hub = pytest.importorskip("huggingface_hub")
    snapshot, asked = tmp_path / "snapshot", []
    snapshot.mkdir()

    def download(_: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        if allow_patterns == saved:
            (snapshot / saved[0]).write_bytes(b"")
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "list_repo_files", lambda _: ["README.md", "old/mae.pth", *saved])
    text = sentence("someone/retina")
    if len(saved) == 1:
        assert "mae.pth is cut or damaged" in text and asked[-1] == saved
        assert "mae.pth is cut or damaged" in sentence("someone/retina") and asked[-1] != saved  # fetched once
    else:
        assert "several files of weights (a.pth, b.pth)" in text
