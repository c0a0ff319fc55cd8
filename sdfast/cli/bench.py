"""`sdfast bench`: what the steps of a run cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdfast.cli import complete, output
from sdfast.cli.options import ConfigFile, Device, Overrides, Preset, config_of
from sdfast.errors import UserError


def bench(
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="hub id or folder; bundled when not given")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="run directory whose settings are measured; left as it is", autocompletion=complete.run_directories
        ),
    ] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    device: Device = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="batch size to measure; may be repeated")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="also write the numbers to this file; - is stdout")
    ] = None,
) -> None:
    """Time the stages on random images: img/s, TFLOP/s, share of this machine's peak, memory, and the run's length."""
    from sdfast.durable import write_json
    from sdfast.log import console
    from sdfast.pipeline import Pipeline

    if json_file == Path("-"):
        output.choose(json=True)
        json_file = None
    if out is not None and config is None:
        config = config_of(out, otherwise="leave --out away")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {json_file.parent}.")
    pipeline = Pipeline(model=model, config=config, preset=preset, device=device, overrides=overrides or ())
    if pipeline.modality.name != "images":
        raise UserError(f"sdfast bench times models of images, and {pipeline.config.model_spec} is one of texts.")
    from sdfast.stages.bench import bench as measure

    with console().status("measuring") as status:
        initial = pipeline.initial  # whose own settings enter the configuration
        report = measure(
            pipeline.config, initial, pipeline.device, batch or (), lambda text: status.update(f"measuring {text}")
        )
    output.give(report.to_json, lambda: _show(report))
    if json_file is not None:
        write_json(json_file, report.to_json())


def _show(report: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    typer.echo(", ".join(f"{name} {value}" if name != "device" else value for name, value in report.machine.items()))
    typer.echo(f"peak of a matrix product, measured: {report.peak_tflops:.3g} TFLOP/s")
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)  # within eighty columns
    for name in ("stage", "variant"):
        table.add_column(name)
    for name in ("batch", "ms", "img/s", "TFLOP/s", "% of\npeak", "GFLOP/\nimage", "peak\nMB", "pre-\ndicted"):
        table.add_column(name, justify="right")
    stage = ""
    for row in report.rows:
        if stage not in ("", row.stage):
            table.add_section()
        stage = row.stage
        table.add_row(
            row.stage,
            row.variant + ("*" if row.configured else ""),
            str(row.batch),
            _digits(1000 * row.seconds),
            _digits(row.img_per_s),
            f"{row.tflops:.3g}",
            f"{100 * row.peak_share:.0f}",
            _digits(row.gflop_per_image),
            "?" if row.memory is None else _digits(row.memory / 1e6),
            _digits(row.memory_predicted / 1e6),
        )
    Console().print(table)
    typer.echo(f"* as the run is configured. Peak MB: {_MEMORY['threads' not in report.machine]}.")
    for plan in report.planned:
        at = "" if plan.measured_batch == plan.batch else f" (at the rate of batch {plan.measured_batch})"
        typer.echo(f"{plan.stage}: {plan.steps} steps of {plan.batch} would take {_duration(plan.seconds)}{at}")


_MEMORY = {True: "of tensors", False: "growth of the process; predicted: its tensors"}


def _digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
