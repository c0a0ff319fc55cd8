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
_COLUMNS = ("accuracy", "macro_f1", "test_loss", "train_loss")


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
    from rich.console import Console
    from rich.markdown import Markdown

    stages = {"pretrain": pipeline.pretrain(), "distill": pipeline.distill()}
    first = pipeline.config.seed
    results: dict[str, list[Result]] = {}
    for start, method in METHODS.items():
        results[method] = [
            pipeline.finetune(start, seed, _folder(pipeline, start, seed)) for seed in range(first, first + seeds)
        ]
    text = _markdown(results, stages, seeds)
    durable.write_bytes(pipeline.out / "compare.md", text.encode())
    durable.write_bytes(pipeline.out / "compare.csv", _csv(results, first).encode())
    runs = {method: [run.metrics for run in each] for method, each in results.items()}
    durable.write_json(pipeline.out / "compare.json", {"seeds": list(range(first, first + seeds)), "metrics": runs})
    console = Console()
    console.print(Markdown(text) if console.is_terminal else text, soft_wrap=not console.is_terminal)
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
    lines = [
        "| method | accuracy % | macro-F1 % | test loss | train loss | seconds to fine-tune | models |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, runs in results.items():
        cells = [method]
        for column in _COLUMNS:
            mean, deviation = mean_and_deviation([run.metrics[column] for run in runs])
            percent = column in ("accuracy", "macro_f1")
            cells.append(f"{100 * mean:.2f} ± {100 * deviation:.2f}" if percent else f"{mean:.3f} ± {deviation:.3f}")
        cells.append(f"{statistics.fmean(run.seconds for run in runs):.0f}")
        cells.append(", ".join(str(run.model) for run in runs))
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Mean ± standard deviation over {seeds} fine-tuning seeds of one checkpoint per method.",
        "",
    ]
    lines += ["| stage | steps | seconds | img/s | model |", "|---|---|---|---|---|"]
    for stage, run in stages.items():
        lines.append(f"| {stage} | {run.steps} | {run.seconds:.0f} | {run.img_per_s:.0f} | {run.model} |")
    return "\n".join(lines) + "\n"


def _csv(results: dict[str, list[Result]], first_seed: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = list(next(iter(results.values()))[0].metrics)
    writer.writerow(["method", "seed", *columns, "seconds"])
    for method, runs in results.items():
        for number, run in enumerate(runs):
            writer.writerow([method, first_seed + number, *(run.metrics[c] for c in columns), run.seconds])
    return text.getvalue()
