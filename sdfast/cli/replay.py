"""`sdfast replay`: why a loss stopped being finite."""

from __future__ import annotations

from typing import Annotated

import typer

from sdfast.cli import output
from sdfast.cli.options import Device, RunDirectory, config_of


def replay(
    out: RunDirectory,
    stage: Annotated[str | None, typer.Option(help="folder of the stage; the newest fault when not given")] = None,
    device: Device = None,
) -> None:
    """Run the step again whose loss was not finite, name what was wrong first, and say what helps.

    The exit code is 0 when the cause is found, and 1 when the step is finite now.
    """
    from sdfast.pipeline import Pipeline

    fault, found = Pipeline(out=out, config=config_of(out), device=device).replay(stage)

    def show() -> None:
        typer.echo(f"{fault['stage']}, step {fault['step']} (found at step {fault['found_at']})")
        for each in found.tried:
            typer.echo(f"  {each}")
        typer.echo(f"{found.sentence[:1].upper()}{found.sentence[1:]}")
        for remedy in found.remedies:
            typer.echo(f"  what may help: {remedy}")

    output.give({"fault": fault, **vars(found)}, show)
    if found.cause is None:
        raise typer.Exit(1)
