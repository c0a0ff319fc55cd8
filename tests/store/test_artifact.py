"""What packs, banks, checkpoints and results have in common: files told by size and digest, and what is foreign."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path
from typing import Any

import pytest

import sdfast.store
from sdfast.durable import remove_directory, sha256_file, sweep
from sdfast.store.artifact import described, first_changed, first_changed_key, first_cut, first_foreign

LOWER = {"sdfast.durable", "sdfast.errors", "sdfast.log", "sdfast.portable", "sdfast.regular"}


def test_it_stands_on_the_lowest_layer_alone() -> None:
    for path in Path(sdfast.store.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("sdfast"):
                names = [f"sdfast.{alias.name}" for alias in node.names] if node.module == "sdfast" else [node.module]
                assert all(name in LOWER or name.startswith("sdfast.store") for name in names), (path, names)


def test_files_are_told_by_size_and_digest(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        path.write_bytes(path.name.encode())
    entries = [(path, described(path)) for path in paths]
    sizes, digests = [[(path, entry[key]) for path, entry in entries] for key in ("bytes", "sha256")]
    assert first_cut(sizes) is None and first_changed(digests) is None
    paths[1].write_bytes(b"TWO")
    assert first_cut(sizes) is None and first_changed(digests) == paths[1]
    paths[0].write_bytes(b"longer")
    assert first_cut(sizes) == first_changed(digests) == paths[0]
    for make in (lambda path: None, Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)):
        paths[0].rmdir() if paths[0].is_dir() else paths[0].unlink(missing_ok=True)
        make(paths[0])
        assert first_cut(sizes) == first_changed(digests) == paths[0]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_file_that_cannot_be_looked_at_just_now_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"one")
    digest = sha256_file(path)

    def refused(self: Path, **more: Any) -> Any:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "stat", refused)
    for look in (lambda: first_cut([(path, 3)]), lambda: first_changed([(path, digest)])):
        with pytest.raises(OSError) as caught:
            look()
        assert caught.value.errno == number and caught.value.filename == str(path)


def test_the_first_that_differs_is_named(tmp_path: Path) -> None:
    assert first_changed_key({"a": 1, "b": None}, {"a": 1}) is None
    assert first_changed_key({"a": 1, "b": 2}, {"b": 2, "c": 3}) == "c"
    assert first_changed_key({"a": 1, "b": 2}, {"b": 2}) == "a"
    for name in ("rows.bin", "thesis.txt", "notes"):
        (tmp_path / name).touch()
    assert first_foreign(tmp_path, lambda name: name.endswith(".bin")) == "notes"
    assert first_foreign(tmp_path / "rows.bin", lambda name: False) is None
    assert first_foreign(tmp_path / "absent", lambda name: False) is None


def test_what_is_half_removed_is_swept_and_a_persons_files_stay(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-2").write_text("mine")
    (tmp_path / "step-3").symlink_to(tmp_path)
    for name in ("step-1", "step-2", "step-3", "absent"):
        remove_directory(tmp_path / name)
    for name in (".staging-step-7", ".old-step-8", ".old-other"):
        (tmp_path / name).mkdir()
    sweep(tmp_path, "step-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".old-other", "step-2", "step-3"]
