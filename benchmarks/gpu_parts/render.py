"""The summary as Markdown: every row that was tried, failed ones with what they said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu_parts.derived import OURS

Part = dict[str, Any]
FIGURES: tuple[str, ...] = (
    "ms",
    "img/s",
    "seq/s",
    "graphed",
    "compiled",
    "host_waits",
    "flop_per_s",
    "bytes_per_s",
    "host_us",
)
FIGURES += ("first_step_s", "met", "outcome", "why_not", "error")  # of a row that are shown in short


def markdown(suite: dict[str, Any]) -> str:
    """All parts, what matters most first."""
    parts, found = suite["parts"], suite["derived"]
    sections = [heading(suite, parts.get("environment", {}), parts.get("ceilings", {})), targets(found)]
    if "steps" in parts:
        sections.append(steps(parts["steps"], found))
    shown: dict[str, Callable[[Part], str]] = {
        "library": library,
        "contact": contact,
        "compile": compiled,
        "tests": tests,
        "profile": profiling,
        "attention": attention,
        "trajectories": trajectories,
        "text": texts,
        "zero": zero,
        "agreement": agreement,
    }
    sections += [losses(parts["losses"], found)] if "losses" in parts else []
    for name, show in shown.items():
        if name in parts:
            ended = f"This part did not end well: {parts[name]['part_error']}" if "part_error" in parts[name] else ""
            sections += [show(parts[name]), ended]
    return "\n\n".join(section for section in [*sections, took(suite)] if section) + "\n"


def line(row: dict[str, Any]) -> str:
    """A row in short, for the terminal; nothing of a test that passed, or of what is absent."""
    if row.get("outcome") in ("passed", "skipped") or "absent" in row:
        return ""
    if row.get("part") == "suite":
        what = row.get("task") or f"begun, processes by {row['processes']}"
        return f"{row['at']:6.1f} s  {what}: {row['seconds']:.1f} s"
    what = ("head_width", "item") if "item" in row else ("stage", "model", "batch", "arm", "run", "dropout", "test")
    name = " ".join(str(row[key]) for key in ("part", *what) if key in row)
    shown = {key: row[key] for key in FIGURES if key in row}
    words = (f"{key} {number(value) if isinstance(value, float) else value}" for key, value in shown.items())
    return f"{row['at']:6.1f} s    {name}: {', '.join(words)}"


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows)])


def said(row: dict[str, Any]) -> str:
    """Why a row has no figures; nothing where it has."""
    return row.get("error") or (f"absent: {row['absent']}" if "absent" in row else "")


def number(value: float | None, form: str = "{:.4g}") -> str:
    return "" if value is None else form.format(value)


def yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "**no**"


def gigabytes(row: dict[str, Any], key: str = "peak_bytes") -> str:
    return number(row[key] / 1e9, "{:.3g}") if row.get(key) else ""


def heading(suite: dict[str, Any], environment: Part, ceilings: Part) -> str:
    card = environment.get("card", {})
    named = card.get("name") or f"no GPU ({environment.get('device', 'unknown device')})"
    versions = ", ".join(f"{name} {value or 'absent'}" for name, value in environment.get("versions", {}).items())
    lines = [f"# {named}, {environment.get('date', 'unknown date')}"]
    if suite["quick"]:
        lines.append("**A quick run: tiny sizes, nothing compiled. It shows that the suite runs; no figure counts.**")
    lines.append(f"Commit {environment.get('commit')}; Python {environment.get('python')}; {versions}.")
    if card:
        words = f"Driver {card['driver']}, CUDA {card['cuda']}, cuDNN {card['cudnn']}; {card['memory_GB']:.0f} GB"
        lines.append(f"{words}, {card['multiprocessors']} multiprocessors, {environment.get('cpu_cores')} CPU cores.")
    words = ", ".join(f"{name}={value}" for name, value in environment.get("settings", {}).items())
    lines.append(f"Settings at the start: {words}.")
    rows = ceilings.get("rows", {})
    rates = {name: row["flop_per_s"] for name, row in rows.items() if "flop_per_s" in row}
    peaks = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items())
    copy = rows.get("copy", {}).get("bytes_per_s")
    words = f"Measured here: matrix products, TFLOP/s: {peaks}; copy (read + write)"
    lines.append(f"{words} {number(copy and copy / 1e12, '{:.3g}')} TB/s.")
    return "\n\n".join(lines)


def targets(found: dict[str, Any]) -> str:
    rows = [
        [row["name"], number(row["value"]), row["floor"], row["verdict"][0], row["aim"], row["verdict"][1]]
        for row in found["aims"]
    ]
    lines = ["## Aims (ViT-B/16, batch 64)", table(["quantity", "value", "floor", "", "aim", ""], rows)]
    for stage, each in found["stages"].items():
        minutes, seconds = divmod(round(each["seconds"]), 60)
        words = f"The paper's {stage} stage (20,000 steps of 64) takes {minutes} min {seconds} s at this rate"
        lines.append(f"{words} ({each['arm']}): {each['x paper']:.0f} times as fast as on the paper's RTX 3090.")
    return "\n\n".join(lines)


def steps(part: Part, found: dict[str, Any]) -> str:
    header = ["point", "arm", "precision", "img/s", "ms", "runs, ms", "TFLOP/s", "of peak", "peak GB", "host waits"]
    header += ["host ms", "graphed", "compiled", "first step s", "attention"]
    rows: list[list[Any]] = []
    for name, point in part["points"].items():
        baselines = [row["img/s"] for row in point["arms"].values() if "img/s" in row and not row["ours"]]
        for arm, row in point["arms"].items():
            if "ms" not in row:
                rows.append([name, arm, said(row), *[""] * (len(header) - 3)])
                continue
            slower = arm in OURS and row["img/s"] < max(baselines, default=0)
            cells = [name, arm + (", **slower than a baseline**" if slower else ""), row["precision"]]
            cells += [number(row["img/s"]), number(row["ms"]), ", ".join(number(each) for each in row["runs_ms"])]
            share = found["of_peak"].get(name, {}).get(arm)
            cells += [number(row["TFLOP/s"], "{:.3g}"), number(share, "{:.0%}"), gigabytes(row)]
            cells += [number(row.get("host_waits"), "{:.2g}"), number(row["host_ms"], "{:.3g}")]
            chosen = "; ".join(row.get("attention", [])) + (f" {said(row)}" if said(row) else "")
            cells += [yes(row.get("graphed")), yes(row["compiled"]), f"{row['first_step_s']:.1f}", chosen]
            rows.append(cells)
    note = (
        "Medians; every arm in a process of its own, those with several runs in turn. FLOPs: those that the arm has to"
    )
    note += " compute; of peak: of the product measured here in that precision."
    return "\n\n".join(["## Steps", note, table(header, rows)])


def library(part: Part) -> str:
    rows = [
        [name, said(row) or row.get("why_not") or "loads", row.get("auto", "")] for name, row in part["rows"].items()
    ]
    return "\n\n".join(["## Compiled core", table(["", "", "loss of `auto`"], rows)])


def contact(part: Part) -> str:
    rows = [
        [name, said(row) or f"{row['steps']} steps", yes(row.get("graphed")), number(row.get("losses", [None])[-1])]
        for name, row in part["rows"].items()
    ]
    return "\n\n".join(["## First contact", table(["stage", "", "graphed", "last loss"], rows)])


def compiled(part: Part) -> str:
    rows = []
    for name, row in part["rows"].items():
        if "first_step_s" not in row:
            rows.append([name, said(row), *[""] * 4])
            continue
        missed = row["cache"].get("fxgraph_cache_miss", 0)
        cells = [name, f"{row['first_step_s']:.1f}", row["graphs"], missed, len(row["graph_breaks"])]
        rows.append([*cells, len(row["recompiles"])])
    header = ["arm", "first step s", "graphs", "compiled anew", "graph breaks", "recompilations"]
    return "\n\n".join(["## First steps, side by side", table(header, rows)])


def tests(part: Part) -> str:
    counts = ", ".join(f"{part[name]} {name}" for name in ("passed", "failed", "skipped"))
    failures = [f"* failed: {name}" for name in part["failures"]]
    reasons = [f"* skipped: {reason}" for reason in part["reasons"]]
    return "\n".join(["## Tests marked `gpu`", "", f"{counts}.", *failures, *reasons])


def profiling(part: Part) -> str:
    lines = []
    for name, row in part["rows"].items():
        lines.append(f"## Profile of {row.get('point', 'a step')}, {name}")
        if "kinds_us" not in row:
            lines.append(said(row))
            continue
        total = sum(row["kinds_us"].values())
        shares = ", ".join(f"{kind} {us / 1e3:.3g} ms ({us / total:.0%})" for kind, us in row["kinds_us"].items())
        words = f"{row['step_us'] / 1e3:.4g} ms a step, {row['kernels_a_step']:.0f} kernels, idle {row['idle']:.1%}"
        lines.append(f"{words}: {shares}.")
        top = [[f"{us:.0f}", f"{calls:.3g}", f"`{kernel}`"] for kernel, calls, us in row["kernels"][:40]]
        lines.append(table(["us a step", "calls", "kernel"], top))
    return "\n\n".join(lines)


def attention(part: Part) -> str:
    rows = []
    for row in part["rows"].values():
        if "absent" not in row:
            cells = [row[key] for key in ("tokens", "head_width", "heads", "backend")]
            rows.append([*cells, said(row) or number(row["ms"]), number(row.get("TFLOP/s"), "{:.3g}")])
    note = "Forward and backward in a CUDA graph, batch 64, bfloat16; queries x keys where they are other tokens."
    header = ["tokens", "width", "heads", "backend", "ms", "TFLOP/s"]
    return "\n\n".join(["## Attention", note, table(header, rows), without(part, "backend")])


def trajectories(part: Part) -> str:
    row = part["rows"].get("apart", {})
    curves = [
        f"{name}: " + " ".join(number(each) for each in part["rows"][name].get("losses", ()))
        for name in ("bf16", "fp32")
        if name in part["rows"]
    ]
    words = f"Means of the loss over tenths of a run: {row['apart']:.2%} apart at most." if "apart" in row else ""
    return "\n\n".join(["## bfloat16 and float32", words, *curves])


def losses(part: Part, found: dict[str, Any]) -> str:
    rows, host = [], []
    for point, row in part["rows"].items():
        if "host_us" in row:
            host.append(f"{point.removeprefix('host, ')} {row['host_us']:.1f} us")
        elif "backends" not in row:
            rows.append([point, said(row), "", "", "", ""])
        else:
            cells = [f"{row['backends'][name]['ms']:.4f}" for name in ("eager", "compile", row["auto"])]
            mark = "**lost**" if row["lost"] else ""
            rows.append([point, *cells, number(found["of_copy"].get(point), "{:.0%}"), mark])
    lines = ["## Losses", table(["point", "eager ms", "compile ms", "`auto` ms", "of copy", ""], rows)]
    lines += [f"Host time of a forward call: {', '.join(host)}."] if host else []
    return "\n\n".join([*lines, part.get("part_error", "")])


def texts(part: Part) -> str:
    rows = []
    for name, row in part["rows"].items():
        if "ms" not in row:
            rows.append([name, said(row), *[""] * 5])
            continue
        cells = [name, row["point"], number(row["seq/s"]), number(row["ms"]), gigabytes(row)]
        rows.append([*cells, yes(row["compiled"]), str(len(row["recompiles"]))])
    header = ["arm, dropout", "point", "texts/s", "ms", "peak GB", "compiled", "recompilations"]
    return "\n\n".join(["## Texts", table(header, rows)])


def zero(part: Part) -> str:
    if "absent" in part:
        return f"## ZeRO\n\nSkipped: {part['absent']}."
    rows: list[list[Any]] = []
    for row in part["rows"].values():
        if "ms" not in row:
            rows.append([row.get("point", ""), row.get("way", ""), said(row), *[""] * 4])
            continue
        cells = [row["point"], row["way"], row["precision"], number(row["img/s"]), number(row["ms"])]
        rows.append([*cells, gigabytes(row), number(row["loss"], "{:.6g}")])
    header = ["point", "way", "precision", "img/s", "ms", "peak GB", "last loss"]
    note = "Nothing compiled; each way by itself; medians; peak: of the process that needs most."
    return "\n\n".join(["## ZeRO", note, table(header, rows)])


def agreement(part: Part) -> str:
    rows = []
    for name, row in part["rows"].items():
        if "absent" in row:
            continue
        value = next((row[key] for key in ("times_eager", "times_plain", "apart") if row.get(key) is not None), None)
        met = {True: "met", False: "**missed**"}.get(row.get("met"), "")
        rows.append([row["check"], name, said(row) or number(value, "{:.3g}"), met])
    note = "Attention and settings: the error against float64 as a multiple of the plain one's, at most 2."
    return "\n\n".join(["## Agreement", note, table(["check", "what", "error", ""], rows), without(part, "item")])


def without(part: Part, key: str) -> str:
    """What could not be had here, each once, with the reason."""
    names = dict.fromkeys(f"{row.get(key)} ({row['absent']})" for row in part["rows"].values() if "absent" in row)
    return f"Absent: {'; '.join(names)}." if names else ""


def took(suite: dict[str, Any]) -> str:
    words = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in suite["seconds"].items())
    return f"The parts took: {words}." if words else ""
