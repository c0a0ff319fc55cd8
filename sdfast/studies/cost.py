"""What further pre-training, self-distillation and fine-tuning cost, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdfast.log import clock_time
from sdfast.studies.paper_results import COST_SECONDS
from sdfast.studies.results import Found
from sdfast.studies.tables import aligned
from sdfast.teacher.bank import BUILT, Built

_TITLES = {
    "head": "new language-model head",
    "pretrain": "further pre-training",
    "distill": "self-distillation",
    "finetune": "fine-tuning",
}


def cost_rows(found: Found) -> list[dict[str, Any]]:
    """One for each stage that is done: `stage`, `steps`, `seconds`, `rate`, `unit`; the teacher's bank too."""
    rows = []
    results = [node.result for node in found.stages] + [run.result for runs in found.runs.values() for run in runs]
    for result in results:
        if result is not None:
            rate = {"rate": result.rate, "unit": result.unit}
            rows.append({"stage": result.stage, "steps": result.steps, "seconds": result.seconds, **rate})
    banks = [Built.of(path.parent) for path in sorted((found.target.out / "banks").glob(f"*/{BUILT}"))]
    seconds = sum(bank.seconds for bank in banks if bank is not None)
    if seconds:
        at = next((place for place, row in enumerate(rows) if row["stage"] == "distill"), len(rows))
        rows.insert(at, {"stage": "teacher bank", "steps": 0, "seconds": seconds, "rate": 0.0, "unit": ""})
    return rows


def cost_markdown(rows: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """The table of `cost_rows` by data set, beside the paper's times."""
    lines = ["# cost: What each stage takes", ""]
    for title, each in rows.items():
        base = next((row["seconds"] for row in each if row["stage"] == "finetune"), 0.0)
        table = [
            ["stage", "steps", "seconds", "ms per step", "per second", "to fine-tuning", "paper", "to fine-tuning"]
        ]
        for row in each:
            step = f"{1000 * row['seconds'] / row['steps']:.1f}" if row["steps"] else ""
            rate = f"{row['rate']:.0f} {row['unit'].removesuffix('/s')}" if row["unit"] else ""
            ratio = f"{row['seconds'] / base:.2f}" if base else ""
            paper = COST_SECONDS.get(row["stage"])
            theirs = [clock_time(paper), f"{paper / COST_SECONDS['finetune']:.2f}"] if paper else ["", ""]
            name = _TITLES.get(row["stage"], row["stage"])
            table.append([name, str(row["steps"] or ""), f"{row['seconds']:.1f}", step, rate, ratio, *theirs])
        lines += [f"{title}:", "", *aligned(table), ""]
    lines += [
        "Seconds of training, one stage at a time (`--jobs 1`); other work on the machine counts. The bank's are those"
        " of its building.",
        "",
        "Paper: ViT-B on CUB, 20,000, 20,000 and 10,000 steps on one RTX 3090, with the teacher beside the student.",
    ]
    return "\n".join(lines) + "\n"
