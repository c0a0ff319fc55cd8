"""The summary of a run, out of its rows alone: what belongs together side by side, the later of the same replacing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpu_parts import derived
from gpu_parts.rows import Row

EXPECTED = ("out of memory", "not reached")  # of a point too large, or too late in the list
LONG = ("traceback", "said")  # left to the rows


def suite(rows: Sequence[Row]) -> dict[str, Any]:
    """What the table shows: rows by part, and what follows from them."""
    parts = collected(rows)
    told = [row for row in rows if row.get("part") == "suite"]
    heads = [row for row in told if "processes" in row]
    return {
        "quick": any(row.get("quick") for row in heads),
        "calls": heads,
        "seconds": {row["task"]: row["seconds"] for row in told if "task" in row},
        "parts": parts,
        "derived": derived.derive(parts),
    }


def collected(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows by part. A part that was not run is absent."""
    parts: dict[str, Any] = {}
    for part, gather in GATHERED.items():
        mine = [short(row) for row in rows if row.get("part") == part]
        if mine:
            parts[part] = gather(mine)
    return parts


def short(row: Row) -> Row:
    """Without what only a person who repairs something reads."""
    return {key: value for key, value in row.items() if key not in LONG}


def merged(rows: Sequence[Row]) -> dict[str, Any]:
    """All in one; a key of a later row replaces that of an earlier."""
    found: dict[str, Any] = {}
    for row in rows:
        found |= row
    return found


def items(rows: Sequence[Row], key: str = "item") -> dict[str, Any]:
    """By name; what has none is what happened to the whole part, and stands under `part_error` or `absent`."""
    found: dict[str, Any] = {"rows": {row[key]: row for row in rows if key in row}}
    for row in rows:
        if key not in row and "absent" in row:
            found["absent"] = row["absent"]
    wrong = [row["error"] for row in rows if key not in row and "error" in row]
    return {**found, "part_error": "; ".join(wrong)} if wrong else found


def steps_of(rows: Sequence[Row]) -> dict[str, Any]:
    """By point and arm. The runs of an arm stay; its figures are those between them."""
    points: dict[str, Any] = {}
    for row in rows:
        name = f"{row['stage']} {row['model']} batch {row['batch']}"
        where = {key: row[key] for key in ("stage", "model", "batch")}
        arms = points.setdefault(name, {**where, "arms": {}})["arms"]
        arms.setdefault(row["arm"], {})[row["run"]] = row
    for point in points.values():
        point["arms"] = {name: arm_of(list(runs.values()), point["batch"]) for name, runs in point["arms"].items()}
    return {"points": points}


def arm_of(runs: list[Row], batch: int) -> Row:
    """One row of several runs: of the first that ended well, with the median of all their times."""
    good = [run for run in runs if "ms" in run]
    if not good:
        return {**runs[-1], "runs_ms": []}
    middle = statistics.median(run["ms"] for run in good)
    arm = {**good[0], "ms": middle, "img/s": 1e3 * batch / middle, "runs_ms": [run["ms"] for run in good]}
    arm["TFLOP/s"] = arm["flops"] * arm["img/s"] / 1e12
    wrong = [run["error"] for run in runs if "error" in run]
    return {**arm, "error": "; ".join(wrong)} if wrong else arm


def tests_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, the failures by name, the reasons of the skipped."""
    tests = {row["test"]: row for row in rows if "test" in row}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for row in tests.values():
        counts[row["outcome"]] += 1
    failed = [name for name, row in tests.items() if row["outcome"] == "failed"]
    reasons = sorted({str(row.get("reason")) for row in tests.values() if row["outcome"] == "skipped"})
    found = {**counts, "failures": failed, "reasons": reasons}
    wrong = [row["error"] for row in rows if "test" not in row and "error" in row]
    return {**found, "part_error": "; ".join(wrong)} if wrong else found


def by(*keys: str) -> Callable[[Sequence[Row]], dict[str, Any]]:
    """Rows by what was asked for."""

    def gather(rows: Sequence[Row]) -> dict[str, Any]:
        return {"rows": {" ".join(str(row[key]) for key in keys): row for row in rows}}

    return gather


def attention_of(rows: Sequence[Row]) -> dict[str, Any]:
    named = [{**row, "item": f"{row['item']} {row['head_width']}"} if "item" in row else row for row in rows]
    return items(named)


GATHERED: dict[str, Callable[[Sequence[Row]], dict[str, Any]]] = {
    "environment": merged,
    "library": items,
    "contact": by("stage"),
    "compile": by("stage", "arm"),
    "tests": tests_of,
    "ceilings": items,
    "steps": steps_of,
    "profile": by("arm"),
    "attention": attention_of,
    "trajectories": items,
    "losses": items,
    "text": by("arm", "dropout"),
    "zero": items,
    "agreement": items,
}


def found_wrong(parts: dict[str, Any]) -> list[str]:
    """What did not end well, failed tests, checks that were missed. A baseline that is faster is no error."""
    wrong = []
    for name, part in parts.items():
        if name == "library" and any(row.get("why_not", "") is None for row in part["rows"].values()):
            continue  # carried or built here, it is there
        for where, row in rows_in(name, part):
            if "error" in row and not row["error"].startswith(EXPECTED):
                wrong.append(f"{where}: {row['error']}")
            if row.get("met") is False:
                wrong.append(f"missed: {where}")
        if "part_error" in part and not part["part_error"].startswith(EXPECTED):
            wrong.append(f"{name}: {part['part_error']}")
    return wrong + [f"test {name}" for name in parts.get("tests", {}).get("failures", [])]


def rows_in(name: str, part: dict[str, Any]) -> Iterator[tuple[str, Row]]:
    """Every row of a part with its name."""
    if name == "environment":
        yield name, part
    for key, row in part.get("rows", {}).items():
        yield f"{name}, {key}", row
    for point, found in part.get("points", {}).items():
        for arm, row in found["arms"].items():
            yield f"{name}, {point}, {arm}", row
