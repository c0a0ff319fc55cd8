"""What follows from the step table: the paper's run at these rates, the ratios, and the targets met or missed."""

from __future__ import annotations

from typing import Any

PAPER_IMAGES = 20_000 * 64
PAPER_SECONDS = {"pretrain": 5373, "distill": 18802}  # on one RTX 3090
OURS = ("sdfast", "sdfast compiled", "sdfast not compiled", "sdfast, no CUDA graph")
HONEST = ("honest", "honest compiled")
WHOLE, WHOLE_ARM = ", whole step compiled", "honest compiled whole"  # a point of its own
MAIN = "{stage} ViT-B/16 batch 64"


def best(arms: dict[str, Any], names: tuple[str, ...]) -> tuple[str, dict[str, Any]] | None:
    """The fastest of the named arms that were measured."""
    there = [(name, arms[name]) for name in names if "img/s" in arms.get(name, {})]
    return max(there, key=lambda pair: pair[1]["img/s"], default=None)


def ratios(arms: dict[str, Any]) -> dict[str, float]:
    """Of the fastest sdfast arm with default arithmetic: times naive, naive TF32, honest, live; the cached share."""
    ours = best(arms, OURS)
    if ours is None:
        return {}
    rate = ours[1]["img/s"]
    found = {}
    for name, others in (("naive", ("naive",)), ("naive TF32", ("naive TF32",)), ("honest", HONEST)):
        other = best(arms, others)
        if other is not None:
            found[f"x {name}"] = rate / other[1]["img/s"]
    live, full = arms.get("sdfast live teacher", {}), arms.get("sdfast, no shortcuts", {})
    spared, default = arms.get("sdfast, loader spared", {}), arms.get("sdfast", {})
    if "ms" in live and "ms" in default:
        found["cached + shortcuts / live"] = default["ms"] / live["ms"]
    if "ms" in full and "ms" in live:
        found["cached, all arithmetic / live"] = full["ms"] / live["ms"]
    if "ms" in spared and "ms" in default:
        found["loader wait"] = max(0.0, 1 - spared["ms"] / default["ms"])
    return found


def derive(parts: dict[str, Any]) -> dict[str, Any]:
    """Everything from the parts' results; an empty table derives nothing."""
    points = parts.get("steps", {}).get("points", {})
    found: dict[str, Any] = {"ratios": {}, "stages": {}, "targets": []}
    for name, point in points.items():
        if "arms" in point:
            found["ratios"][name] = ratios(point["arms"])
        whole = best(points.get(name + WHOLE, {}).get("arms", {}), (WHOLE_ARM,))
        ours = best(points.get(name + WHOLE, {}).get("arms", {}), OURS)
        if whole is not None and ours is not None and "x honest" in found["ratios"].get(name, {}):
            against = ours[1]["img/s"] / whole[1]["img/s"]
            found["ratios"][name]["x honest"] = min(found["ratios"][name]["x honest"], against)
    for stage in PAPER_SECONDS:
        ours = best(points.get(MAIN.format(stage=stage), {}).get("arms", {}), OURS)
        if ours is not None:
            seconds = PAPER_IMAGES / ours[1]["img/s"]
            found["stages"][stage] = {"arm": ours[0], "seconds": seconds, "x paper": PAPER_SECONDS[stage] / seconds}
    found["targets"] = targets(points, found, parts)
    return found


def targets(points: dict[str, Any], found: dict[str, Any], parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of quantity, floor, target, value; the value is None where it was not measured."""
    distill, pretrain = (MAIN.format(stage=stage) for stage in ("distill", "pretrain"))
    arms = points.get(distill, {}).get("arms", {})
    main = found["ratios"].get(distill, {})

    def rate(name: str, names: tuple[str, ...] = OURS) -> float | None:
        fastest = best(points.get(name, {}).get("arms", {}), names)
        return None if fastest is None else fastest[1]["img/s"]

    def seconds(stage: str) -> float | None:
        return found["stages"].get(stage, {}).get("seconds")

    shares = [
        row["of_copy"]
        for name, row in parts.get("losses", {}).get("rows", {}).items()
        if row.get("of_copy") and name.startswith("batch256-") and "-tokens-" in name
    ]
    return [
        row("further pre-training, img/s", rate(pretrain), 4089, 5100),
        row("distillation, cached, all arithmetic, img/s", rate(distill, ("sdfast, no shortcuts",)), 1460, 2440),
        row("distillation, cached, img/s", rate(distill), 1460, 2440),
        row("the paper's distillation, s", seconds("distill"), 875, 525, less=True),
        row("the paper's further pre-training, s", seconds("pretrain"), 313, 251, less=True),
        row("cached / live, step time", main.get("cached, all arithmetic / live"), 0.85, 0.83, less=True),
        row("cached + shortcuts / live, step time", main.get("cached + shortcuts / live"), 0.80, 0.78, less=True),
        row("times the honest baseline", main.get("x honest"), 1.2, 1.5),
        row("times the eager float32 original", main.get("x naive"), 3, 5),
        row("loader wait, share of the step", main.get("loader wait"), 0.05, 0.01, less=True),
        row("host waits a step", arms.get("sdfast", {}).get("host_waits"), 0, 0, less=True),
        row("loss, share of the copy bandwidth", min(shares, default=None), 0.7, 0.8),
        row("loss, points lost", lost(parts), 0, 0, less=True),
    ]


def lost(parts: dict[str, Any]) -> int | None:
    """Points of the losses' grid where a baseline is faster."""
    rows = [row for row in parts.get("losses", {}).get("rows", {}).values() if "lost" in row]
    return sum(row["lost"] for row in rows) if rows else None


def row(name: str, value: float | None, floor: float, target: float, less: bool = False) -> dict[str, Any]:
    def verdict(wanted: float) -> str:
        if value is None:
            return "not measured"
        return "met" if (value <= wanted if less else value >= wanted) else "missed"

    words = {"floor": verdict(floor), "target": verdict(target)}
    return {"name": name, "value": value, "floor": floor, "target": target, "verdict": words}
