"""Every change of `checkpoint.json` is noticed: the one before it is taken, or the stage starts anew: the same bits."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_json import changed, leaves

from sdfast.engine.loop import Trainer
from sdfast.store import checkpoint

INPUTS: dict[str, Any] = {"identity": "f", "classes": ["a", "b"]}
LIES: list[Any] = [None, True, -1, 3, 10**40, 0.5, 1e308, float("nan"), "", "x", "../state", [], {}, [1], {"a": 1}]


def write(directory: Path, step: int) -> Path:
    """A checkpoint; where its manifest lies."""
    values = {"seconds": 1.5, "seen": 16 * step, "best": {"step": 1, "scores": {"dev_accuracy": 0.5}}}
    checkpoint.save(directory, step, INPUTS, [("w", lambda: torch.full((3,), float(step)))], values, keep=9)
    return directory / f"step-{step:08d}" / "checkpoint.json"


def found_step(directory: Path) -> int:
    path = checkpoint.newest(directory, INPUTS)
    if path is None:
        return 0
    found = checkpoint.Checkpoint.open(path)
    assert found.read("w").tolist() == [float(found.step)] * 3 and found.values["seen"] == 16 * found.step
    return found.step


def test_every_change_of_the_manifest_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1)
    manifest = write(tmp_path, 2)
    original = json.loads(manifest.read_text())
    assert found_step(tmp_path) == 2 and not caplog.records
    count = 0
    for path in leaves(original):
        for lie in LIES:
            value = changed(original, path, lie)
            if json.dumps(value) != json.dumps(original):
                manifest.write_text(json.dumps(value))
                assert found_step(tmp_path) == 1, (path, lie)
                count += 1
        if path != ("sha256",):  # without it, it is what an earlier version wrote
            manifest.write_text(json.dumps(changed(original, path)))
            assert found_step(tmp_path) == 1, path
    assert count > 250 and all("skipping the damaged checkpoint" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b'"\\ud800"'],
    ids=range(10),
)
def test_a_manifest_that_is_none_is_skipped(tmp_path: Path, text: bytes) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2).write_bytes(text)
    assert found_step(tmp_path) == 1


def test_what_is_no_file_is_skipped_and_never_waited_for(tmp_path: Path) -> None:
    write(tmp_path, 1)
    manifest = write(tmp_path, 2)
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        manifest.unlink() if not manifest.is_dir() else manifest.rmdir()
        make(manifest)
        assert found_step(tmp_path) == 1


@pytest.mark.parametrize("name", ["checkpoint.json", "state-00000.safetensors"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ESTALE])
def test_one_that_cannot_be_read_just_now_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    """What went on from the one before would drop it."""
    write(tmp_path, 1)
    newest = write(tmp_path, 2).parent
    opened = os.open

    def failing_to_open(path: Any, *arguments: Any, **more: Any) -> int:
        if Path(path) == newest / name:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing_to_open)
        with pytest.raises(OSError) as caught:
            checkpoint.newest(tmp_path)
    assert caught.value.errno == number and caught.value.filename == str(newest / name)
    assert checkpoint.newest(tmp_path) == newest


def test_one_of_an_earlier_version_is_resumed_and_its_step_still_believed_to_its_folder_alone(tmp_path: Path) -> None:
    manifest = write(tmp_path, 2)
    value = json.loads(manifest.read_text())
    canonical = json.dumps({k: v for k, v in value.items() if k != "sha256"}, sort_keys=True, separators=(",", ":"))
    assert value.pop("sha256") == hashlib.sha256(canonical.encode()).hexdigest()
    manifest.write_text(json.dumps(value))
    assert found_step(tmp_path) == 2
    manifest.write_text(json.dumps({**value, "step": 3}))
    assert found_step(tmp_path) == 0
    manifest.write_text(json.dumps({**value, "inputs": {**INPUTS, "identity": "g"}}))
    assert found_step(tmp_path) == 0


def test_a_checkpoint_under_another_steps_name_is_not_taken(tmp_path: Path) -> None:
    write(tmp_path, 1)
    shutil.move(write(tmp_path, 2).parent, tmp_path / "step-00000007")
    assert found_step(tmp_path) == 1


def test_a_changed_step_gives_the_weights_of_an_undisturbed_run(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole = make_trainer("pretrain", directory=tmp_path / "whole")
    whole.run()
    make_trainer("pretrain", directory=tmp_path / "cut", checkpoint_steps=5).run()
    manifest = tmp_path / "cut" / "checkpoints" / "step-00000010" / "checkpoint.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**value, "step": 11}))
    again = make_trainer("pretrain", directory=tmp_path / "cut")
    assert again.steps_done == 5
    again.run()
    for name, parameter in whole.objective.module.state_dict().items():
        assert torch.equal(parameter, again.objective.module.state_dict()[name]), name
