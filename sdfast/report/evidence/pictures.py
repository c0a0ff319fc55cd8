"""Evidence as PNG files, for trackers and for who wants to put it on a slide."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdfast.durable import write_bytes
from sdfast.report.evidence import keep, layers, maps, masked, mistakes
from sdfast.report.evidence.show_layers import CHARTS, WORDS
from sdfast.report.evidence.show_map import COLOURS, GREY, ROUND, ends, grouped
from sdfast.report.evidence.stages import TITLES

_CELL, _LARGEST, _GAP, _SIDE = 96, 144, 6, 120  # pixels: of a picture, between two, of the names on the left
_INK, _SOFT, _RIGHT = "#1b1b1b", "#6b6b6b", "#0b8a68"
_TEXTS, _BESIDE = 4, 45  # passages that are drawn, and letters of one on either side of the hidden word


def draw(out: Path, item: str) -> dict[str, Path]:
    """Draw what is kept of an item; {name: file}, empty where there is nothing to draw."""
    value = keep.read(out, item)
    name, how = _DRAWN[item]
    picture = None if value is None else how(value)
    if value is None or picture is None:
        return {}
    name = "words" if name == "reconstructions" and value["kind"] != "images" else name
    path = out / keep.FOLDER / f"{name}.png"
    write_bytes(path, picture)
    return {name: path}


def _masked(value: dict[str, Any]) -> bytes | None:
    return _reconstructions(value) if value["kind"] == "images" else _words(value)


def _words(value: dict[str, Any]) -> bytes | None:
    """The first hidden word of some passages, and the guesses of each model."""
    from PIL import Image, ImageDraw

    models = value["models"]
    texts = [row for row in value["rows"] if any("masked" in part for part in row["parts"])][:_TEXTS]
    if not texts:
        return None
    font, line, column = _font(), 18, 230
    size = (max(700, column * len(models) + 2 * _GAP), len(texts) * 9 * line + _GAP)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for number, row in enumerate(texts):
        top, parts = _GAP + number * 9 * line, row["parts"]
        hidden = next(part for part in parts if "masked" in part)
        at = parts.index(hidden)
        before, after = (" ".join(part["text"] for part in some) for some in (parts[:at], parts[at + 1 :]))
        passage = f"{before[-_BESIDE:]} [{hidden['text']}] {after[:_BESIDE]}"
        pen.text((_GAP, top), passage, fill=_INK, font=font)
        for place, (key, one) in enumerate(models.items()):
            found, left = one["guesses"][hidden["masked"]], _GAP + place * column
            pen.text((left, top + line), TITLES[key], fill=_SOFT, font=font)
            lines = [(text, share, at == found["right"]) for at, (text, share) in enumerate(found["top"])]
            if found["right"] is None:
                lines.append((f"#{found['rank']:,}", found["probability"], True))
            for down, (text, share, right) in enumerate(lines, 2):
                colour = _RIGHT if right else _INK
                pen.text((left, top + down * line), f"{100 * share:5.1f} %  {text[:20]}", fill=colour, font=font)
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return file.getvalue()


def _font() -> Any:
    """DejaVu Sans, which has more than Latin letters; matplotlib brings it."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 12)


def _reconstructions(value: dict[str, Any]) -> bytes:
    rows = value["rows"]
    lines = [("original", [row["original"] for row in rows]), ("masked", [row["masked"] for row in rows])]
    lines += [(TITLES[key], one["pictures"]) for key, one in value["models"].items()]
    return _grid(lines)


def _grid(lines: list[tuple[str, list[str]]], below: list[list[str]] | None = None) -> bytes:
    """Pictures in base64 line by line, a name on the left of each, and words below each picture."""
    from PIL import Image, ImageDraw

    font = _font()
    images = [[_opened(each) for each in pictures] for _, pictures in lines]
    width, height = images[0][0].size
    larger = max(1, -(-_CELL // max(width, height)))
    scale = min(larger, _LARGEST / max(width, height)) if larger == 1 else larger
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    side, text = (_SIDE if any(name for name, _ in lines) else 0), 16 * len((below or [[]])[0])
    columns = max(map(len, images))
    size = (side + columns * (width + _GAP) + _GAP, len(lines) * (height + text + _GAP) + _GAP)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for line, ((name, _), pictures) in enumerate(zip(lines, images, strict=True)):
        top = _GAP + line * (height + text + _GAP)
        pen.text((_GAP, top + height // 2), name, fill=_INK, anchor="lm", font=font)
        for column, image in enumerate(pictures):
            left = side + _GAP + column * (width + _GAP)
            canvas.paste(image.resize((width, height), how), (left, top))
            for number, words in enumerate(below[line * columns + column] if below else []):
                pen.text((left, top + height + 2 + 16 * number), words[: width // 7], fill=_INK, font=font)
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return file.getvalue()


def _opened(encoded: str) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def _layers(value: dict[str, Any]) -> bytes:
    figure = _figure(11, 3.2)
    for place, (key, title) in zip(figure.subplots(1, 3), CHARTS, strict=True):
        for pair in value["pairs"]:
            ys = [float("nan") if y is None else y for y in pair[key]]
            place.plot(range(1, len(ys) + 1), ys, marker="o", ms=4, label=WORDS[tuple(pair["models"])])
        place.set_xticks(range(1, len(ys) + 1, 1 + len(ys) // 12))
        place.set_title(title, fontsize=11)
        place.set_xlabel("layer")
        low = min((y for pair in value["pairs"] for y in pair[key] if y is not None), default=0.0)
        room = max(0.1 * (1 - low), 1e-3)
        place.set_ylim(*((0.0, None) if key == "distance" else (low - room, 1 + room / 2)))
    figure.axes[0].legend(fontsize=9, frameon=False)
    return _saved(figure)


def _map(value: dict[str, Any]) -> bytes:
    models, colours = value["models"], value["colours"]
    groups = grouped(colours, len(next(iter(models.values()))["pca"]))
    figure = _figure(3.1 * len(models), 3.5)
    places = figure.subplots(1, len(models), squeeze=False)[0]
    for place, (key, one) in zip(places, models.items(), strict=True):
        for colour, kind, rows in groups:
            xs, ys = ([one["pca"][row][axis] for row in rows] for axis in (0, 1))
            look = {"marker": "^" if kind == "triangle" else "o", "alpha": 0.4 if kind == "grey" else 0.85}
            place.scatter(xs, ys, s=9 if len(one["pca"]) > 100 else 25, color=colour, linewidths=0, **look)
        place.set_title(TITLES[key], fontsize=11)
        place.set_xlabel(
            "{:.0f} % and {:.0f} % of the variance".format(*(100 * each for each in one["shares"])), fontsize=9
        )
        place.set_xticks([])
        place.set_yticks([])
        place.set(aspect="equal", xlim=(-1.06, 1.06), ylim=(-1.06, 1.06))
    figure.legend(handles=_handles(colours), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return _saved(figure)


def _handles(colours: dict[str, Any]) -> list[Any]:
    from matplotlib.lines import Line2D

    def entry(name: str, colour: str, marker: str = "o") -> Any:
        return Line2D([], [], ls="", marker=marker, ms=5, color=colour, label=name)

    if colours["by"] == "number":
        low, high = ends(colours["row"])
        return [entry(f"{colours['name']}: {low:.4g} (dark) to {high:.4g} (light)", _SOFT)]
    if colours["by"] == "nothing":
        return []
    found = [entry(name[:24], COLOURS[at], "^" if at >= ROUND else "o") for at, name in enumerate(colours["names"])]
    if colours["more"] or None in colours["row"]:
        found.append(entry("others", GREY))
    return found


def _mistakes(value: dict[str, Any]) -> bytes | None:
    rows = value["rows"]
    if not rows or "picture" not in rows[0] or "confidence" not in rows[0]:
        return None
    half = -(-len(rows) // 2)
    lines = [("", [row["picture"] for row in part]) for part in (rows[:half], rows[half:]) if part]
    words = [[row["true"], f"> {row['predicted']}", f"{100 * row['confidence']:.1f} %"] for row in rows]
    return _grid(lines, words)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _saved(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


_DRAWN: dict[str, tuple[str, Callable[[dict[str, Any]], bytes | None]]] = {
    masked.ITEM: ("reconstructions", _masked),
    layers.ITEM: ("layers", _layers),
    maps.ITEM: ("map", _map),
    mistakes.ITEM: ("mistakes", _mistakes),
}
