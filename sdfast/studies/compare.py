"""Plain fine-tuning, further pre-training and self-distillation on the same data and fine-tuning budget."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdfast import durable
from sdfast.rundir import Result

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline, Start

METHODS: dict[Start, str] = {
    "init": "fine-tuning",
    "pretrain": "further pre-training",
    "distill": "self-distillation",
}
_COLUMNS = {
    "accuracy": "accuracy %",
    "macro_f1": "macro-F1 %",
    "test_loss": "test loss",
    "train_loss": "train loss",
    "generalisation_gap": "gap",
    "distance": "distance",
}


def compare(pipeline: Pipeline, seeds: int) -> dict[str, list[Result]]:
    """Fine-tune from each start with several seeds; the pre-training stages are run once and shared.

    The paper's protocol: several fine-tuning runs of one checkpoint (fidelity 8, row 12). The deviation is therefore
    over fine-tuning seeds alone. Results go to `compare.md`, `compare.csv` and `compare.json` in the run directory.

    Args:
        pipeline: the run; its `finetune` section is every method's fine-tuning budget.
        seeds: fine-tuning runs of each method, with the seeds `seed`, `seed + 1`, ...

    Returns:
        The results by method, in the order of the seeds.
    """
    with pipeline.session():
        stages = {"pretrain": pipeline.pretrain(), "distill": pipeline.distill()}
        first = pipeline.config.seed
        results: dict[str, list[Result]] = {}
        for start, method in METHODS.items():
            results[method] = [
                pipeline.finetune(start, seed, _folder(pipeline, start, seed)) for seed in range(first, first + seeds)
            ]
        if pipeline.ranks.is_first:
            durable.write_bytes(pipeline.out / "compare.md", _markdown(results, stages, seeds).encode())
            durable.write_bytes(pipeline.out / "compare.csv", _csv(results, first).encode())
            record = {
                "seeds": list(range(first, first + seeds)),
                "metrics": {method: [run.metrics for run in each] for method, each in results.items()},
            }
            durable.write_json(pipeline.out / "compare.json", record)
    return results


def _folder(pipeline: Pipeline, start: Start, seed: int) -> str:
    """The run's own fine-tuning keeps its usual place; the others get a folder beside it."""
    if start == pipeline.config.finetune.start and seed == pipeline.config.seed:
        return "finetune"
    return f"finetune-{start}-{seed}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _markdown(results: dict[str, list[Result]], stages: dict[str, Result], seeds: int) -> str:
    common = _common_metrics(results)
    columns = {column: title for column, title in _COLUMNS.items() if column in common}
    rows: list[tuple[str, ...]] = [("method", *columns.values(), "seconds")]
    for method, runs in results.items():
        cells = [method]
        for column in columns:
            mean, deviation = mean_and_deviation([run.metrics[column] for run in runs])
            percent = column in ("accuracy", "macro_f1")
            cells.append(f"{100 * mean:.1f} ± {100 * deviation:.1f}" if percent else f"{mean:.3f} ± {deviation:.3f}")
        rows.append((*cells, f"{statistics.fmean(run.seconds for run in runs):.0f}"))
    lines = [*_table(rows), ""]
    lines += [f"Mean ± standard deviation over {seeds} fine-tuning seeds of one checkpoint per method.", ""]
    if "distance" in columns:
        lines += ["Gap: test loss less train loss. Distance: of the encoder's weights from the initial ones (l2).", ""]
    stage_rows = [("stage", "steps", "seconds", stages["pretrain"].unit, "model")]
    for stage, run in stages.items():
        stage_rows.append((stage, str(run.steps), f"{run.seconds:.0f}", f"{run.rate:.0f}", str(run.model)))
    lines += [*_table(stage_rows), "", "Classifiers:", ""]
    lines += [f"- {method}: {', '.join(str(run.model) for run in runs)}" for method, runs in results.items()]
    return "\n".join(lines) + "\n"


def _common_metrics(results: dict[str, list[Result]]) -> list[str]:
    """Those that all runs have: runs finished by an earlier version have fewer."""
    runs = [run for each in results.values() for run in each]
    return [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns are aligned for reading as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _csv(results: dict[str, list[Result]], first_seed: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = _common_metrics(results)
    writer.writerow(["method", "seed", *columns, "seconds"])
    for method, runs in results.items():
        for number, run in enumerate(runs):
            writer.writerow([method, first_seed + number, *(run.metrics[c] for c in columns), run.seconds])
    return text.getvalue()
