"""A process that dies while it builds a pack leaves the old pack or none."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from data_samples import write_classes

from sdfast.data.config import DataConfig
from sdfast.errors import UserError
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.transform import Transform

BUILD = """
import os, signal, sys
from pathlib import Path
from sdfast.data.config import DataConfig
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.transform import Transform

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
ImagePack.prepare(source, Path(directory), Transform(6, 8), DataConfig(), print, progress)
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
            ImagePack.open(directory)
    old = ImagePack.prepare(str(source), directory, Transform(6, 8), DataConfig(), print)
    write_classes(source, {"a": 2}, first_seed=70)
    build_and_die(source, directory, moment)
    left = ImagePack.open(directory)
    assert (left.fingerprint == old.fingerprint) == (moment != "rename 2")
    new = ImagePack.prepare(str(source), directory, Transform(6, 8), DataConfig(), print)
    assert new.fingerprint != old.fingerprint and ImagePack.open(directory).fingerprint == new.fingerprint
    assert [path.name for path in directory.parent.iterdir()] == ["pack"]
