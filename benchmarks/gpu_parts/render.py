"""The suite's JSON as Markdown: every row that was tried, failed ones with what they said."""

from __future__ import annotations

from typing import Any

from gpu_parts.derived import OURS


def markdown(suite: dict[str, Any]) -> str:
    """All parts, what matters most first."""
    parts = suite["parts"]
    sections = [heading(suite, parts.get("environment", {}))]
    sections += [targets(suite["derived"]), steps(parts.get("steps", {})), correctness(parts.get("correctness", {}))]
    sections += [profiling(parts.get("profile", {})), attention(parts.get("attention", {}))]
    sections += [losses(parts.get("losses", {})), zero(parts.get("zero", {})), took(suite)]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows)])


def said(row: dict[str, Any]) -> str:
    """Why a row has no figures; nothing where it has."""
    return row.get("error") or (f"absent: {row['absent']}" if "absent" in row else "")


def number(value: float | None, form: str = "{:.3g}") -> str:
    return "" if value is None else form.format(value)


def heading(suite: dict[str, Any], environment: dict[str, Any]) -> str:
    card = environment.get("card", {})
    named = card.get("name") or f"no GPU ({environment.get('device', 'unknown device')})"
    versions = ", ".join(f"{name} {value or 'absent'}" for name, value in environment.get("versions", {}).items())
    lines = [f"# {named}, {environment.get('date', 'unknown date')}"]
    if suite["quick"]:
        lines.append(
            "**A quick run: tiny sizes, nothing compiled. It shows that the suite runs; no figure means anything.**"
        )
    lines.append(f"Commit {environment.get('commit')}; Python {environment.get('python')}; {versions}.")
    if card:
        said = f"Driver {card['driver']}, CUDA {card['cuda']}, cuDNN {card['cudnn']}; {card['memory_GB']:.0f} GB"
        lines.append(f"{said}, {card['multiprocessors']} multiprocessors, {environment.get('cpu_cores')} CPU cores.")
    said = ", ".join(f"{name}={value}" for name, value in environment.get("settings", {}).items())
    lines.append(f"Settings at the start: {said}.")
    peaks = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in environment.get("products", {}).items())
    copy = environment.get("copy_bytes_per_s")
    lines.append(
        f"Measured here: matrix products, TFLOP/s: {peaks}; copy (read + write) {number(copy and copy / 1e12)} TB/s."
    )
    return "\n\n".join(lines)


def targets(derived: dict[str, Any]) -> str:
    rows = [
        [
            row["name"],
            number(row["value"], "{:.4g}"),
            row["floor"],
            row["verdict"]["floor"],
            row["target"],
            row["verdict"]["target"],
        ]
        for row in derived["targets"]
    ]
    lines = ["## Targets (ViT-B/16, batch 64)", table(["quantity", "value", "floor", "", "target", ""], rows)]
    for stage, found in derived["stages"].items():
        minutes, seconds = divmod(round(found["seconds"]), 60)
        said = f"The paper's {stage} stage (20,000 steps of 64) takes {minutes} min {seconds} s at this rate"
        lines.append(f"{said} ({found['arm']}): {found['x paper']:.0f} times as fast as on the paper's RTX 3090.")
    return "\n\n".join(lines)


def steps(part: dict[str, Any]) -> str:
    if "points" not in part:
        return failed("Steps", part)
    header = [
        "point",
        "arm",
        "precision",
        "img/s",
        "ms",
        "TFLOP/s",
        "of peak",
        "peak GB",
        "host waits",
        "first step s",
        "turns",
    ]
    rows: list[list[Any]] = []
    for name, point in part["points"].items():
        if "error" in point:
            rows.append([name, point["error"], *[""] * 9])
            continue
        baselines = [row["img/s"] for row in point["arms"].values() if "img/s" in row and not row["ours"]]
        for arm, row in point["arms"].items():
            if "img/s" not in row:
                rows.append([name, arm, row.get("error", ""), *[""] * 8])
                continue
            slower = arm in OURS and row["img/s"] < max(baselines, default=0)
            mark = ", **slower than a baseline**" if slower else ""
            peak = row.get("peak_bytes")
            cells = [name, arm + mark, row["precision"], f"{row['img/s']:.5g}", f"{row['ms']:.4g}"]
            cells += [f"{row['TFLOP/s']:.3g}", number(row["of_peak"], "{:.0%}"), number(peak and peak / 1e9)]
            cells += [number(row["host_waits"]), f"{row['first_step_s']:.1f}", "yes" if row["interleaved"] else "alone"]
            rows.append(cells)
    note = "Medians; the arms of a point in turns, or alone where they do not fit beside each other. FLOPs: those that"
    note += " the arm has to compute; of peak: of the product measured here in that precision."
    return "\n\n".join(["## Steps", note, table(header, rows), failed("", part)])


def verdict(row: dict[str, Any], key: str) -> list[str]:
    if "error" in row or "absent" in row:
        return ["", said(row)]
    return [number(row.get(key)), "" if "met" not in row else "met" if row["met"] else "**missed**"]


def correctness(part: dict[str, Any]) -> str:
    lines = ["## Correctness"]
    tests = part.get("tests", {})
    if "tests" in tests:
        counts = ", ".join(f"{tests[name]} {name}" for name in ("tests", "failures", "errors", "skipped"))
        lines.append(f"Tests marked `gpu`: {counts}.")
        lines += [f"* {said}" for said in tests["failed"]]
    elif tests:
        lines.append(f"Tests marked `gpu`: {tests.get('error')}")
    rows = []
    for key, backends in part.get("attention", {}).items():
        for name, row in backends.items() if "error" not in backends else [("all", backends)]:
            rows.append([key, name, *verdict(row, "times_eager"), number(row.get("largest_times_eager"))])
    if rows:
        lines.append(table(["attention", "backend", "error / eager's", "at most 2", "largest / eager's"], rows))
    settings = part.get("settings", {})
    if "rows" in settings:
        rows = [[name, *verdict(row, "times_plain")] for name, row in settings["rows"].items()]
        lines.append(f"{settings['steps']} steps of {settings['point']} against the plain step in float64:")
        lines.append(table(["setting", "error / plain's", "at most 2"], rows))
    elif settings:
        lines.append(f"Settings against the plain step: {settings.get('error')}")
    bf16 = part.get("bf16", {})
    if bf16:
        said = bf16.get("error") or f"{bf16['apart']:.2%} apart at most ({verdict(bf16, 'apart')[1]})"
        lines.append(f"Loss in bfloat16 and float32 over {bf16.get('steps', '?')} steps: {said}.")
    banks = part.get("banks", {})
    if "error" in banks:
        lines.append(f"Banks: {banks['error']}")
    elif banks:
        said = ", ".join(f"{place} {row['apart']:.1e} ({verdict(row, 'apart')[1]})" for place, row in banks.items())
        lines.append(f"Weights after steps against the bank in each place, apart from the first's: {said}.")
    return "\n\n".join([*lines, failed("", part)])


def profiling(part: dict[str, Any]) -> str:
    lines = [f"## Profile of {part.get('point', 'a step')}"]
    for name, arm in part.get("arms", {}).items():
        if "error" in arm:
            lines.append(f"{name}: {arm['error']}")
            continue
        total = sum(arm["kinds_us"].values())
        shares = ", ".join(f"{kind} {spent / total:.0%}" for kind, spent in arm["kinds_us"].items())
        said = f"**{name}**: {arm['step_us'] / 1e3:.3g} ms a step, {arm['kernels']:.0f} kernels, idle {arm['idle']:.1%}"
        lines.append(f"{said}; of the busy time: {shares}.")
        top = list(arm["top_us"].items())[:12]
        lines.append(table(["us a step", "kernel"], [[f"{spent:.0f}", f"`{kernel}`"] for kernel, spent in top]))
    return "\n\n".join([*lines, failed("", part)])


def attention(part: dict[str, Any]) -> str:
    if "rows" not in part:
        return failed("Attention", part)
    rows = []
    for key, backends in part["rows"].items():
        for name, row in backends.items() if "error" not in backends else [("all", backends)]:
            rows.append([key, name, said(row) or f"{row['ms']:.4g}", number(row.get("TFLOP/s"))])
    title = f"## Attention, forward and backward ({part['heads']} heads of {part['head_width']})"
    return "\n\n".join([title, table(["tokens", "backend", "ms", "TFLOP/s"], rows), failed("", part)])


def losses(part: dict[str, Any]) -> str:
    if "rows" not in part:
        return failed("Losses", part)
    auto, rows = part["auto"], []
    for point, row in part["rows"].items():
        if "error" in row:
            rows.append([point, row["error"], "", "", "", ""])
            continue
        cells = [f"{row[name]['ms']:.4f}" for name in ("eager", "compile", auto)]
        mark = "**lost**" if row["lost"] else ""
        rows.append([point, *cells, number(row["of_copy"], "{:.0%}"), mark])
    header = ["point", "eager ms", "compile ms", f"{auto} ms", "of copy", ""]
    return "\n\n".join(["## Losses", table(header, rows), failed("", part)])


def zero(part: dict[str, Any]) -> str:
    if "points" not in part:
        return f"## ZeRO\n\nSkipped: {part['absent']}." if "absent" in part else failed("ZeRO", part)
    rows: list[list[Any]] = []
    for point, ways in part["points"].items():
        base = next((row for row in ways.values() if "ms" in row), {})
        for name, row in ways.items():
            if "ms" not in row:
                rows.append([point, name, row["error"], *[""] * 5])
                continue
            peak, least = row["peak_bytes"], base["peak_bytes"]
            cells = [point, name, row["precision"], f"{row['img/s']:.5g}", f"{row['ms']:.4g}"]
            cells.append(f"{row['ms'] / base['ms']:.3f}")
            rows.append([*cells, number(peak and peak / 1e9), number(peak and least and peak / least, "{:.2f}")])
    note = "Nothing compiled; each way by itself; medians; peak: of the process that needs most; x: the first measured."
    header = ["point", "way", "precision", "img/s", "ms", "x time", "peak GB", "x peak"]
    return "\n\n".join(["## ZeRO", note, table(header, rows), failed("", part)])


def took(suite: dict[str, Any]) -> str:
    said = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in suite["seconds"].items())
    return f"The parts took: {said}."


def failed(title: str, part: dict[str, Any]) -> str:
    """Why a part ended early, under its title when it has nothing to show."""
    said = f"This part did not end well: {part['part_error']}" if "part_error" in part else ""
    if title:
        return f"## {title}\n\n{said or 'not run'}"
    return said
