"""What documents and comments name is there: modules and what is in them, files, links, keys and their defaults."""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from sdfast.config import Config
from sdfast.config.whole import valid_keys

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("sdfast", "tests", "benchmarks", "csrc", "docs", "examples", "scripts", "recipes")
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "benchmarks/README.md",
    ROOT / "recipes/README.md",
]
SOURCES = [path for folder in ("sdfast", "benchmarks", "examples", "scripts") for path in (ROOT / folder).rglob("*.py")]
NO_FILES = re.compile(r"sdfast/lib\b.*|examples/s")  # what a build leaves, and a rate

NAME = re.compile(r"(?<![\w.])sdfast(?:\.[A-Za-z_]\w*)+")
IMPORT = re.compile(r"from (sdfast[\w.]*) import ([\w, ]+)")
PATH = re.compile(rf"(?<![\w./<-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w(?![\w<*{{])")
PYTHON_FILE = re.compile(r"`([\w/]+\.py)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECTIONS = ("data", "pretrain", "distill", "finetune", "teacher", "engine", "zero")
KEY = re.compile(rf"(?<![\w./])((?:{'|'.join(SECTIONS)})(?:\.[a-z]\w*)+)(?:=(\[[^\]]*\]|[\w./+-]+))?")
WORDS = ("all", "the model's", "in new packs", "found", "squash", "none")  # for a default that is not a value
PLACEHOLDER = re.compile(r"[A-Z]+|k|\.\.\.")  # as in teacher.views=K


def said(source: Path) -> str:
    """A document, or what comments and docstrings of a source say."""
    text = source.read_text("utf-8")
    if source.suffix == ".md":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(
        token.string
        for token in tokens
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.endswith('"""'))
    )


def is_there(name: str) -> bool:
    """Whether a dotted name is that of a module or of something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
            reduce(getattr, parts[count:], found)
        except (ModuleNotFoundError, AttributeError):
            continue
        return True
    return False


def each_table(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Header and rows of every table of a document."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip()[1:-1].split("|")] for line in block.splitlines())
        yield header, rows


@pytest.mark.parametrize("sources", [DOCUMENTS, SOURCES], ids=["documents", "sources"])
def test_names_and_files_are_there(sources: list[Path]) -> None:
    names, paths = {}, {}
    for source in sources:
        text = said(source)
        names |= dict.fromkeys(NAME.findall(text), source)
        for module, members in IMPORT.findall(text):
            names |= dict.fromkeys((f"{module}.{member.strip()}" for member in members.split(",")), source)
        paths |= dict.fromkeys(PATH.findall(text), source)
    assert not {name: source for name, source in names.items() if not is_there(name)}
    assert not {
        path: where for path, where in paths.items() if not NO_FILES.fullmatch(path) and not (ROOT / path).exists()
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_and_python_files_are_there(document: Path) -> None:
    text = document.read_text("utf-8")
    files = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert not [
        name for name in PYTHON_FILE.findall(text) if not any(f"/{path}".endswith(f"/{name}") for path in files)
    ]
    for link in (link for link in LINK.findall(text) if "://" not in link):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], (
            link
        )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_keys_and_their_values_fit(document: Path) -> None:
    known = valid_keys()
    sections = {key.rsplit(".", 1)[0] for key in known}
    for key, value in KEY.findall(document.read_text("utf-8")):
        if key.endswith((".md", ".json")):
            continue
        assert key in known or key in sections, key
        if value and not PLACEHOLDER.fullmatch(value) and not key.startswith("zero."):  # those go together with others
            Config().changed([f"{key}={value.rstrip('.')}"])


def test_docstrings_can_be_read_alone() -> None:
    for path in (ROOT / "sdfast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                begins = (ast.get_docstring(node) or "").partition(" ")[0]
                assert begins not in ("Of", "See"), f"{path}:{node.lineno} {node.name} says of what, and not what"


def field_of(key: str) -> Any:
    *sections, name = key.split(".")
    return reduce(lambda section, part: section.model_fields[part].annotation, sections, Config).model_fields[name]


def choices(annotation: Any) -> set[str]:
    """The words of a key that takes some."""
    return {word for each in get_args(annotation) for word in ({each} if isinstance(each, str) else choices(each))}


def test_tables_of_keys_have_their_defaults_and_modality() -> None:
    seen = set()
    defaults, of_images = Config().flat(), Config().resolved("images").flat()
    for document in DOCUMENTS:
        for header, rows in each_table(document.read_text("utf-8")):
            if "default" not in header:
                continue
            at = next(header.index(name) for name in ("key", "keys") if name in header)
            for row in rows:
                keys = re.findall(r"`([\w.]+)`", row[at])
                keys = [keys[0].rsplit(".", 1)[0] + key if key.startswith(".") else key for key in keys]
                shown = [each.strip("` ") for each in row[header.index("default")].split(" (")[0].split(",")]
                assert len(shown) == len(keys), row
                for key, value in zip(keys, shown, strict=True):
                    given = yaml.safe_load(value) if not re.fullmatch(r"[\d.]+e-?\d+", value) else float(value)
                    assert given in (defaults[key], of_images[key]) or (defaults[key] is None and value in WORDS), key
                    of = (field_of(key).json_schema_extra or {}).get("of")
                    assert row[-1].startswith(f"{of}:") or of != "texts", key
                    assert not row[-1].startswith(("texts:", "images:")) or row[-1].startswith(f"{of}:"), key
                seen.update(keys)
    assert len(seen) > 30


def test_tables_of_values_have_them_all() -> None:
    seen = set()
    for document in DOCUMENTS:
        for header, rows in each_table(document.read_text("utf-8")):
            key = re.fullmatch(r"`(\w+\.\w+)`", header[0])
            if key and (words := choices(field_of(key[1]).annotation)):
                listed = {word for row in rows for word in re.findall(r"^`(\w+)`", row[0])}
                assert listed | {"auto"} == words | {"auto"}, key[1]
                seen.add(key[1])
    engine = {"engine.attention", "engine.fp32_products"}
    data = {"data.pixels", "data.problem_type", "data.range", "data.resize"}
    assert seen == {*data, "teacher.dtype", "teacher.residency", *engine}
