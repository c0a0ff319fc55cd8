"""The panel of maps: a drawing for each stage, and a legend."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from sdfast.report.evidence.stages import TITLES
from sdfast.report.panel import Panel, figure, number, paragraph

# Ten of about one lightness, told apart with any colour vision; the second five are triangles.
COLOURS: tuple[str, ...] = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"),
    *("#56b4e9", "#8a6fd1", "#9a8700", "#8f5a3c", "#e0527f"),
)
SCALE: tuple[str, ...] = (  # dark to light
    *("#472f7d", "#3b528b", "#2c728e", "#21918c"),
    *("#28ae80", "#5ec962", "#addc30", "#e7d919"),
)
GREY = "#9a9a9a"
ROUND = 5  # classes that are dots
_FEW = 100  # rows that are drawn larger
_HALF = 150  # pixels from the middle to an edge, without the margin
_MARGIN = 8


def map_panel(value: dict[str, Any]) -> Panel:
    """The panel."""
    colours, models = value["colours"], value["models"]
    groups = grouped(colours, len(next(iter(models.values()))["pca"]))
    drawings = []
    for key, one in models.items():
        first, second = one["shares"]
        about = f"{TITLES[key]}: {100 * first:.0f} % and {100 * second:.0f} % of the variance"
        drawings.append(figure(_drawing(one["pca"], groups, f"PCA, {TITLES[key]}"), about))
    body = _legend(colours) + _side_by_side(drawings)
    if any("umap" in one for one in models.values()):
        maps = [
            figure(_drawing(one["umap"], groups, f"UMAP, {TITLES[key]}"), TITLES[key])
            for key, one in models.items()
            if "umap" in one
        ]
        body += Markup("<h3>UMAP</h3>") + _side_by_side(maps)
        body += paragraph("UMAP keeps neighbours together; distances between groups mean little.")
    count = len(next(iter(models.values()))["pca"])
    lead = (
        f"The {value['what']} of {count} rows of {value['split']}, in the two directions in which each stage's features"
        " vary most (PCA of that stage's own features)."
    )
    return Panel("map", "Map of the features", body, lead, wide=True)


def _side_by_side(figures: list[Markup]) -> Markup:
    return Markup('<div class="ev-maps">{}</div>').format(Markup("").join(figures))


def grouped(colours: dict[str, Any], count: int) -> list[tuple[str, str, list[int]]]:
    """What is drawn alike: colour, `dot` or `triangle`, and the numbers of the rows; grey ones first, below the others.

    Args:
        colours: see `sdfast.report.evidence.maps.colouring`.
        count: rows.
    """
    if colours["by"] == "nothing":
        return [(COLOURS[0], "dot", list(range(count)))]
    row, scale = colours["row"], COLOURS
    if colours["by"] == "number":
        low, high = ends(row)
        places = [None if value is None else _step(value, low, high) for value in row]
        scale = SCALE
    else:
        places = row
    found = [(GREY, "grey", [at for at, place in enumerate(places) if place is None or place < 0])]
    for place, colour in enumerate(scale):
        kind = "triangle" if colours["by"] == "class" and place >= ROUND else "dot"
        found.append((colour, kind, [at for at, each in enumerate(places) if each == place]))
    return [each for each in found if each[2]]


def ends(values: list[float | None]) -> tuple[float, float]:
    """The smallest and the largest of some numbers."""
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else (0.0, 1.0)


def _step(value: float, low: float, high: float) -> int:
    return 0 if high <= low else min(len(SCALE) - 1, int(len(SCALE) * (value - low) / (high - low)))


def _drawing(places: list[list[float]], groups: list[tuple[str, str, list[int]]], title: str) -> Markup:
    side = 2 * (_HALF + _MARGIN)
    parts = []
    for colour, kind, rows in groups:
        points = [(places[row][0] * _HALF + side / 2, side / 2 - places[row][1] * _HALF) for row in rows]
        if kind == "triangle":
            path = "".join(f"M{x:.1f} {y - 3.2:.1f}l3.2 5.6h-6.4z" for x, y in points)
            parts.append(Markup('<path class="ev-tri" fill="{}" d="{}"/>').format(colour, path))
        else:
            path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
            faint = " ev-faint" if kind == "grey" else ""
            parts.append(Markup('<path class="ev-dot{}" stroke="{}" d="{}"/>').format(faint, colour, path))
    few = " ev-few" if len(places) <= _FEW else ""
    frame = '<svg class="ev-map{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    return Markup(frame).format(few, side, side, title, Markup("").join(parts))


def _legend(colours: dict[str, Any]) -> Markup:
    if colours["by"] == "nothing":
        return Markup("")
    if colours["by"] == "number":
        low, high = ends(colours["row"])
        bar = Markup('<span class="ev-scale" style="background:linear-gradient(90deg,{})"></span>')
        text = '<div class="ev-legend"><span>{}</span><span>{} {} {}</span></div>'
        scale = bar.format(Markup(",").join(SCALE))
        return Markup(text).format(colours["name"], number(low), scale, number(high))
    entries = [_entry(COLOURS[place], name, place >= ROUND) for place, name in enumerate(colours["names"])]
    if colours["more"]:
        entries.append(_entry(GREY, f"{colours['more']:,} other classes", False))
    if any(place is None for place in colours["row"]):
        entries.append(_entry(GREY, "without a label", False))
    if colours["several"]:
        entries.append(
            Markup('<span class="soft">{}</span>').format("rows of several classes by the commonest of these")
        )
    return Markup('<div class="ev-legend">{}</div>').format(Markup("").join(entries))


def _entry(colour: str, name: str, triangle: bool) -> Markup:
    shape = "M6 1l5 9h-10z" if triangle else "M6 1.5a4.5 4.5 0 1 0 .01 0z"
    sign = '<svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true"><path fill="{}" d="{}"/></svg>'
    return Markup("<span>{}{}</span>").format(Markup(sign).format(colour, shape), name)
