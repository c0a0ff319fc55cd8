"""`sdfast predict`: a run's fine-tuned model on new data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdfast.cli.options import (
    Device,
    FileColumn,
    LabelColumn,
    RunDirectory,
    TextColumn,
    config_of,
    data_overrides,
)

NewData = Annotated[str, typer.Option(help="what to read, as --data of train; labels are not needed")]
DataKeys = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="keys of data for --data, e.g. data.text_key=body"),
]


def predict(
    out: RunDirectory,
    data: NewData,
    overrides: DataKeys = None,
    to: Annotated[
        Path | None, typer.Option(help="file for the predictions, .csv or .parquet; both in --out when not given")
    ] = None,
    top: Annotated[int, typer.Option(help="how many of the likeliest classes are named")] = 3,
    probabilities: Annotated[
        bool | None,
        typer.Option(
            "--probabilities/--no-probabilities",
            help="the probability of each class in the csv file too; by default of up to 20 classes",
        ),
    ] = None,
    label_column: LabelColumn = None,
    file_column: FileColumn = None,
    text_column: TextColumn = None,
    device: Device = None,
) -> None:
    """Classify new rows, labelled or not; a stopped command goes on where it was."""
    from sdfast.pipeline import Pipeline

    given = data_overrides("predict", overrides, label_column, file_column, text_column)
    pipeline = Pipeline(out=out, config=config_of(out), device=device, overrides=given)
    found = pipeline.predict(data, to, top=top, probabilities=probabilities)
    typer.echo(f"{found.rows:,} rows: {', '.join(map(str, found.files))}")
