"""The parts of a report: a panel, and the tables, pictures and facts that stand in one."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape

_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif", b"<": "svg+xml"}


@dataclass(frozen=True)
class Panel:
    """One part of a report.

    Attributes:
        key: its anchor: small letters, digits and dashes, once in a page.
        title: above it.
        body: HTML; whatever comes from elsewhere is escaped in it (`markupsafe.escape`, or by what is below).
        lead: a sentence or two above the body, that say what is seen; escaped where it is no `Markup`.
        wide: takes the whole width of the page, and not the half where there is room for two.
    """

    key: str
    title: str
    body: Markup
    lead: str = ""
    wide: bool = False


class Shown(NamedTuple):
    """A cell that is sorted by a number and shown as a text."""

    value: float
    text: str | Markup


Cell = Shown | str | Markup | float | None


def number(value: float, digits: int = 4) -> str:
    """A number as a person reads it: whole ones with commas, others with some significant digits."""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}"


def percent(share: float, decimals: int = 1) -> str:
    """A share as per cent: 0.853 -> 85.3 %."""
    return f"{100 * share:.{decimals}f} %"


def duration(seconds: float) -> str:
    """A time in words: 8.2 s, 12 min, 3 h 5 min."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    sortable: bool = False,
    caption: str = "",
    tight: bool = False,
) -> Markup:
    """A table. Numbers are set to the right; where it is sortable, a click on a heading sorts by it.

    Args:
        header: of the columns.
        rows: as many cells each; None is an empty one.
        sortable: whether headings sort, which needs the page's script.
        caption: below it.
        tight: columns are as wide as they have to be, instead of the table as wide as there is room.
    """
    body = [[_cell(each) for each in row] for row in rows]
    rights = [any(row[column][1] for row in body) for column in range(len(header))]
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(
            _right(right), Markup('<button type="button">{}</button>').format(name) if sortable and name else name
        )
        for name, right in zip(header, rights, strict=True)
    )
    lines = Markup("\n").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup("<td{}{}>{}</td>").format(_right(right), key, text)
                for (text, _, key), right in zip(row, rights, strict=True)
            )
        )
        for row in body
    )
    below = Markup('<p class="caption">{}</p>').format(caption) if caption else ""
    kinds = " ".join(["sortable"] * sortable + ["tight"] * tight)
    kind = Markup(' class="{}"').format(kinds) if kinds else ""
    frame = '<div class="scroll"><table{}><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>{}'
    return Markup(frame).format(kind, head, lines, below)


def facts(pairs: Iterable[tuple[str, Cell]]) -> Markup:
    """Names and what they are, in two columns."""
    rows = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(name, _cell(value)[0]) for name, value in pairs)
    return Markup('<dl class="facts">{}</dl>').format(rows)


def figure(picture: bytes | Path | Markup, caption: str = "", alt: str = "", pixelated: bool = False) -> Markup:
    """A picture with a caption below it.

    Args:
        picture: PNG, WebP, JPEG or SVG, or a file of one; or SVG or HTML that is ours, as `Markup`.
        caption: below it; may be `Markup`.
        alt: what is to be seen, for who does not see it.
        pixelated: enlarge it by whole pixels, as small images of a data set.

    Raises:
        ValueError: it is none of these.
        OSError: the file cannot be read.
    """
    if isinstance(picture, Markup):
        body = picture
    else:
        data = picture.read_bytes() if isinstance(picture, Path) else picture
        kind = next((kind for start, kind in _KINDS.items() if data.startswith(start)), None)
        if kind is None:
            raise ValueError(f"a picture that begins with {data[:8]!r} is no PNG, WebP, JPEG or SVG")
        encoded = base64.b64encode(data).decode()
        sharp = Markup(' class="pixelated"') if pixelated else ""
        body = Markup('<img{} src="data:image/{};base64,{}" alt="{}">').format(sharp, kind, encoded, alt)
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    return Markup("<figure>{}{}</figure>").format(body, below)


def gallery(figures: Iterable[Markup], least: int = 260) -> Markup:
    """Figures side by side, as many as fit where each is at least so many pixels wide."""
    frame = '<div class="gallery" style="--least:{}px">{}</div>'
    return Markup(frame).format(int(least), Markup("\n").join(figures))


def details(summary: str, body: Markup, opened: bool = False) -> Markup:
    """What is shown after a click on its summary."""
    return Markup("<details{}><summary>{}</summary>{}</details>").format(" open" if opened else "", summary, body)


def paragraph(text: str) -> Markup:
    """Sentences."""
    return Markup("<p>{}</p>").format(text)


def _cell(cell: Cell) -> tuple[Markup, bool, Markup]:
    """What is shown, whether it is a number, and the attribute that it is sorted by."""
    if isinstance(cell, Shown):
        return escape(cell.text), True, Markup(' data-sort="{}"').format(repr(float(cell.value)))
    if isinstance(cell, (int, float)) and not isinstance(cell, bool):
        return escape(number(cell)), True, Markup(' data-sort="{}"').format(repr(float(cell)))
    return escape("" if cell is None else str(cell) if not isinstance(cell, Markup) else cell), False, Markup("")


def _right(right: bool) -> Markup:
    return Markup(' class="n"') if right else Markup("")
