"""The panel of where the fine-tuned model is most wrong."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from sdfast.data.problem import REGRESSION, SINGLE
from sdfast.report.evidence.show_masked import picture, size_of
from sdfast.report.panel import Panel, number, percent

_SMALL = 96


def mistakes_panel(value: dict[str, Any]) -> Panel:
    """The panel."""
    rows, single = value["rows"], value["problem"] == SINGLE
    of = f"{value['count']:,} rows of {value['split']}{'' if value['all'] else ' (a choice by content)'}"
    if single:
        title = "Most confident mistakes"
        lead = (
            f"Of {of} that have a label {value['wrong']:,} {'is' if value['wrong'] == 1 else 'are'} taken for another"
        )
        lead += f" class; these {len(rows)} with the highest confidence." if value["wrong"] > len(rows) else " class."
    else:
        title = "Largest errors"
        what = "distance, in standard deviations" if value["problem"] == REGRESSION else "cross-entropy"
        lead = f"The {len(rows)} of {of} with the largest {what}."
    if not rows:
        return Panel("mistakes", title, Markup(""), lead)
    kind = "ev-pictures" if "picture" in rows[0] else "ev-texts"
    sharp = "pixelated" if "picture" in rows[0] and max(size_of(rows[0]["picture"])) <= _SMALL else ""
    body = Markup("").join(_one(row, value["problem"], sharp) for row in rows)
    return Panel("mistakes", title, Markup('<div class="{}">{}</div>').format(kind, body), lead, wide=True)


def _one(row: dict[str, Any], problem: str, sharp: str) -> Markup:
    if "picture" in row:
        look = picture(row["picture"], row["name"], sharp)
    else:
        look = Markup('<p class="ev-passage">{}</p>').format(row["text"])
    return Markup('<figure>{}<figcaption>{}<span class="ev-name">{}</span></figcaption></figure>').format(
        look, _told(row, problem), row["name"]
    )


def _told(row: dict[str, Any], problem: str) -> Markup:
    if problem == SINGLE:
        text = "<b>{}</b> taken for <b>{}</b><br>{} sure; {} for {}"
        return Markup(text).format(
            row["true"], row["predicted"], percent(row["confidence"]), percent(row["of_true"]), row["true"]
        )
    if problem == REGRESSION:
        lines = [
            Markup("<b>{}</b> {}, predicted <b>{}</b>").format(name, number(label), number(output))
            for name, label, output in row["numbers"][:4]
        ]
        return Markup("<br>").join(lines)
    listed = [", ".join(f"{name} {percent(p)}" for name, p in row[key][:6]) or "none" for key in ("true", "predicted")]
    return Markup("is <b>{}</b><br>taken for <b>{}</b>").format(*listed)
