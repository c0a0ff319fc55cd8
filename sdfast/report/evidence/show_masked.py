"""The panel of what is hidden and filled in: pictures in a grid, words with the guesses below each other."""

from __future__ import annotations

import base64
from typing import Any

from markupsafe import Markup

from sdfast.report.evidence.stages import TITLES
from sdfast.report.panel import Panel, details, number, paragraph, percent

_OPEN = 3  # texts that are shown at once
_SMALL = 96  # pixels of a side up to which a picture is enlarged by whole pixels


def masked_panel(value: dict[str, Any]) -> Panel | None:
    """The panel; None where no model is left to compare the initial one with."""
    models = value["models"]
    if len(models) < 2:
        return None
    return _pictures(value, models) if value["kind"] == "images" else _words(value, models)


def picture(encoded: str, alt: str, classes: str = "") -> Markup:
    """An image of a few kilobytes, from base64."""
    start = base64.b64decode(encoded[:16])
    kind = "png" if start.startswith(b"\x89PNG") else "webp"
    return Markup('<img class="{}" src="data:image/{};base64,{}" alt="{}">').format(classes, kind, encoded, alt)


def size_of(encoded: str) -> tuple[int, int]:
    """Width and height of an image in base64."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        return image.size


def _pictures(value: dict[str, Any], models: dict[str, Any]) -> Panel:
    rows = value["rows"]
    sharp = "pixelated" if max(size_of(rows[0]["original"])) <= _SMALL else ""
    lines = [("original", [row["original"] for row in rows]), ("masked", [row["masked"] for row in rows])]
    lines += [(TITLES[key], one["pictures"]) for key, one in models.items()]
    cells = [Markup("<span></span>"), *(_head(row) for row in rows)]
    for title, pictures in lines:
        cells.append(Markup('<span class="ev-side">{}</span>').format(title))
        cells += [picture(each, f"{row['name']}: {title}", sharp) for row, each in zip(rows, pictures, strict=True)]
    grid = Markup('<div class="ev-scroll"><div class="ev-grid" style="--count:{}">{}</div></div>').format(
        len(rows), Markup("").join(cells)
    )
    errors = ", ".join(f"{TITLES[key]} {number(one['error'], 3)}" for key, one in models.items())
    lead = (
        f"The same {len(rows)} pictures of {value['split']}, with the same patches hidden for every model. Mean squared"
        f" error of the hidden patches, as the loss has it: {errors}."
    )
    notes = list(value["notes"])
    if any(one["norm_pix"] for one in models.values()):
        notes.insert(
            0,
            "The models predict pixels normalised by patch, so each prediction is shown with the mean and the deviation"
            " of the hidden patch itself, which the model does not know (as in MAE's demo).",
        )
    notes.insert(0, "Visible patches are shown as they are." + _look(value))
    return Panel("reconstructions", "Reconstructions", grid + _soft(notes), lead, wide=True)


def _look(value: dict[str, Any]) -> str:
    look = value["rows"][0].get("look")
    return f" Shown: {look}." if look else ""


def _head(row: dict[str, Any]) -> Markup:
    return Markup('<span class="ev-head" title="{}">{}</span>').format(row["name"], row["label"] or "")


def _words(value: dict[str, Any], models: dict[str, Any]) -> Panel | None:
    count = sum("masked" in part for row in value["rows"] for part in row["parts"])
    if not count:
        return None
    texts = [_text(row, models) for row in value["rows"] if any("masked" in part for part in row["parts"])]
    body = Markup("").join(texts[:_OPEN])
    if texts[_OPEN:]:
        body += details(f"{len(texts) - _OPEN} more", Markup("").join(texts[_OPEN:]))
    firsts, means = [], []
    for key, one in models.items():
        first = sum(each["right"] == 0 for each in one["guesses"])
        firsts.append(f"{TITLES[key]} {first}")
        means.append(f"{TITLES[key]} {percent(sum(each['probability'] for each in one['guesses']) / count)}")
    lead = (
        f"{count} words hidden in {len(texts)} passages of {value['split']}, the same for every model. Right at the"
        f" first guess: {', '.join(firsts)}. Mean probability of the hidden word: {', '.join(means)}."
    )
    notes = ["Where the hidden word is not among the five likeliest, its rank stands below them.", *value["notes"]]
    return Panel("words", "Masked words", body + _soft(notes), lead, wide=True)


def _text(row: dict[str, Any], models: dict[str, Any]) -> Markup:
    parts, blocks = [], []
    for part in row["parts"]:
        if "masked" not in part:
            parts.append(Markup("{}").format(part["text"]))
            continue
        parts.append(Markup("<mark>{}</mark>").format(part["text"]))
        columns = [_guesses(TITLES[key], one["guesses"][part["masked"]]) for key, one in models.items()]
        blocks.append(
            Markup('<div class="ev-word"><h4><mark>{}</mark></h4><div class="ev-models">{}</div></div>').format(
                part["text"], Markup("").join(columns)
            )
        )
    about = " \N{MIDDLE DOT} ".join(each for each in (row["label"], row["name"]) if each)
    above = '<div class="ev-text"><p class="ev-about">{}</p><p class="ev-passage">{}</p>'
    return Markup(above + '<div class="ev-words">{}</div></div>').format(
        about, Markup(" ").join(parts), Markup("").join(blocks)
    )


def _guesses(title: str, found: dict[str, Any]) -> Markup:
    lines = []
    for place, (text, probability) in enumerate(found["top"]):
        right = place == found["right"]
        lines.append(_guess(text, probability, right))
    if found["right"] is None:
        lines.append(_guess(f"#{found['rank']:,}", found["probability"], True, ranked=True))
    return Markup('<div><p class="ev-model">{}</p><ol>{}</ol></div>').format(title, Markup("").join(lines))


def _guess(text: str, probability: float, right: bool, ranked: bool = False) -> Markup:
    mark = Markup(' class="right{}"').format(" ranked" if ranked else "") if right else ""
    share = "<0.1 %" if probability < 0.0005 else percent(probability)
    line = '<li{} style="--share:{:.1f}%"><span>{}</span><span>{}{}</span></li>'
    return Markup(line).format(mark, 100 * probability, text, share, " \N{CHECK MARK}" if right and not ranked else "")


def _soft(notes: list[str]) -> Markup:
    return Markup('<div class="soft">{}</div>').format(paragraph(" ".join(notes))) if notes else Markup("")
