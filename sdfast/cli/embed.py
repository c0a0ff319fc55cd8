"""`sdfast embed`: features of new data, of any stage of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdfast.cli.options import Device, FileColumn, LabelColumn, RunDirectory, TextColumn, config_of, data_overrides
from sdfast.cli.predict import DataKeys, NewData


def embed(
    out: RunDirectory,
    data: NewData,
    overrides: DataKeys = None,
    stage: Annotated[
        str | None,
        typer.Option(help="init, pretrain, distill or finetune; the last before finetune that is done when not given"),
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="cls, mean (of patches or words), or of images patch (all of them)")
    ] = "cls",
    to: Annotated[Path | None, typer.Option(help="folder to make; one in --out when not given")] = None,
    form: Annotated[str, typer.Option("--format", help="npy (with the rows' names beside it) or parquet")] = "npy",
    dtype: Annotated[str, typer.Option(help="float32 or float16, as stored")] = "float32",
    label_column: LabelColumn = None,
    file_column: FileColumn = None,
    text_column: TextColumn = None,
    device: Device = None,
) -> None:
    """Write features of new rows, labelled or not; a stopped command goes on where it was."""
    from sdfast.pipeline import Pipeline

    given = data_overrides("embed", overrides, label_column, file_column, text_column)
    pipeline = Pipeline(out=out, config=config_of(out), device=device, overrides=given)
    found = pipeline.embed(data, stage, tokens, to, form=form, dtype=dtype)  # type: ignore[arg-type]
    typer.echo(f"{'x'.join(map(str, found.manifest['shape']))} {found.manifest['dtype']}: {found.folder}")
