"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from sdfast import durable
from sdfast.errors import RunError


def test_a_failed_write_leaves_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with durable.staged_directory(target) as staging:
        (staging / "a").write_text("old")

    def die_while_writing() -> None:
        with durable.staged_directory(target) as staging:
            (staging / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die_while_writing()
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_death_between_the_two_renames_is_recovered(tmp_path: Path) -> None:
    (tmp_path / ".old-model").mkdir()
    (tmp_path / ".old-model" / "a").write_text("old")
    durable.recover_directory(tmp_path / "model")
    assert (tmp_path / "model" / "a").read_text() == "old"
    (tmp_path / ".old-model").mkdir()
    durable.recover_directory(tmp_path / "model")
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert not (tmp_path / ".old-model").exists()


def test_json_is_read_back_and_torn_json_is_none(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.json"
    durable.write_json(path, {"a": 1})
    assert durable.read_json(path) == {"a": 1}
    path.write_text(json.dumps({"a": 1})[:-1])
    assert durable.read_json(path) is None
    assert durable.read_json(tmp_path / "absent") is None


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_a_disk_that_cannot_be_written_is_one_sentence(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(RunError, match=words) as caught, durable.explain_os_error(tmp_path / "x"):
        raise OSError(number, "as the system says")
    assert str(tmp_path / "x") in str(caught.value)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert durable.sha256_file(tmp_path / "x").startswith("ba7816bf")
    assert durable.sha256_json({"b": 1, "a": 2}) == durable.sha256_json({"a": 2, "b": 1})
