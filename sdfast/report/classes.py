"""Where a classifier fails: its scores for each class, and which classes it takes for which others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from sdfast.report.calibration import calibration_panel
from sdfast.report.panel import Cell, Panel, Shown, details, number, percent, table
from sdfast.report.records import Run, StageRecord

_DRAWN = 25  # classes of a matrix that is drawn
_BESIDE = 10  # that leave room for another panel
_PAIRS = 30  # of the most confused classes
_LISTED = 1000  # classes of the table


def class_panels(run: Run, stage: StageRecord) -> list[Panel]:
    """The confusion matrix or the most confused pairs, and a table of the classes, or of the numbers."""
    stored = stage.result
    assert stored is not None
    found = []
    names = list((stored.per_class or {}).get("test", {}))
    matrix = (stored.confusion_matrix or {}).get("test")
    if matrix is not None and len(matrix) == len(names) > 1:
        found.append(_confusion(names, np.asarray(matrix, np.int64)))
    if (diagram := calibration_panel(run, stage)) is not None:
        found.append(diagram)
    if names:
        found.append(_classes(stored.per_class["test"], matrix))  # type: ignore[index]
    if outputs := (stored.per_output or {}).get("test"):
        found.append(_numbers(outputs))
    return found


def _confusion(names: Sequence[str], matrix: NDArray[np.int64]) -> Panel:
    wrong = int(matrix.sum() - np.trace(matrix))
    lead = f"{wrong:,} of {int(matrix.sum()):,} test rows are taken for another class."
    if len(names) > _DRAWN:
        return Panel("confusion", "Most confused classes", _pairs(names, matrix), lead, wide=True)
    body = Markup("{}{}").format(drawn_matrix(names, matrix), details("The most confused pairs", _pairs(names, matrix)))
    lead += " Rows of the matrix are the true classes."
    return Panel("confusion", "Confusion matrix", body, lead, wide=len(names) > _BESIDE)


def drawn_matrix(names: Sequence[str], matrix: NDArray[np.int64]) -> Markup:
    """The matrix as a table, each cell as dark as its share of the row."""
    count = len(names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    head = Markup("").join(Markup('<th scope="col"><span>{}</span></th>').format(name) for name in names)
    lines = []
    for row, name in enumerate(names):
        cells = Markup("").join(
            _cell(int(matrix[row, column]), float(shares[row, column]), row == column, name, names[column])
            for column in range(count)
        )
        lines.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, cells))
    text = (
        '<div class="scroll"><table class="matrix{}"><thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table></div>'
        '<p class="caption">A cell is as dark as its share of the row: blue where the answer is right, orange where it'
        " is another class.</p>"
    )
    upright = count > 12 or max(map(len, names)) > 4
    return Markup(text).format(" many" if upright else "", head, Markup("").join(lines))


def _cell(rows: int, share: float, right: bool, true: str, taken: str) -> Markup:
    told = f"{true}: {rows:,} taken for {taken} ({percent(share, 0)})" if rows else ""
    text = '<td class="{}{}" style="--s:{:.3f}" title="{}">{}</td>'
    strong = " strong" if share > 0.55 else ""
    return Markup(text).format("hit" if right else "miss", strong, share, told, f"{rows:,}" if rows else "")


def _pairs(names: Sequence[str], matrix: NDArray[np.int64]) -> Markup:
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    flat = off.reshape(-1)
    most = min(_PAIRS, int((flat > 0).sum()))
    places = np.argsort(-flat, kind="stable")[:most]
    totals = matrix.sum(axis=1)
    rows: list[list[Cell]] = []
    for place in places.tolist():
        true, taken = divmod(place, len(names))
        share = flat[place] / max(int(totals[true]), 1)
        rows.append([names[true], names[taken], int(flat[place]), Shown(float(share), percent(float(share)))])
    if not rows:
        return Markup("<p>No class is taken for another.</p>")
    return table(["class", "taken for", "rows", "of the class"], rows, sortable=True)


def _classes(scores: Mapping[str, object], matrix: Sequence[Sequence[int]] | None) -> Panel:
    names = list(scores)
    several = bool(names) and hasattr(scores[names[0]], "average_precision")
    keys = (["average_precision"] if several else []) + ["precision", "recall", "f1"]
    rows: list[list[Cell]] = []
    for place, name in enumerate(names):
        cells: list[Cell] = [name, *(_bar(float(getattr(scores[name], key))) for key in keys)]
        cells.append(int(getattr(scores[name], "support", 0)))
        if matrix is not None:
            others = [0 if other == place else count for other, count in enumerate(matrix[place])]
            most = max(others, default=0)
            cells.append(f"{names[others.index(most)]} ({most:,})" if most else "")
        rows.append(cells)
    if len(rows) > _LISTED:
        rows.sort(key=lambda row: row[-3].value if isinstance(row[-3], Shown) else 0.0)
        rows = rows[:_LISTED]
    header = ["class", *("F1" if key == "f1" else key.replace("_", " ") for key in keys), "rows"]
    header += ["most often taken for"] if matrix is not None else []
    lead = "Precision: how many of the rows that got this class are of it. Recall: how many of its rows got it."
    if len(names) > _LISTED:
        lead += f" The {_LISTED:,} of {len(names):,} classes with the lowest scores."
    return Panel("classes", "Classes", table(header, rows, sortable=True), lead, wide=True)


def _bar(value: float) -> Shown:
    """A score with a bar as long."""
    text = Markup('<span class="bar-cell" style="--s:{:.3f}">{:.3f}</span>').format(value, value)
    return Shown(value, text)


def _numbers(outputs: Mapping[str, Mapping[str, float]]) -> Panel:
    labels = {"mse": "MSE", "rmse": "RMSE", "mae": "mean absolute error", "r2": "R²", "spearman": "rank correlation"}
    keys = list(next(iter(outputs.values())))
    rows: list[list[Cell]] = [
        [name or "the number", *(Shown(each[key], number(each[key])) for key in keys)] for name, each in outputs.items()
    ]
    header = ["number", *(labels.get(key, key) for key in keys)]
    return Panel("numbers", "Numbers", table(header, rows, sortable=True), "Errors are in the units of the data.", True)
