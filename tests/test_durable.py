"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from sdfast import durable
from sdfast.errors import RunError, UserError


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


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RuntimeError("unable to mmap 64 bytes from file <x>: Cannot allocate memory (12)"), errno.ENOMEM),
        (RuntimeError("unable to open file <x> in read-only mode: Read-only file system (30)"), errno.EROFS),
        (SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)")'), errno.ENOSPC),
        (MemoryError("Cannot allocate memory (os error 12)"), errno.ENOMEM),
        (OSError("Input/output error (os error 5)"), errno.EIO),
        (OSError(errno.EIO, "Input/output error"), errno.EIO),
        (OSError("no number"), None),
    ],
)
def test_errors_with_the_number_in_their_text(tmp_path: Path, error: Exception, number: int | None) -> None:
    """The texts are those that safetensors and torch gave."""
    path = tmp_path / "model.safetensors"
    with pytest.raises(OSError) as caught, durable.numbered_errors(path):
        raise error
    assert caught.value.errno == number
    assert caught.value.filename == (None if number is None else str(path))
    assert number is not None or str(caught.value) == "no number"
    with pytest.raises(RuntimeError, match="of 3 tensors"), durable.numbered_errors(path):
        raise RuntimeError("of 3 tensors (2 files)")


def test_a_file_that_safetensors_cannot_read_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error") as caught, durable.numbered_errors(tmp_path):
        load_file("/proc/cpuinfo")  # a regular file that cannot be mapped
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_a_disk_that_cannot_be_written_is_one_sentence(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(RunError, match=words) as caught, durable.explain_os_error(tmp_path / "x"):
        raise OSError(number, "as the system says")
    assert str(tmp_path / "x") in str(caught.value)


def test_an_error_of_another_file_is_not_called_one_of_writing(tmp_path: Path) -> None:
    """Such as of an image that is read while the pack is written."""
    out, photos = tmp_path / "run" / "pack", tmp_path / "photos"
    for name in (photos / "a.png", tmp_path / "unpack" / "a.png", tmp_path / "run" / "repack"):
        with pytest.raises(PermissionError) as caught, durable.explain_os_error(out):
            raise PermissionError(errno.EACCES, "as the system says", str(name))
        assert caught.value.filename == str(name)
    staged = [out / "a.npy", out.with_name(".staging-pack") / "a.npy", out.with_name(".old-pack"), out, out.parent]
    for own in (*map(str, staged), str(tmp_path), None):
        with pytest.raises(RunError, match=f"cannot write {out}: permission is denied"), durable.explain_os_error(out):
            raise PermissionError(errno.EACCES, "as the system says", own)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOTDIR, errno.ENOENT])
def test_any_error_of_writing_names_the_path(tmp_path: Path, number: int) -> None:
    with pytest.raises(RunError, match="cannot write") as caught, durable.explain_os_error(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"cannot write {tmp_path / 'x'}: {os.strerror(number).lower()}."


def test_what_bears_the_name_of_a_staged_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    staging = tmp_path / ".staging-value.json"
    staging.symlink_to("mine")
    durable.write_json(tmp_path / "value.json", {"a": 1})
    os.mkfifo(staging)
    durable.write_json(tmp_path / "value.json", {"a": 2})
    assert durable.read_json(tmp_path / "value.json") == {"a": 2} and (tmp_path / "mine").read_text() == "precious"


def test_json_that_is_no_file_or_never_ends(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    for text in (
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 65 + "]" * 65,
        "1" * 10_000,
    ):
        path.write_text(text)
        assert durable.read_json(path) is None
    path.write_text("[" * 60 + "]" * 60)
    assert json.dumps(durable.read_json(path)) == "[" * 60 + "]" * 60
    for make, words in (
        (os.mkfifo, "a named pipe, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a regular file"),
        (os.mkdir, "is a directory"),
    ):
        path.unlink()
        make(path)
        with pytest.raises(UserError, match=f"{path} cannot be read: {words}"):
            durable.read_json(path)


def test_a_seal_is_of_all_else(tmp_path: Path) -> None:
    value = {"b": [1, 0.1], "a": {"c": None}}
    sealed = durable.sealed(value)
    assert sealed["sha256"] == hashlib.sha256(b'{"a":{"c":null},"b":[1,0.1]}').hexdigest()
    durable.check_seal(sealed)
    durable.check_seal(value)  # of an earlier version
    durable.write_json(tmp_path / "v.json", sealed)
    durable.check_seal(durable.load_json(tmp_path / "v.json"))
    with pytest.raises(ValueError, match="differs from its own digest"):
        durable.check_seal({**sealed, "b": [1, 0.2]})


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert durable.sha256_file(tmp_path / "x").startswith("ba7816bf")
    assert durable.sha256_json({"b": 1, "a": 2}) == durable.sha256_json({"a": 2, "b": 1})
