"""What the commands print."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata

import typer
from rich.console import Console
from rich.table import Table

from sdfast import __version__
from sdfast.rundir import Result

_PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "xformers",
    "deepspeed",
    "transformers",
    "timm",
    "datasets",
    "safetensors",
)


def show_result(result: Result, stages: Sequence[Result]) -> None:
    """Seconds, speed and model of each stage that the command needed, and the classifier's scores."""
    table = Table("stage", "steps", "seconds", result.unit, "model")
    for each in stages:
        table.add_row(each.stage, str(each.steps), f"{each.seconds:.0f}", f"{each.rate:.0f}", str(each.model))
    Console().print(table)
    if result.metrics:
        show_metrics(result.metrics, result.paper_metric)


def show_metrics(metrics: Mapping[str, float], paper_metric: str | None = None) -> None:
    """One line per metric, with what it is to be compared with; the one that the paper reports is marked."""
    beside = {
        "accuracy": ("majority_class_accuracy", "always the largest class: {:.4f}"),
        "macro_f1": ("macro_f1_classes", "over the {:.0f} classes that occur in the test rows or predictions"),
    }
    compared = {other for other, _ in beside.values()}
    for name, value in metrics.items():
        if name in compared:
            continue
        notes = ["the paper's metric for this data set"] if name == paper_metric else []
        other, text = beside.get(name, ("", ""))
        if other in metrics:
            notes.append(text.format(metrics[other]))
        typer.echo(f"{name} {value:.4f}" + (f" ({'; '.join(notes)})" if notes else ""))


def show_environment() -> None:
    """Versions and hardware."""
    import torch

    lines = {"sdfast": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            lines[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            lines[package] = "not installed"
    lines["cpu threads"] = str(torch.get_num_threads())
    lines["cpu capability"] = torch.backends.cpu.get_cpu_capability()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines["cuda"] = f"{torch.version.cuda or 'not built in'}; devices: {', '.join(gpus) or 'none'}"
    for name, value in lines.items():
        typer.echo(f"{name:16}{value}")
