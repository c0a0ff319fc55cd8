"""Every command and every block of Python in README.md and the tutorials runs, in order, in a folder of its own.

Runs are shortened, and models of the hub are small ones with random weights under the same name: the comments of each
page say how (`page_blocks.py`). What is not run as it stands is in NOT_RUN, with the reason.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from page_blocks import Page, commands_of, read_page
from page_files import put_in_place

from sdfast.cli.main import run
from sdfast.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/tutorials").glob("*.md"))]
NOT_RUN = {  # make's targets are there, and `demo` is run below
    "make demo": "its recipe is run by test_the_demo_of_make_runs",
    "make test": "runs this test",
    "pip install": "its extras are looked up in pyproject.toml",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in, on one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def shorten(keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of this process gets these keys behind its own."""
    made = Pipeline.__init__

    def shorter(self: Pipeline, *args: Any, overrides: Any = (), **rest: Any) -> None:
        made(self, *args, overrides=[*overrides, *keys], **rest)

    monkeypatch.setattr(Pipeline, "__init__", shorter)


def execute(words: list[str], page: Page) -> None:
    """One command, as a shell would."""
    program = words[0]
    if program == "sdfast":
        assert run(words[1:]) == 0, words
    elif program == "torchrun":
        pytest.importorskip("deepspeed")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:], *page.shorter]
        subprocess.run([*command, "device=cpu"], check=True, timeout=120)
    elif not_run(words) is None:
        subprocess.run(words, check=True, timeout=60, stdout=subprocess.DEVNULL)


def not_run(words: list[str]) -> str | None:
    """The row of NOT_RUN that a command is in, after a look at what can be looked at without it."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    row = " ".join(words[:2])
    if row == "pip install":
        known = (ROOT / "pyproject.toml").read_text("utf-8")
        for extras in re.findall(r"\[(.*?)\]", " ".join(words)):
            assert all(re.search(rf"^{extra} = \[", known, re.MULTILINE) for extra in extras.split(",")), words
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), words
    else:
        return None
    assert row in NOT_RUN, f"{row}: neither run nor in NOT_RUN"
    return row


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_does_what_it_says(path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = read_page(path)
    shorten(page.shorter, monkeypatch)
    for name in page.files:
        put_in_place(name)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in page.blocks:
        text = block.text
        for old, new in page.instead.items():
            text = text.replace(old, new)
        if block.kind == "python":
            exec(compile("\n" * (block.line - 1) + text, str(path), "exec"), names)
        elif block.kind == "bash":
            for words in commands_of(text):
                execute(words, page)
    assert page.blocks


def test_the_demo_of_make_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    keys = ["pretrain.steps=1", "distill.steps=1", "finetune.steps=1", "data.limit=32"]
    shorten([*keys, *(f"{stage}.batch_size=8" for stage in ("pretrain", "distill", "finetune"))], monkeypatch)
    (words,) = commands_of(recipe[1].replace("$(BIN)/", ""))
    assert run([*words[1:], "--seeds", "1", "--methods", "fine-tuning"]) == 0  # its three arms: tutorials/study.md
    assert "fine-tuning" in capsys.readouterr().out and Path("runs/demo/compare.png").is_file()


def test_everything_that_is_not_run_is_on_a_page() -> None:
    blocks = [block.text for path in PAGES for block in read_page(path).blocks if block.kind == "bash"]
    assert {not_run(words) for block in blocks for words in commands_of(block)} - {None} == set(NOT_RUN)
