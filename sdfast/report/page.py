"""A page of panels as one HTML file: style and script are in it, and nothing is loaded from anywhere."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from sdfast import durable
from sdfast.report.panel import Panel, paragraph

MOST_BYTES = 5_000_000  # of a page
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Page:
    """What `render` makes a file of.

    Attributes:
        title: as of the run.
        verdict: the sentence that a person reads first.
        panels: in their order.
        running: the page is written anew while something runs: it reloads itself, until it is done or there is no news.
        about: a line above the title, as the model and the data.
        notes: sentences below the verdict: what it was compared with, how the interval was computed.
        tiles: a few numbers with their names, such as `("accuracy", "85.3 %")`.
        progress: share of the whole that is done while it runs, from 0 to 1; None where nobody knows.
        state: a word or two on how far it is, as `done` or `distill 40 of 100`.
        at: when it was written, in seconds since 1970.
        every: seconds after which a page that is running loads itself again.
        patience: seconds without news after which a reader is told that there are none.
    """

    title: str
    verdict: str
    panels: Sequence[Panel]
    running: bool = False
    about: str = ""
    notes: Sequence[str] = ()
    tiles: Sequence[tuple[str, str]] = ()
    progress: float | None = None
    state: str = ""
    at: float = field(default_factory=time.time)
    every: float = 10.0
    patience: float = 180.0


def render(page: Page) -> str:
    """The HTML of a page, of at most 5 MB: panels that are too large for that are left out, and it is said."""
    text = _rendered(page)
    panels = list(page.panels)
    while len(text.encode("utf-8", "replace")) > MOST_BYTES and any(panels):
        largest = max(range(len(panels)), key=lambda place: len(panels[place].body))
        if len(panels[largest].body) < 1000:
            break
        told = paragraph("This part is left out, as the page would be larger than 5 MB with it.")
        panels[largest] = replace(panels[largest], body=told)
        text = _rendered(replace(page, panels=panels))
    return text


def save(page: Page, path: Path) -> Path:
    """Write a page durably: a reader sees the one before or this one, whole.

    Raises:
        RunError: it cannot be written.
    """
    durable.write_bytes(path, render(page).encode("utf-8", "replace"))
    return path


def ticked(text: str) -> Markup:
    """A text in which what stands between backticks is code."""
    code = r"<code>\1</code>"
    return text if isinstance(text, Markup) else Markup(re.sub(r"`([^`]+)`", code, str(escape(text))))


def _rendered(page: Page) -> str:
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(page.at))
    text: str = _environment().get_template("page.html").render(page=page, written=written)
    return text


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader

    loaded = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    loaded.filters["ticked"] = ticked
    loaded.globals["include_raw"] = lambda name: Markup((_TEMPLATES / name).read_text("utf-8"))
    return loaded
