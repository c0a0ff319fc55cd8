"""How `train` and `study` end: in a few words, or as the document of `--json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdfast.durable import read_json
from sdfast.rundir import REPORT, Result
from sdfast.studies.verdict import stages_in

_BEST = ("accuracy", "mean_average_precision", "r2")  # the first that a classifier has, where the paper names none


def run_document(out: Path, results: Sequence[Result]) -> dict[str, Any]:
    """A run for a program: its stages with what is in their result.json, and where things lie.

    Args:
        out: the run directory.
        results: of the stages that were needed.
    """
    return {
        "out": out,
        "report": report_in(out),
        "seconds": sum(each.seconds for each in results),
        "stages": {each.model.parent.relative_to(out).as_posix(): each for each in results},
    }


def report_in(out: Path) -> Path | None:
    """The report of a run or study, where it has one."""
    return path if (path := out / REPORT).is_file() else None


def close_run(out: Path, results: Sequence[Result]) -> None:
    """Print the last lines of a run: how good, how long, and where to look."""
    from sdfast.log import clock_time

    took = f"{clock_time(sum(each.seconds for each in results))} of training"
    best = next((said for each in reversed(results) if (said := best_metric(each.metrics, each.paper_metric))), None)
    close(f"{best}, after {took}" if best else took, out)


def study_document(out: Path, name: str, failures: Sequence[str]) -> dict[str, Any]:
    """A study for a program: what its JSON file holds, where things lie, and what failed."""
    found = read_json(out / f"{name}.json") or {}
    return {"out": out, "report": report_in(out), "failures": list(failures), **found}


def close_study(out: Path, name: str) -> None:
    """Print the last lines of a study, after its table and what came out: how long it took, and where to look."""
    from sdfast.log import clock_time

    found = read_json(out / f"{name}.json")
    if not isinstance(found, dict) or not found.get("data"):
        return
    stages = {each["fingerprint"]: each["seconds"] for data in found["data"] for each in stages_in(data)}
    close(f"{clock_time(sum(stages.values()))} of training in {len(stages)} stages", out)


def best_metric(metrics: Mapping[str, float], paper_metric: str | None = None) -> str | None:
    """The metric to look at first, in words, with what it is to be compared with; None where there is none."""
    name = next((each for each in (paper_metric, *_BEST) if each in metrics), None)
    if name is None:
        return None
    said = f"{name.replace('_', ' ')} {metrics[name]:.4f}"
    if name == "accuracy" and (largest := metrics.get("majority_class_accuracy")) is not None:
        said += f" (always the largest class: {largest:.4f})"
    return said


def close(summary: str, out: Path) -> None:
    """Print a summary, and the path of the report, which on a terminal is a link; where there is none the folder's."""
    from rich.console import Console

    console = Console(highlight=False)
    report = report_in(out)
    name, path = ("report", report) if report is not None else ("folder", out)
    console.print(summary, markup=False, soft_wrap=True)
    console.print(f"{name}: {_link(path)}", soft_wrap=True)


def _link(path: Path) -> str:
    """A path as rich markup: on a terminal that can, a click opens it."""
    from rich.markup import escape

    return f"[link={path.absolute().as_uri()}]{escape(str(path))}[/link]"
