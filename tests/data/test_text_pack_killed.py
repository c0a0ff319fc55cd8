"""A process that dies while it builds a pack of texts leaves the old pack or none."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from text_samples import records, roberta_tokenizer, write_json_lines

from sdfast.data.config import DataConfig
from sdfast.errors import UserError
from sdfast.modalities.texts.pack import TextPack
from sdfast.modalities.texts.tokenization import load_tokenizer

BUILD = """
import os, signal, sys
from pathlib import Path
from sdfast.data.config import DataConfig
from sdfast.modalities.texts.pack import TextPack
from sdfast.modalities.texts.tokenization import load_tokenizer

source, tokenizer, directory, moment = sys.argv[1:]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
rename, calls = os.rename, []

def counted(one, other):
    rename(one, other)
    if directory in (str(one), str(other)):
        calls.append(other)
    if moment == f"rename {len(calls)}":
        die()

os.rename = counted
progress = lambda done, total: die() if moment == f"documents {done}" else None
TextPack.prepare(source, Path(directory), load_tokenizer(tokenizer), DataConfig(), print, progress)
"""


@pytest.mark.parametrize("moment", ["documents 128", "rename 2"])
def test_killed(tmp_path: Path, moment: str) -> None:
    """Renames of the pack: 1 moves the old one aside, 2 puts the new one in its place."""
    source, directory = write_json_lines(tmp_path / "x.jsonl", records(300)), tmp_path / "out" / "pack"
    roberta_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    old = None
    if moment != "documents 128":
        old = TextPack.prepare(str(source), directory, tokenizer, DataConfig(), print)
        write_json_lines(source, records(300, first=5000))
    arguments = [str(source), str(tmp_path / "tokenizer"), str(directory), moment]
    ended = subprocess.run([sys.executable, "-c", BUILD, *arguments], cwd=Path.cwd())
    assert ended.returncode == -signal.SIGKILL
    if old is None:
        with pytest.raises(UserError, match="holds no pack"):
            TextPack.open(directory)
    else:
        assert (TextPack.open(directory).fingerprint == old.fingerprint) == (moment != "rename 2")
    new = TextPack.prepare(str(source), directory, tokenizer, DataConfig(), print)
    assert TextPack.open(directory).fingerprint == new.fingerprint and len(new.split("train")) == 224
    assert [path.name for path in directory.parent.iterdir()] == ["pack"]
