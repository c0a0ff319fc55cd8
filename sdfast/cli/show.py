"""What the commands print."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from sdfast import __version__
from sdfast.durable import read_json
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


def show_result(result: Result, out: Path) -> None:
    """Seconds, speed and model of each finished stage, and the classifier's scores."""
    table = Table("stage", "steps", "seconds", "img/s", "model")
    for stage in ("pretrain", "distill", "finetune"):
        stored = read_json(out / stage / "result.json")
        if stored:
            speed, seconds = f"{stored['img_per_s']:.0f}", f"{stored['seconds']:.0f}"
            table.add_row(stage, str(stored["steps"]), seconds, speed, str(out / stage / "model"))
    Console().print(table)
    if result.metrics:
        show_metrics(result.metrics)


def show_metrics(metrics: Mapping[str, float]) -> None:
    """One line per metric."""
    for name, value in metrics.items():
        typer.echo(f"{name} {value:.4f}")


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
