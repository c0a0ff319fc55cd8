"""A study's tables: Markdown for a person, CSV with one row per run, JSON with everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sdfast.studies.declared import Study
from sdfast.studies.paper_results import paper_number
from sdfast.studies.plan import Protocol
from sdfast.studies.results import Found, counts
from sdfast.studies.statistics import Paired, Summary, summary

_PROTOCOLS = {
    "paper": "over {n} fine-tuning seeds of one checkpoint per arm (`--protocol paper`): intervals and p-values are"
    " about the noise of fine-tuning alone, not about that of pre-training",
    "full": "over {n} whole chains, in which the seed changes pretrain, distill and finetune (`--protocol full`)",
}
_METRIC_COLUMNS = (
    "accuracy",
    "majority_class_accuracy",
    "macro_f1",
    "micro_f1",
    "test_loss",
    "train_loss",
    "generalisation_gap",
    "distance",
)


def markdown(study: Study, found: Sequence[Found], protocol: Protocol) -> str:
    """What is printed: the table, the comparisons, how to read them, and where the models are."""
    lines = [f"# {study.name}: {study.title}", ""]
    lines += [*aligned(_main_rows(study, found)), ""]
    lines += _legend(found, protocol)
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
        if len(counts(found)) > 1:
            header.append(f"{prefix}n")
            for title in titles:
                rows[title].append(str(len(each.runs.get(title, ()))))
        for column in each.columns():
            header.append(prefix + each.label(column))
            papers = {title: _paper(each, title, column) for title in titles}
            differs = len(found) == 1 and column == study.tested[0]
            compared = each.compared(column) if differs else {}
            with_paper, with_differences = any(papers.values()), bool(compared)
            header += ["paper"] * with_paper
            header += [f"difference from {_reference_name(each)} [95 %]", "p", "p (Holm)"] * with_differences
            for title in titles:
                rows[title].append(_cell(each, title, column))
                rows[title] += [papers[title]] * with_paper
                if with_differences:
                    difference = compared.get(title)
                    rows[title] += _difference_cells(difference, each, column) if difference else ["", "", ""]
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
    rows = [["arm", "metric", "difference from", "difference [95 %]", "p", "p (Holm)"]]
    arms = {arm.title: arm for arm in found.target.arms}
    for column in columns:
        for title, each in found.compared(column).items():
            against = found.reference(arms[title])
            rows.append([title, found.label(column), against, *_difference_cells(each, found, column)])
    return rows


def _difference_cells(each: Paired, found: Found, column: str) -> list[str]:
    """Difference, p and corrected p; or why there are none."""
    digits = 1 if found.is_percent(column) else 3
    pairs = f", {each.count} pair{'s' * (each.count > 1)}" if each.count < counts([found])[-1] else ""
    ends = [each.note or "", ""] if each.p is None else [_probability(each.p), _probability(each.p_holm or 0)]
    return [difference(each, digits) + pairs, *ends]


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _legend(found: Sequence[Found], protocol: Protocol) -> list[str]:
    numbers = counts(found)
    how = _PROTOCOLS[protocol].format(n=_range(numbers, "d"))
    lines = [f"Mean ± sample deviation {how}." if numbers != [1] else "One seed: there is no deviation.", ""]
    if len(numbers) > 1:
        lines += ["Not all have equally many runs (n): a difference is over the seeds that both have.", ""]
    columns = {column for each in found for column in each.columns()}
    said = {
        "generalisation_gap": "Gap: test loss minus training loss.",
        "distance": "Distance: of the encoder's weights from the initial ones (l2).",
        "log_train_loss": "Log train loss: natural logarithm of the training loss, both without dropout.",
    }
    if about := " ".join(text for column, text in said.items() if column in columns):
        lines += [about, ""]
    if numbers != [1]:
        lines += ["Differences are paired by seed; intervals are Student's t, p-values the paired t-test's.", ""]
    if any(_paper(each, arm.title, column) for each in found for arm in each.target.arms for column in each.columns()):
        lines += ["Paper: Lee et al. (2023), ViT-B or RoBERTa-base, mean ± deviation of 5 runs.", ""]
    return lines


def _notes(found: Found, several: bool) -> list[str]:
    prefix = f"{found.target.title}: " if several else ""
    lines = [*_baselines(found), *found.target.notes, *found.coincidences()]
    if (missing := len(found.target.cells) - sum(map(len, found.runs.values()))) > 0:
        lines.append(f"Not all is done: {missing} of {len(found.target.cells)} runs are missing.")
    if absent := [found.label(column) for column in found.not_of_all()]:
        lines.append(f"Not shown, because some runs lack it: {', '.join(absent)}.")
    lines += [f"Not available: {title}: {reason}" for title, reason in found.target.unavailable.items()]
    lines += [f"Failed: {sentence}" for sentence in found.failures]
    return [part for line in lines for part in (prefix + line, "")]


def _baselines(found: Found) -> list[str]:
    """What scores are to be compared with, where the runs say it: those of an earlier version do not."""
    metrics = [run.result.metrics for runs in found.runs.values() for run in runs]
    shown = {found.name(column) for column in found.columns()}
    said = []
    largest = sorted({100 * each["majority_class_accuracy"] for each in metrics if "majority_class_accuracy" in each})
    if largest and shown & {"accuracy", "micro_f1"}:
        said.append(f"Always answering the largest class of the test rows: accuracy {_range(largest, '.1f')} %.")
    fewer = sorted({each["macro_f1_classes"] for each in metrics if "macro_f1_classes" in each})
    if fewer and "macro_f1" in shown:
        said.append(f"Macro-F1: over the {_range(fewer, '.0f')} classes that occur in the test rows or predictions.")
    return said


def _range(values: Sequence[float], form: str) -> str:
    """One number, or the ends of several that are shown differently."""
    return " to ".join(dict.fromkeys(f"{value:{form}}" for value in (values[0], values[-1])))


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
