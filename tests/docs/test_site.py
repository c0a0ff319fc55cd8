"""What the documentation's site is made of beside its pages; that it builds, strictly, is `make docs`'s to say."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from page_blocks import blocks_of, commands_of

from sdfast.cli.main import app
from sdfast.config import Config

INLINE = re.compile(r"(?<!`)`(sdfast [^`]+)`")
ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hooks, as mkdocs loads them."""
    pytest.importorskip("mkdocs")
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    import docs_site

    return docs_site


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that some words call, and the words behind its name."""
    command, rest = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_on_a_page_have_the_options_that_they_are_given(document: Path) -> None:
    text = document.read_text("utf-8")
    blocks = [block.text for block in blocks_of(text) if block.kind == "bash"]
    blocks += [" ".join(command.split()) for command in INLINE.findall(text)]
    for words in (words for block in blocks for words in commands_of(block) if words[0] == "sdfast"):
        if "NAME" in words or not words[1].isalpha():  # a placeholder, or what a command prints
            continue
        command, rest = command_of(words)
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        given = {word.strip("[]").partition("=")[0] for word in rest if word.strip("[").startswith("--")}
        assert given <= known | {"--help"}, words


def test_the_configuration_page_has_every_key_and_the_commands_page_every_option(site: Any) -> None:
    page = site.docs_reference.configuration()
    nested = ("deepspeed",)  # a key that holds whatever is given
    assert not [key for key in Config().flat() if f"| `{key}` |" not in page and key.partition(".")[0] not in nested]
    assert "| `finetune.knn.k` | whole number ≥ 1" in page and "(counts where finetune.method=knn)" in page
    page = site.docs_reference.commands()
    of_all = page.partition("\n## ")[0]
    for name in ("train", "eval", "cache build", "config show", "study"):
        command, _ = command_of(["sdfast", *name.split()])
        part = page.partition(f"## sdfast {name}\n")[2].partition("\n## ")[0]
        options = [each.opts[0] for each in command.params if each.opts[0].startswith("--") and not each.hidden]
        assert options and not [option for option in options if f"`{option}`" not in of_all + part], name


def test_links_of_the_repository_lead_to_pages_of_the_site(site: Any) -> None:
    page = Path("docs/step.md")
    linked = site.linked_file(page, "../benchmarks/results/neighbours_cpu.md")
    assert linked == Path("benchmarks/results/neighbours_cpu.md")
    assert site.linked_file(page, "https://example.org/x.md") is None and site.linked_file(page, "absent.md") is None
    places = {name: site.site_path(Path(name)) for name in ("README.md", "docs/step.md", "examples/loss_lightning.py")}
    assert places == {
        "README.md": "index.md",
        "docs/step.md": "step.md",
        "examples/loss_lightning.py": "examples/loss_lightning.py.md",
    }
    assert [site.repository_path(uri) for uri in ("index.md", "step.md", "CONTRIBUTING.md")] == [
        Path("README.md"),
        Path("docs/step.md"),
        Path("CONTRIBUTING.md"),
    ]


def test_a_formula_is_a_picture_in_the_colour_of_the_text(site: Any) -> None:
    shown = site.formula(r"L = \frac{1}{B}\sum_b \Vert s_b - t_b \Vert_2^2", "math", "math", {}, None)
    assert shown.count("<svg") == 1 and 'fill="currentColor"' in shown and 'aria-label="L = \\frac' in shown
    assert "http" not in shown
