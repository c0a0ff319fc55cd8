"""`sdfast report`: the page about a run that is there already."""

from __future__ import annotations

from typing import Annotated

import typer

from sdfast.cli import output
from sdfast.cli.options import Device, RunDirectory, config_of

Umap = Annotated[bool, typer.Option("--umap", help="Also map the features with UMAP (the extra umap): a minute more.")]


def report(out: RunDirectory, device: Device = None, umap: Umap = False) -> None:
    """Write report.html of a run that was trained before, or by an earlier version; a run writes it as it goes."""
    from sdfast.pipeline import Pipeline

    path = Pipeline(out=out, config=config_of(out), device=device).report(umap)
    output.give({"out": out, "report": path}, lambda: typer.echo(f"report: {path}"))
