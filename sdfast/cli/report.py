"""`sdfast report`: the page about a run or a study that is there already."""

from __future__ import annotations

from typing import Annotated

import typer

from sdfast.cli import output
from sdfast.cli.options import Device, RunDirectory, config_of

Umap = Annotated[bool, typer.Option("--umap", help="Also map the features with UMAP (the extra umap): a minute more.")]


def report(out: RunDirectory, device: Device = None, umap: Umap = False) -> None:
    """Write report.html of a run or study that is there, as an earlier version's; new ones write it as they go."""
    from sdfast.studies.report import make_report
    from sdfast.studies.stored import records_in

    if not (out / "config.yaml").is_file() and any(records_in(out)):
        path = make_report(out, device)
    else:
        from sdfast.pipeline import Pipeline

        otherwise = "give the --out of a training run or of a study"
        path = Pipeline(out=out, config=config_of(out, otherwise), device=device).report(umap)
    output.give({"out": out, "report": path}, lambda: typer.echo(f"report: {path}"))
