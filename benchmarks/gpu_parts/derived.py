"""What follows from the rows: the paper's run at these rates, the ratios, and the aims met or missed."""

from __future__ import annotations

from typing import Any

PAPER_IMAGES = 20_000 * 64
PAPER_SECONDS = {"pretrain": 5373, "distill": 18802}  # on one RTX 3090
OURS = ("sdfast", "sdfast not compiled", "sdfast, no CUDA graph")  # the same arithmetic
HONEST = ("honest", "honest compiled", "honest compiled whole")
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
    live, full, default = (arms.get(f"sdfast{more}", {}) for more in (" live teacher", ", no shortcuts", ""))
    if "ms" in live and "ms" in default:
        found["cached + shortcuts / live"] = default["ms"] / live["ms"]
    if "ms" in full and "ms" in live:
        found["cached, all arithmetic / live"] = full["ms"] / live["ms"]
    return found


def derive(parts: dict[str, Any]) -> dict[str, Any]:
    """Everything from the parts' rows; where nothing was measured it says so."""
    points = parts.get("steps", {}).get("points", {})
    ceilings = parts.get("ceilings", {}).get("rows", {})
    found: dict[str, Any] = {"ratios": {}, "stages": {}, "of_peak": {}}
    for name, point in points.items():
        found["ratios"][name] = ratios(point["arms"])
        for arm, figures in point["arms"].items():
            peak = ceilings.get(figures.get("precision"), {}).get("flop_per_s")
            if peak and "TFLOP/s" in figures:
                found["of_peak"].setdefault(name, {})[arm] = figures["TFLOP/s"] * 1e12 / peak
    for stage in PAPER_SECONDS:
        ours = best(points.get(MAIN.format(stage=stage), {}).get("arms", {}), OURS)
        if ours is not None:
            seconds = PAPER_IMAGES / ours[1]["img/s"]
            found["stages"][stage] = {"arm": ours[0], "seconds": seconds, "x paper": PAPER_SECONDS[stage] / seconds}
    found["of_copy"] = of_copy(parts)
    found["aims"] = aims(points, found, parts)
    return found


def of_copy(parts: dict[str, Any]) -> dict[str, float]:
    """Of each point of the losses' grid: the share of the copy's bandwidth that the backend of `auto` reaches."""
    copy = parts.get("ceilings", {}).get("rows", {}).get("copy", {}).get("bytes_per_s")
    rows = parts.get("losses", {}).get("rows", {})
    return {name: row["bytes_per_s"] / copy for name, row in rows.items() if copy and "bytes_per_s" in row}


def aims(points: dict[str, Any], found: dict[str, Any], parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of quantity, floor, aim, value; the value is None where it was not measured."""
    distill, pretrain = (MAIN.format(stage=stage) for stage in ("distill", "pretrain"))
    arms = points.get(distill, {}).get("arms", {})
    main = found["ratios"].get(distill, {})

    def rate(name: str, names: tuple[str, ...] = OURS) -> float | None:
        fastest = best(points.get(name, {}).get("arms", {}), names)
        return None if fastest is None else fastest[1]["img/s"]

    def seconds(stage: str) -> float | None:
        return found["stages"].get(stage, {}).get("seconds")

    losses = parts.get("losses", {}).get("rows", {})
    shares = [share for name, share in found["of_copy"].items() if name.startswith("batch256-") and "-tokens-" in name]
    lost = [row["lost"] for row in losses.values() if "lost" in row]
    host = [row["host_us"] for row in losses.values() if "host_us" in row]
    return [
        aim("distillation, img/s", rate(distill), 2440, 3050),
        aim("times the honest baseline, compiled", main.get("x honest"), 1.2, 1.5),
        aim("times the eager float32 original", main.get("x naive"), 5, 5),
        aim("host waits a step", arms.get("sdfast", {}).get("host_waits"), 0, 0, less=True),
        aim("the paper's distillation, s", seconds("distill"), 540, 420, less=True),
        aim("loss, share of the copy bandwidth", min(shares, default=None), 0.8, 0.8),
        aim("loss, points lost", sum(lost) if lost else None, 0, 0, less=True),
        aim("loss, host time of a forward call, us", min(host, default=None), 40, 40, less=True),
        aim("distillation, all arithmetic, img/s", rate(distill, ("sdfast, no shortcuts",)), 1460, 2440),
        aim("further pre-training, img/s", rate(pretrain), 4089, 5100),
        aim("the paper's further pre-training, s", seconds("pretrain"), 313, 251, less=True),
        aim("cached / live, step time", main.get("cached, all arithmetic / live"), 0.85, 0.83, less=True),
        aim("cached + shortcuts / live, step time", main.get("cached + shortcuts / live"), 0.80, 0.78, less=True),
        aim("loader wait, share of the step", arms.get("sdfast", {}).get("wait_share"), 0.05, 0.01, less=True),
    ]


def aim(name: str, value: float | None, floor: float, wanted: float, less: bool = False) -> dict[str, Any]:
    def verdict(limit: float) -> str:
        if value is None:
            return "not measured"
        return "met" if (value <= limit if less else value >= limit) else "missed"

    return {"name": name, "value": value, "floor": floor, "aim": wanted, "verdict": [verdict(floor), verdict(wanted)]}
