"""The panel of what the stages changed, layer by layer."""

from __future__ import annotations

from typing import Any

from sdfast.report.chart import Curve, chart
from sdfast.report.panel import Panel, gallery

WORDS = {
    ("initial", "pretrain"): "initial and pretrain",
    ("initial", "distill"): "initial and distill",
    ("pretrain", "distill"): "teacher and student",
    ("teacher", "distill"): "teacher and student",
}
CHARTS = (("cka", "Linear CKA"), ("cosine", "Cosine"), ("distance", "Distance, as a share of the length"))


def layers_panel(value: dict[str, Any]) -> Panel:
    """The panel."""
    pairs = value["pairs"]
    charts = []
    for key, title in CHARTS:
        curves = []
        for pair in pairs:
            points = [(at, y) for at, y in enumerate(pair[key], 1) if y is not None]
            name = WORDS[tuple(pair["models"])]
            curves.append(Curve(name, [x for x, _ in points], [y for _, y in points], dots=True))
        low = min((y for curve in curves for y in curve.ys), default=0.0)
        ends = None if key == "distance" else (low - max(0.1 * (1 - low), 1e-3), 1.0)
        charts.append(chart(title, curves, x_name="layer", y_range=ends, from_zero=key == "distance"))
    lead = (
        f"Of {value['count']} rows of {value['split']}, the {value['what']} after each block (the last one after the"
        f" final norm) of two models: alike are those with a CKA and a cosine near 1. {seen(pairs)}"
    )
    title = (
        "What distillation changed" if any("distill" in pair["models"] for pair in pairs) else "What pretrain changed"
    )
    return Panel("layers", title, gallery(charts), lead, wide=True)


def seen(pairs: list[dict[str, Any]]) -> str:
    """One sentence on what is to be seen, and no more."""
    last = {tuple(pair["models"]): pair for pair in pairs}
    pretrain, distill = last.get(("initial", "pretrain")), last.get(("initial", "distill"))
    if pretrain is None or distill is None:
        only = distill or pretrain
        if only is None or only["cosine"][-1] is None:
            return ""
        return f"After the last layer the cosine to the initial model's is {only['cosine'][-1]:.2f} in the mean."
    both = [
        (mine, theirs)
        for mine, theirs in zip(distill["distance"], pretrain["distance"], strict=True)
        if mine is not None and theirs is not None
    ]
    nearer = sum(mine < theirs for mine, theirs in both)
    if not both:
        return ""
    return (
        f"By distance, the self-distilled model is nearer to the initial one than the further pre-trained model is in"
        f" {nearer} of {len(both)} layers."
    )
