"""`sdfast export`: finished stages and checkpoints, as folders that transformers reads."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from safetensors.torch import load_file

from sdfast.cli.main import run
from sdfast.modalities.images.checkpoint import load_classifier, load_mae
from sdfast.store import checkpoint


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose distill and fine-tuning have checkpoints but, so it seems, have not ended."""
    folder = tmp_path_factory.mktemp("run")
    model, images = write_model(folder / "model"), write_images(folder / "images")
    patch = pytest.MonkeyPatch()
    patch.setattr("sdfast.store.checkpoint.clear", lambda directory: None)
    every = "engine.checkpoint_steps=4"
    arguments = ["train", "--model", str(model), "--data", str(images), "--out", str(folder / "out"), *FEW_STEPS]
    assert run([*arguments, every]) == 0
    patch.undo()
    for stage in ("distill", "finetune"):
        (folder / "out" / stage / "result.json").unlink()
    return folder / "out"


def test_a_finished_stage_is_copied(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--out", str(out), "--stage", "pretrain", "--to", str(tmp_path / "made")]) == 0
    assert "pretrain after 6 steps" in capsys.readouterr().out
    made, model = (
        {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "made", out / "pretrain" / "model")
    )
    assert {"README.md", "model.safetensors", "encoder/model.safetensors"} < made.keys() == model.keys()
    assert all(path.read_bytes() == model[name].read_bytes() for name, path in made.items())


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "encoder/model.safetensors"])
@pytest.mark.parametrize("other", ["/dev/zero", "pipe"])
def test_a_device_behind_a_link_is_not_copied(
    other: str, name: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(out / "pretrain", tmp_path / "out" / "pretrain")
    shutil.copy(out / "config.yaml", tmp_path / "out")
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "out" / "pretrain" / "model" / name
    path.unlink()
    path.symlink_to(tmp_path / other)
    assert run(["export", "--out", str(tmp_path / "out"), "--stage", "pretrain", "--to", str(tmp_path / "made")]) == 1
    what = "a named pipe" if other == "pipe" else "a device"
    assert f"cannot copy {path} to {tmp_path / 'made'}: {what}, not a regular file." in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("refused", ["encoder/config.json", "encoder"])
def test_a_file_that_cannot_be_copied_is_one_sentence(
    refused: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = out / "pretrain" / "model"

    def attempt(act: Callable[..., Any], source: Any, *more: Any) -> Any:
        if not isinstance(source, int) and os.fspath(source) == str(model / refused):
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(source))
        return act(source, *more)

    copy, scan = shutil.copyfile, os.scandir
    monkeypatch.setattr(shutil, "copyfile", lambda source, target, **_: attempt(copy, source, target))
    monkeypatch.setattr(os, "scandir", lambda path: attempt(scan, path))
    code = run(["export", "--out", str(out), "--stage", "pretrain", "--to", str(tmp_path / "made")])
    said = capsys.readouterr().err
    assert code == 1 and list(tmp_path.iterdir()) == []
    assert said == f"sdfast: cannot copy {model / refused} to {tmp_path / 'made'}: input/output error.\n"


def test_a_checkpoint_becomes_a_model(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("distill", "finetune"):
        assert run(["export", "--out", str(out), "--stage", stage, "--to", str(tmp_path / stage)]) == 0
        assert f"{stage} after 4 steps" in capsys.readouterr().out
        module = load_classifier(tmp_path / stage)[0] if stage == "finetune" else load_mae(str(tmp_path / stage)).module
        path = checkpoint.newest(out / stage / "checkpoints")
        assert path is not None
        found = checkpoint.Checkpoint.open(path)
        assert all(torch.equal(value, found.read(f"module/{name}")) for name, value in module.state_dict().items())
        ended = load_file(out / stage / "model" / "model.safetensors")
        exported = load_file(tmp_path / stage / "model.safetensors")
        assert set(exported) == set(ended) and any(not torch.equal(exported[name], ended[name]) for name in ended)


@pytest.mark.parametrize(
    ("stage", "to", "words"),
    [
        ("finetun", "new", "neither a model nor a checkpoint; did you mean 'finetune'"),
        ("pretrain", ".", "is there already"),
    ],
)
def test_what_cannot_be_exported(
    stage: str, to: str, words: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "--out", str(out), "--stage", stage, "--to", str(tmp_path / to)]) == 2
    assert words in capsys.readouterr().err
    assert run(["export", "--out", str(tmp_path), "--to", str(tmp_path / "new")]) == 2
