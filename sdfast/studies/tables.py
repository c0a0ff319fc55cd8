"""A study's tables: Markdown for a person, CSV with one row per run, JSON with everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sdfast.studies.grid import Study
from sdfast.studies.paper_results import paper_number
from sdfast.studies.plan import Protocol
from sdfast.studies.results import Found
from sdfast.studies.statistics import Paired, Summary, summary

_PROTOCOLS = {
    "paper": "over {n} fine-tuning seeds of one checkpoint per arm (`--protocol paper`): intervals and p-values are"
    " about the noise of fine-tuning alone, not about that of pre-training",
    "full": "over {n} whole chains, in which the seed changes pretrain, distill and finetune (`--protocol full`)",
}
_METRIC_COLUMNS = ("accuracy", "macro_f1", "micro_f1", "test_loss", "train_loss", "generalisation_gap", "distance")


def markdown(study: Study, found: Sequence[Found], seeds: Sequence[int], protocol: Protocol) -> str:
    """What is printed: the table, the comparisons, how to read them, and where the models are."""
    lines = [f"# {study.name}: {study.title}", ""]
    lines += [*aligned(_main_rows(study, found)), ""]
    lines += _legend(found, seeds, protocol)
    for each in found:
        compared = _compared_rows(each, study.tested[len(found) == 1 :])  # the first is in the table of one data set
        if len(compared) > 1:
            lines += [f"Paired by seed, {each.target.title}:", "", *aligned(compared), ""]
    for each in found:
        lines += _notes(each, several=len(found) > 1)
    lines += _stages(found)
    lines += ["Classifiers:", ""]
    for each in found:
        for title, runs in each.runs.items():
            name = f"{each.target.title}, {title}" if len(found) > 1 else title
            lines.append(f"- {name}: {', '.join(str(run.result.model) for run in runs)}")
    return "\n".join(lines) + "\n"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns are aligned for reading as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _main_rows(study: Study, found: Sequence[Found]) -> list[list[str]]:
    header = ["arm" if study.name != "compare" else "method"]
    titles = list(dict.fromkeys(arm.title for each in found for arm in each.target.arms))
    rows = {title: [title] for title in titles}
    for each in found:
        prefix = f"{each.target.title}: " if len(found) > 1 else ""
        for column in each.columns():
            header.append(prefix + each.label(column))
            papers = {title: _paper(each, title, column) for title in titles}
            differs = len(found) == 1 and column == study.tested[0]
            compared = each.compared(column) if differs else {}
            with_paper, with_differences = any(papers.values()), bool(compared)
            header += ["paper"] * with_paper
            header += [f"less {_reference_name(each)} [95 %]", "p", "p (Holm)"] * with_differences
            for title in titles:
                rows[title].append(_cell(each, title, column))
                rows[title] += [papers[title]] * with_paper
                if with_differences:
                    digits = 1 if each.is_percent(column) else 3
                    rows[title] += _difference_cells(compared[title], digits) if title in compared else ["", "", ""]
    return [header, *rows.values()]


def _reference_name(found: Found) -> str:
    axis = found.study.axis
    return found.study.reference + (" of that n" if axis is not None and axis.kind == "limit" else "")


def _cell(found: Found, title: str, column: str) -> str:
    if title in found.target.unavailable:
        return "not available"
    values = list(found.by_seed(title, column).values())
    if not values:
        return "-"
    return spread(summary(values), 1 if found.is_percent(column) else 3)


def _paper(found: Found, title: str, column: str) -> str:
    if found.target.paper is None:
        return ""
    number = paper_number(found.study.name, found.target.paper.title, title, column)
    return f"{number[0]:.2f} ± {number[1]:.2f}" if number else ""


def spread(values: Summary, digits: int) -> str:
    """Mean and deviation."""
    mean = _fixed(values.mean, digits)
    return mean if values.deviation is None else f"{mean} ± {_fixed(values.deviation, digits)}"


def _fixed(value: float, digits: int, sign: str = "") -> str:
    """A number that never shows a negative zero."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def difference(values: Paired, digits: int) -> str:
    """Mean difference and its interval."""
    mean = _fixed(values.mean, digits, "+")
    if values.low is None or values.high is None:
        return mean
    return f"{mean} [{_fixed(values.low, digits, '+')}, {_fixed(values.high, digits, '+')}]"


def _compared_rows(found: Found, columns: Sequence[str]) -> list[list[str]]:
    rows = [["arm", "metric", "less", "difference [95 %]", "p", "p (Holm)"]]
    arms = {arm.title: arm for arm in found.target.arms}
    for column in columns:
        digits = 1 if found.is_percent(column) else 3
        for title, each in found.compared(column).items():
            against = found.reference(arms[title])
            rows.append([title, found.label(column), against, *_difference_cells(each, digits)])
    return rows


def _difference_cells(each: Paired, digits: int) -> list[str]:
    """Difference, p and corrected p; or why there are none."""
    ends = [each.note or "", ""] if each.p is None else [_probability(each.p), _probability(each.p_holm or 0)]
    return [difference(each, digits), *ends]


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _legend(found: Sequence[Found], seeds: Sequence[int], protocol: Protocol) -> list[str]:
    how = _PROTOCOLS[protocol].format(n=len(seeds))
    lines = [f"Mean ± sample deviation {how}." if len(seeds) > 1 else "One seed: there is no deviation.", ""]
    columns = {column for each in found for column in each.columns()}
    said = {
        "generalisation_gap": "Gap: test loss less training loss.",
        "distance": "Distance: of the encoder's weights from the initial ones (l2).",
        "log_train_loss": "Log train loss: natural logarithm of the training loss, both without dropout.",
    }
    if about := " ".join(text for column, text in said.items() if column in columns):
        lines += [about, ""]
    if len(seeds) > 1:
        lines += ["Differences are paired by seed; intervals are Student's t, p-values the paired t-test's.", ""]
    if any(_paper(each, arm.title, column) for each in found for arm in each.target.arms for column in each.columns()):
        lines += ["Paper: Lee et al. (2023), ViT-B or RoBERTa-base, mean ± deviation of 5 runs.", ""]
    return lines


def _notes(found: Found, several: bool) -> list[str]:
    prefix = f"{found.target.title}: " if several else ""
    lines = [*found.target.notes, *found.coincidences()]
    if (missing := len(found.target.cells) - sum(map(len, found.runs.values()))) > 0:
        lines.append(f"Not all is done: {missing} of {len(found.target.cells)} runs are missing.")
    lines += [f"Not available: {title}: {reason}" for title, reason in found.target.unavailable.items()]
    lines += [f"Failed: {sentence}" for sentence in found.failures]
    return [part for line in lines for part in (prefix + line, "")]


def _stages(found: Sequence[Found]) -> list[str]:
    rows = [["stage", "for", "steps", "seconds", "per second", "model"]]
    seen: set[str] = set()
    for each in found:
        for node in each.stages:
            if node.key in seen or node.result is None:
                continue
            seen.add(node.key)
            arms = list(dict.fromkeys(node.wanted_by))
            shared = f"{arms[0]} and {len(arms) - 1} more" if len(arms) > 1 else arms[0]
            run = node.result
            rate = f"{run.rate:.0f} {run.unit.removesuffix('/s')}"
            rows.append([run.stage, shared, str(run.steps), f"{run.seconds:.0f}", rate, str(run.model)])
    return [*aligned(rows), ""] if len(rows) > 1 else []


def run_rows(found: Sequence[Found]) -> str:
    """CSV, one row per run, metrics as in `result.json`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "arm", "series", "x", "seed", "chain_seed", *_METRIC_COLUMNS, "steps", "seconds", "model"])
    for each in found:
        for title, runs in each.runs.items():
            for run in runs:
                arm, result = run.cell.arm, run.result
                place = [arm.series or "", "" if arm.x is None else arm.x]
                metrics = [result.metrics.get(name, "") for name in _METRIC_COLUMNS]
                row = [each.target.title, title, *place, run.cell.seed, run.cell.config.seed]
                writer.writerow([*row, *metrics, result.steps, result.seconds, result.model])
    return text.getvalue()


def record(study: Study, found: Sequence[Found], **about: Any) -> dict[str, Any]:
    """Everything, for `<study>.json`."""
    return {"study": study.name, "title": study.title, **about, "data": [_record_of(each) for each in found]}


def _record_of(found: Found) -> dict[str, Any]:
    target = found.target
    arms = []
    for arm in target.arms:
        runs = found.runs.get(arm.title, [])
        summaries = {}
        for column in found.columns() if runs else ():
            values = list(found.by_seed(arm.title, column).values())
            summaries[found.name(column)] = asdict(summary(values))
        arms.append(
            {
                **asdict(arm),
                "unavailable": target.unavailable.get(arm.title),
                "config": runs[0].cell.config.model_dump(mode="json") if runs else None,
                "summary": summaries,
                "runs": [
                    {
                        "seed": run.cell.seed,
                        "chain_seed": run.cell.config.seed,
                        "fingerprint": run.result.fingerprint,
                        "weights": run.result.weights,
                        "steps": run.result.steps,
                        "seconds": run.result.seconds,
                        "model": str(run.result.model),
                        "metrics": run.result.metrics,
                    }
                    for run in runs
                ],
            }
        )
    return {
        "title": target.title,
        "source": target.spec,
        "modality": target.modality,
        "metric": target.metric,
        "train_rows": target.rows,
        "arms": arms,
        "paired": {
            found.name(column): {title: asdict(each) for title, each in found.compared(column).items()}
            for column in found.columns()
        },
        "stages": [
            {
                "stage": node.task.stage,
                "arms": sorted(set(node.wanted_by)),
                "seconds": node.result.seconds,
                "steps": node.result.steps,
                "fingerprint": node.result.fingerprint,
                "model": str(node.result.model),
                "metrics": node.result.metrics,
            }
            for node in found.stages
            if node.result is not None
        ],
        "failures": found.failures,
    }
