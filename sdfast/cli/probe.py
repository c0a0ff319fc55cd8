"""`sdfast probe`: how much of the classes is in the features of each stage."""

from __future__ import annotations

from typing import Annotated

import typer

from sdfast.cli.options import Device, RunDirectory, config_of


def probe(
    out: RunDirectory,
    tokens: Annotated[str, typer.Option(help="cls, or mean of patches or words")] = "cls",
    device: Device = None,
) -> None:
    """Score simple classifiers on each stage's frozen features and on the raw input; writes probe.json."""
    from rich.console import Console
    from rich.table import Table

    from sdfast.inference.probe import shown_metrics
    from sdfast.pipeline import Pipeline

    found = Pipeline(out=out, config=config_of(out), device=device).probe(tokens)  # type: ignore[arg-type]
    probes = list(found.stages.values())[-1]
    columns = [(name, metric) for name, metrics in probes.items() for metric in shown_metrics(metrics)]
    table = Table("stage", *(f"{name} {metric}" for name, metric in columns))
    for stage, metrics in found.stages.items():
        table.add_row(stage, *(f"{metrics[name][metric]:.4f}" if name in metrics else "" for name, metric in columns))
    Console().print(table)
