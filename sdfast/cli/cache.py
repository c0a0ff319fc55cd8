"""`sdfast cache`: build, verify and describe the bank of teacher features of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sdfast.cli import output
from sdfast.cli.options import (
    Device,
    FileColumn,
    LabelColumn,
    Overrides,
    Preset,
    RunDirectory,
    TextColumn,
    Unlabelled,
    config_of,
    with_columns,
)

app = typer.Typer(no_args_is_help=True, help="Build, verify or describe a run's bank of teacher features.")


@app.command()
def build(
    out: RunDirectory,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="hub id, folder or file of weights; that of the run when not given")
    ] = None,
    data: Annotated[str | None, typer.Option(help="data; that of the run when not given")] = None,
    unlabelled: Unlabelled = None,
    label_column: LabelColumn = None,
    file_column: FileColumn = None,
    text_column: TextColumn = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file; that of the run when not given")] = None,
    preset: Preset = None,
    device: Device = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="replace the bank that is there")] = False,
) -> None:
    """Compute the features, after training the teacher if need be; an interrupted build continues."""
    from sdfast.pipeline import Pipeline

    own = out / "config.yaml"
    if own.is_file() and config is None and preset is None:
        config = own
    given: dict[str, Any] = {"model": model, "data": data, "config": config, "preset": preset, "device": device}
    columns = with_columns(overrides, label_column, file_column, text_column, unlabelled)
    _show(Pipeline(out=out, overrides=columns, **given).build_bank(rebuild))


@app.command()
def verify(
    out: RunDirectory,
    sample: Annotated[int, typer.Option(min=0, help="rows that go through the teacher again")] = 64,
    device: Device = None,
) -> None:
    """Check every byte and the identity, and run the teacher again on a random sample."""
    from sdfast.pipeline import Pipeline
    from sdfast.stages.verify_bank import verify_bank

    pipeline = Pipeline(out=out, config=config_of(out), device=device)
    bank, errors = verify_bank(pipeline.out, pipeline.config, pipeline.device, sample)

    def show() -> None:
        typer.echo(f"{bank.directory}: {len(bank)} rows, every block as it was written, of this run's teacher and data")
        if errors is not None:
            typer.echo(
                f"teacher run again on {errors.rows} rows: largest error {errors.largest:.3g}, mean error"
                f" {errors.mean:.3g} (features have size {errors.size:.3g})"
            )

    output.give({"bank": bank.directory, "rows": len(bank), "errors": errors}, show)


@app.command()
def info(out: RunDirectory) -> None:
    """Print size, identity, age, and what it would cost to build it again."""
    from sdfast.teacher.bank import open_bank

    _show(open_bank(out / "teacher"))


def _show(bank: Any) -> None:
    """Print what a bank is, one quantity a line."""
    identity, layout = bank.identity, bank.layout
    many = "texts" if "tokenizer" in identity["transform"] else "images"
    features, augment, built = identity["features"], identity["augment"], bank.built
    where = "after the last LayerNorm" if features.get("norm") else f"after block {features.get('layer')}"
    lines = {
        "bank": bank.directory,
        "rows": len(bank),
        "features": f"{features['tokens']}, {list(layout.shape)} {layout.dtype}, {where}",
        "views": "none" if augment["kind"] == "none" else f"{augment.get('views')} of each image, {augment['kind']}",
        "size": f"{bank.bytes:,} bytes in {layout.shards} data file{'s' if layout.shards > 1 else ''}",
        "spread": f"{bank.spread:.4g}",
        "fingerprint": bank.fingerprint,
        "teacher": identity["teacher"]["weights"],
        many: identity["rows"],
        "transform": json.dumps(identity["transform"]),
    }
    if built is not None:
        lines["built"] = f"{_duration(time.time() - built.at)} ago, on {built.device}"
        lines["to rebuild"] = f"about {_duration(built.seconds)} ({len(bank) / max(built.seconds, 1e-9):.0f} {many}/s)"

    def show() -> None:
        for name, value in lines.items():
            typer.echo(f"{name:12} {value}")

    output.give(lines, show)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 0):.1f} seconds"
