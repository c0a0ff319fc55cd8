"""`sdfast report`: the page about a run that is there already."""

from __future__ import annotations

import typer

from sdfast.cli import output
from sdfast.cli.options import Device, RunDirectory, config_of


def report(out: RunDirectory, device: Device = None) -> None:
    """Write report.html of a run that was trained before, or by an earlier version; a run writes it as it goes."""
    from sdfast.pipeline import Pipeline

    path = Pipeline(out=out, config=config_of(out), device=device).report()
    output.give({"out": out, "report": path}, lambda: typer.echo(f"report: {path}"))
