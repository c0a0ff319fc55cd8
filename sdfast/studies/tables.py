"""A study's tables: Markdown for a person, CSV with one row per run, JSON with everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from sdfast.log import clock_time
from sdfast.rundir import Result
from sdfast.studies.declared import Arm, Study
from sdfast.studies.paper_results import COST_SECONDS, paper_misprint, paper_number
from sdfast.studies.plan import Protocol
from sdfast.studies.results import METRICS, Found, counts, units_in_words
from sdfast.studies.statistics import Paired, summary
from sdfast.studies.units import columns_of
from sdfast.teacher.bank import BUILT, Built

_PROTOCOLS = {
    "paper": "over {n} fine-tuning seeds of one checkpoint per arm (`--protocol paper`): intervals and p-values are"
    " about the noise of fine-tuning alone, not about that of pre-training",
    "full": "over {n} whole chains, in which the seed changes pretrain, distill and finetune (`--protocol full`)",
}
_UNITS = {
    "fold": ". Each fold has its own pre-training",
    "chain": " (`--chains`). Intervals and p-values are about another such chain, tested on the same rows",
}
_STAGES = {
    "head": "new decoder or head",
    "pretrain": "further pre-training",
    "distill": "self-distillation",
    "finetune": "fine-tuning",
}
_METRIC_COLUMNS = (
    "accuracy",
    "majority_class_accuracy",
    "macro_f1",
    "micro_f1",
    *("mean_average_precision", "subset_accuracy", "threshold", "r2", "spearman", "mse", "rmse", "mae"),
    "test_loss",
    "train_loss",
    "generalisation_gap",
    "distance",
)


def markdown(study: Study, found: Sequence[Found], protocol: Protocol) -> str:
    """What is printed: the table, the comparisons, how to read them, and where the models are."""
    parts = [f"# {study.name}: {study.title}", _table(_main_rows(study, found)), *_legend(found, protocol)]
    for each in found:
        compared = _compared_rows(each, study.tested[len(found) == 1 :])  # the first is in the table of one data set
        if len(compared) > 1:
            parts += [f"Paired by {each.target.kind}, {each.target.title}:", _table(compared)]
    several = len(found) > 1
    parts += [f"{each.target.title}: {note}" if several else note for each in found for note in _notes(each)]
    stages = _stage_rows(found)
    parts += [_table(stages)] if len(stages) > 1 else []
    models = []
    for each in found:
        for title, runs in each.runs.items():
            name = f"{each.target.title}, {title}" if several else title
            models.append(f"- {name}: {', '.join(str(run.result.model) for run in runs)}")
    return "\n\n".join([*parts, "Classifiers:", "\n".join(models)]) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(aligned(rows))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns are aligned for reading as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _main_rows(study: Study, found: Sequence[Found]) -> list[tuple[str, ...]]:
    titles = list(dict.fromkeys(arm.title for each in found for arm in each.target.arms))
    columns = [["method" if study.name == "compare" else "arm", *titles]]
    for each in found:
        prefix = f"{each.target.title}: " if len(found) > 1 else ""
        if len(counts(found)) > 1:
            numbers = [len({run.place for run in each.runs.get(title, ())}) for title in titles]
            columns.append([f"{prefix}n", *map(str, numbers)])
        for column in each.columns():
            columns.append([prefix + each.metric(column).label, *(_cell(each, title, column) for title in titles)])
            papers = [_paper(each, title, column) for title in titles]
            if any(papers):
                columns.append(["paper", *papers])
            if len(found) == 1 and column == study.tested[0] and (compared := each.compared(column)):
                reference = study.reference + (f" at that {study.same}" if study.same else "")
                cells = [_difference_cells(compared.get(title), each, column) for title in titles]
                columns += map(list, zip([f"difference from {reference} [95 %]", "p", "p (Holm)"], *cells, strict=True))
    return list(zip(*columns, strict=True))


def _cell(found: Found, title: str, column: str) -> str:
    if title in found.target.unavailable:
        return "not available"
    values = found.values(title, column)
    return spread(values, found.digits(column)) if values else "-"


def _paper(found: Found, title: str, column: str) -> str:
    if found.target.paper is None:
        return ""
    number = paper_number(found.study.name, found.target.paper.title, title, column)
    return f"{number[0]:.2f} ± {number[1]:.2f}" if number else ""


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and deviation of at least one value."""
    found = summary(values)
    mean = _fixed(found.mean, digits)
    return mean if found.deviation is None else f"{mean} ± {_fixed(found.deviation, digits)}"


def _fixed(value: float, digits: int, sign: str = "") -> str:
    """A number that never shows a negative zero."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def _compared_rows(found: Found, columns: Sequence[str]) -> list[list[str]]:
    rows = [["arm", "metric", "difference from", "difference [95 %]", "p", "p (Holm)"]]
    arms = {arm.title: arm for arm in found.target.arms}
    for column in columns:
        for title, each in found.compared(column).items():
            names = [title, found.metric(column).label, found.reference(arms[title])]
            rows.append([*names, *_difference_cells(each, found, column)])
    return rows


def _difference_cells(each: Paired | None, found: Found, column: str) -> list[str]:
    """Mean difference with its interval, p and corrected p; or why there are none."""
    if each is None:
        return ["", "", ""]
    mean, *ends = (
        _fixed(value, found.digits(column), "+") for value in (each.mean, each.low, each.high) if value is not None
    )
    shown = f"{mean} [{', '.join(ends)}]" if ends else mean
    if each.count < counts([found])[-1]:
        shown += f", {each.count} pair{'s' * (each.count > 1)}"
    if each.p is None:
        return [shown, each.note or "", ""]
    return [shown, _probability(each.p), _probability(each.p_holm or 0)]


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _legend(found: Sequence[Found], protocol: Protocol) -> list[str]:
    numbers, target = counts(found), found[0].target
    kind = target.kind
    if kind == "seed":
        how = _PROTOCOLS[protocol].format(n=_range(numbers, "d"))
    else:
        how = f"over {_range(numbers, 'd')} {kind}s: {units_in_words(target)}{_UNITS[kind]}"
    lines = [f"Mean ± sample deviation {how}." if numbers != [1] else f"One {kind}: there is no deviation."]
    if len(numbers) > 1:
        many = "runs" if kind == "seed" else f"{kind}s"
        lines.append(f"Not all have equally many {many} (n): a difference is over the {kind}s that both have.")
    columns = {each.name(column) for each in found for column in each.columns()}
    if about := [metric.about for name, metric in METRICS.items() if name in columns and metric.about]:
        lines.append(" ".join(about))
    if numbers != [1] and target.folds:
        lines.append(
            "Differences are paired by fold; intervals are Student's t, p-values the paired t-test's, both with the"
            " variance of Nadeau and Bengio (2003), as the folds share rows of train."
        )
    elif numbers != [1]:
        lines.append(f"Differences are paired by {kind}; intervals are Student's t, p-values the paired t-test's.")
    if beside := [each for each in found if _has_papers(each)]:
        lines.append("Paper: Lee et al. (2023), ViT-B or RoBERTa-base, mean ± deviation of 5 runs.")
        lines += [f"{each.target.title}: in the paper {clause}." for each in beside for clause in _misprints(each)]
    return lines


def _has_papers(found: Found) -> bool:
    """Whether numbers of the paper stand beside these."""
    return any(_paper(found, arm.title, column) for arm in found.target.arms for column in found.columns())


def _misprints(found: Found) -> list[str]:
    """What the paper prints of a data set that is its own, or beside its numbers, and is corrected here."""
    paper = found.target.paper
    clauses = [] if paper is None else [paper.misprint, paper_misprint(found.study.name, paper.title)]
    return [clause for clause in clauses if clause]


def _notes(found: Found) -> list[str]:
    lines = [*_baselines(found), *found.target.notes, *found.coincidences()]
    if (missing := len(found.target.cells) - len(found.all_runs())) > 0:
        lines.append(f"Not all is done: {missing} of {len(found.target.cells)} runs are missing.")
    if absent := [found.metric(column).label for column in found.not_of_all()]:
        lines.append(f"Not shown, because some runs lack it: {', '.join(absent)}.")
    lines += [f"Not available: {title}: {reason}" for title, reason in found.target.unavailable.items()]
    return lines + [f"Failed: {sentence}" for sentence in found.failures]


def _baselines(found: Found) -> list[str]:
    """What scores are to be compared with, where the runs say it: those of an earlier version do not."""
    metrics = [run.result.metrics for run in found.all_runs()]
    shown = {found.name(column) for column in found.columns()}
    said = []
    largest = sorted({100 * each["majority_class_accuracy"] for each in metrics if "majority_class_accuracy" in each})
    if largest and shown & {"accuracy", "micro_f1"}:
        said.append(f"Always answering the largest class of the test rows: accuracy {_range(largest, '.1f')} %.")
    said += _raw(found)
    fewer = sorted({each["macro_f1_classes"] for each in metrics if "macro_f1_classes" in each})
    if fewer and "macro_f1" in shown:
        said.append(f"Macro-F1: over the {_range(fewer, '.0f')} classes that occur in the test rows or predictions.")
    return said


def _raw(found: Found) -> list[str]:
    """What a linear classifier on the raw input scores, at each size where there are several."""
    scores = [each for each in found.target.raw if found.target.metric in each.metrics]
    if not scores or "score" not in found.study.columns:
        return []
    metric, unit = found.metric("score").label.removesuffix(" %"), " %" * found.is_percent("score")
    parts, limits = [], []
    for x in dict.fromkeys(each.x for each in scores):
        same = [each for each in scores if each.x == x]
        value = fmean(each.metrics[found.target.metric] for each in same) * (100 if unit else 1)
        where = "" if x is None else f" at n = {x:.0f}"
        several = f" (mean of {len(same)} samples of rows)" if len(same) > 1 else ""
        parts.append(_fixed(value, found.digits("score")) + unit + where + several)
        limits += [f"{sentence}{where}" for each in same for sentence in each.limits]
    name = scores[0].name
    of_fewer = f" It is {', '.join(dict.fromkeys(limits))}." if limits else ""
    return [f"{name[0].upper()}{name[1:]} of the same rows: {metric} {', '.join(parts)}.{of_fewer}"]


def _range(values: Sequence[float], form: str) -> str:
    """One number, or the ends of several that are shown differently."""
    return " to ".join(dict.fromkeys(f"{value:{form}}" for value in (values[0], values[-1])))


def _stage_rows(found: Sequence[Found]) -> list[list[str]]:
    nodes = {node.key: node for each in found for node in each.stages}
    rows = [["stage", "for", "steps", "seconds", "per second", "model"]]
    for node in nodes.values():
        if (run := node.result) is not None:
            numbers = [str(run.steps), f"{run.seconds:.0f}", _rate(run.rate, run.unit)]
            rows.append([run.stage, f"{node.shared_by}{node.of_unit}", *numbers, str(run.model)])
    return rows


def _rate(rate: float, unit: str) -> str:
    return f"{rate:.0f} {unit.removesuffix('/s')}"


def run_rows(found: Sequence[Found]) -> str:
    """CSV, one row per run, metrics as in `result.json`."""
    text = io.StringIO()
    of_units = dict.fromkeys(column for each in found for run in each.all_runs() for column in columns_of(run.unit))
    place_columns = ["data", "arm", "series", "x", *of_units, "seed", "chain_seed"]
    columns = [*place_columns, *_METRIC_COLUMNS, "steps", "seconds", "model"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for each in found:
        for run in each.all_runs():
            place = {"data": each.target.title, "arm": run.arm.title, "seed": run.seed, "chain_seed": run.config.seed}
            writer.writerow(vars(run.arm) | vars(run.result) | run.result.metrics | place | columns_of(run.unit))
    return text.getvalue()


def record(study: Study, found: Sequence[Found], **about: Any) -> dict[str, Any]:
    """Everything, for `<study>.json`."""
    legend = _legend(found, about.get("protocol", "paper")) if any(each.runs for each in found) else []
    data = [_record_of(each) for each in found]
    return {"study": study.name, "title": study.title, **about, "legend": legend, "data": data}


def _record_of(found: Found) -> dict[str, Any]:
    target = found.target
    return {
        "title": target.title,
        "source": target.spec,
        "modality": target.modality,
        "metric": target.metric,
        "train_rows": target.rows,
        "digests": target.digests,
        "arms": [_arm_of(found, arm) for arm in target.arms],
        "paired": {
            found.name(column): {title: asdict(each) for title, each in found.compared(column).items()}
            for column in found.columns()
        },
        "stages": [
            {
                "stage": node.task.stage,
                "arms": sorted(set(node.wanted_by)),
                **columns_of(node.unit),
                **_result_of(node.result, "seconds", "steps", "fingerprint", "model", "metrics"),
            }
            for node in found.stages
            if node.result is not None
        ],
        "raw": [asdict(each) for each in target.raw],
        "failures": found.failures,
        "notes": _notes(found),
    }


def _arm_of(found: Found, arm: Arm) -> dict[str, Any]:
    runs = found.runs.get(arm.title, [])
    summaries = {found.name(column): summary(found.values(arm.title, column)) for column in found.columns() if runs}
    return {
        **asdict(arm),
        "unavailable": found.target.unavailable.get(arm.title),
        "config": runs[0].config.model_dump(mode="json") if runs else None,
        "summary": {name: asdict(each) for name, each in summaries.items()},
        "runs": [
            {
                "seed": run.seed,
                "chain_seed": run.config.seed,
                **columns_of(run.unit),
                **_result_of(run.result, "fingerprint", "weights", "steps", "seconds", "model", "metrics"),
            }
            for run in runs
        ],
    }


def _result_of(result: Result, *names: str) -> dict[str, Any]:
    return {name: str(result.model) if name == "model" else getattr(result, name) for name in names}


def cost_rows(found: Found) -> list[dict[str, Any]]:
    """One for each stage that is done: `stage`, `steps`, `seconds`, `rate`, `unit`; the teacher's bank too."""
    results = [node.result for node in found.stages] + [run.result for run in found.all_runs()]
    rows = [_result_of(run, "stage", "steps", "seconds", "rate", "unit") for run in results if run is not None]
    banks = [Built.of(path.parent) for path in sorted((found.target.out / "banks").glob(f"*/{BUILT}"))]
    seconds = sum(bank.seconds for bank in banks if bank is not None)
    if seconds:
        at = next((place for place, row in enumerate(rows) if row["stage"] == "distill"), len(rows))
        rows.insert(at, {"stage": "teacher bank", "steps": 0, "seconds": seconds, "rate": 0.0, "unit": ""})
    return rows


def cost_markdown(rows: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """The table of `cost_rows` by data set, beside the paper's times."""
    parts = ["# cost: What each stage takes"]
    for title, each in rows.items():
        base = next((row["seconds"] for row in each if row["stage"] == "finetune"), 0.0)
        table = [
            ["stage", "steps", "seconds", "ms per step", "per second", "to fine-tuning", "paper", "to fine-tuning"]
        ]
        for row in each:
            step = f"{1000 * row['seconds'] / row['steps']:.1f}" if row["steps"] else ""
            rate = _rate(row["rate"], row["unit"]) if row["unit"] else ""
            ratio = f"{row['seconds'] / base:.2f}" if base else ""
            paper = COST_SECONDS.get(row["stage"])
            theirs = [clock_time(paper), f"{paper / COST_SECONDS['finetune']:.2f}"] if paper else ["", ""]
            name = _STAGES.get(row["stage"], row["stage"])
            table.append([name, str(row["steps"] or ""), f"{row['seconds']:.1f}", step, rate, ratio, *theirs])
        parts += [f"{title}:", _table(table)]
    parts += [
        "Seconds of training, one stage at a time (`--jobs 1`); other work on the machine counts. The bank's are those"
        " of its building.",
        "Paper: ViT-B on CUB, 20,000, 20,000 and 10,000 steps on one RTX 3090, with the teacher beside the student.",
    ]
    return "\n\n".join(parts) + "\n"
