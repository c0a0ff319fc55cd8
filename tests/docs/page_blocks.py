"""What a page of Markdown says to do: its blocks of commands and of Python, and what its comments say to the tests.

Comments are `<!-- test: WORD ... -->`, for the page from there on:

    files NAME ...          put these in place first (`page_files.py` makes them)
    shorter KEY=VALUE ...   keys that every run gets behind its own
    instead of A: B         in blocks, B stands for A
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COMMENT = re.compile(r"<!-- test: (files|shorter|instead of) (.*?) -->", re.DOTALL)
PROGRAMS = ("sdfast", "torchrun", "deepspeed", "srun", "make", "pip", "pytest", "python")


@dataclass(frozen=True)
class Block:
    """Some lines of a page: `kind` is the fence's word, or `bash` for indented commands."""

    kind: str
    text: str
    line: int


@dataclass
class Page:
    """The blocks of a page in order, and what its comments say."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    shorter: list[str] = field(default_factory=list)
    instead: dict[str, str] = field(default_factory=dict)


def read_page(path: Path) -> Page:
    text = path.read_text("utf-8")
    page = Page(path)
    for word, rest in COMMENT.findall(text):
        if word == "instead of":
            old, _, new = rest.partition(": ")
            page.instead[old] = new
        else:
            getattr(page, word).extend(rest.split())
    page.blocks = list(blocks_of(text))
    return page


def blocks_of(text: str) -> Iterator[Block]:
    """Fenced blocks, and indented ones whose first word is a program (or a setting before one)."""
    lines, at = text.splitlines(), 0
    while at < len(lines):
        begin, ends = at, r"```\s*$"
        if fence := re.fullmatch(r"```(\w*).*", lines[at]):
            at += 1
            while not re.fullmatch(ends, lines[at]):
                at += 1
            yield Block(fence[1], "\n".join(lines[begin + 1 : at]), begin + 2)
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and lines[at].startswith("    "):
                at += 1
            block = "\n".join(line[4:] for line in lines[begin:at])
            words = [word for word in block.split() if not re.fullmatch(r"\w+=\S+", word)]
            if words[0] in PROGRAMS:
                yield Block("bash", block, begin + 1)
            continue
        at += 1


def commands_of(block: str) -> list[list[str]]:
    """The words of each command of a block, without comments; a backslash joins lines."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
