"""`sdfast export`: a stage's model as a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdfast.errors import UserError


def export(
    out: Annotated[Path, typer.Option(help="run directory")],
    to: Annotated[Path, typer.Option(help="folder to make")],
    stage: Annotated[
        str, typer.Option(help="folder of the stage: pretrain, distill, distill/round-1, finetune")
    ] = "finetune",
) -> None:
    """Write a stage's model in Hugging Face format; of an unfinished one, its newest checkpoint. No GPU is needed."""
    from sdfast.pipeline import Pipeline

    config = out / "config.yaml"
    if not config.is_file():
        raise UserError(f"{out} is not a run directory (it holds no config.yaml); give the --out of a training run.")
    steps = Pipeline(out=out, config=config, device="cpu").export(stage, to)
    typer.echo(f"{to}: {stage} after {steps} steps")
