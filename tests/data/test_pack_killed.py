"""A process that dies while it builds a pack leaves the old pack or none."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from data_samples import write_classes

from sdfast.data.config import DataConfig
from sdfast.data.pack import open_pack, prepare_pack
from sdfast.data.transform import Transform
from sdfast.errors import UserError

BUILD = """
import os, signal, sys
from pathlib import Path
from sdfast.data.config import DataConfig
from sdfast.data.pack import prepare_pack
from sdfast.data.transform import Transform

source, directory, moment = sys.argv[1:]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
rename, calls = os.rename, []

def counted(one, other):
    rename(one, other)
    if directory in (str(one), str(other)):
        calls.append(other)
    if moment == f"rename {len(calls)}":
        die()

os.rename = counted
progress = lambda done, total: die() if moment == f"image {done}" else None
prepare_pack(source, Path(directory), Transform(6, 8), DataConfig(), print, progress)
"""


def build_and_die(source: Path, directory: Path, moment: str) -> None:
    ended = subprocess.run([sys.executable, "-c", BUILD, str(source), str(directory), moment], cwd=Path.cwd())
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["image 1", "image 16", "rename 1", "rename 2"])
def test_killed(tmp_path: Path, moment: str) -> None:
    """Renames of the pack: 1 moves the old one aside, 2 puts the new one in its place."""
    source, directory = write_classes(tmp_path / "x", {"a": 8, "b": 8}), tmp_path / "out" / "pack"
    if not moment.startswith("rename"):
        build_and_die(source, directory, moment)
        with pytest.raises(UserError, match="holds no pack"):
            open_pack(directory)
    old = prepare_pack(str(source), directory, Transform(6, 8), DataConfig(), print)
    write_classes(source, {"a": 2}, first_seed=70)
    build_and_die(source, directory, moment)
    left = open_pack(directory)
    assert (left.fingerprint == old.fingerprint) == (moment != "rename 2")
    new = prepare_pack(str(source), directory, Transform(6, 8), DataConfig(), print)
    assert new.fingerprint != old.fingerprint and open_pack(directory).fingerprint == new.fingerprint
    assert [path.name for path in directory.parent.iterdir()] == ["pack"]
