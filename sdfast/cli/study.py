"""`sdfast study`: the paper's tables and figures, and all methods on one's own data."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sdfast.cli import complete, output
from sdfast.cli.options import (
    ConfigFile,
    Device,
    FileColumn,
    LabelColumn,
    Model,
    Overrides,
    Preset,
    TextColumn,
    Unlabelled,
    with_columns,
)
from sdfast.errors import RunError, UserError


def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="compare, labels, lengths, table1 to table6, figure1, figure3, figure4, figure5 or cost",
            autocompletion=complete.study_names,
        ),
    ],
    overrides: Overrides = None,
    model: Model = None,
    data: Annotated[
        list[str] | None, typer.Option(help="as for train; again for more data sets; bundled when not given")
    ] = None,
    unlabelled: Unlabelled = None,
    label_column: LabelColumn = None,
    file_column: FileColumn = None,
    text_column: TextColumn = None,
    out: Annotated[str | None, typer.Option(help="the study's directory; runs/<model>-<data> when not given")] = None,
    called: Annotated[
        str | None, typer.Option("--name", help="what the study is called; --out is runs/NAME when not given")
    ] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="runs of each arm: 5, of compare 3, in each fold or chain 1, when not given"
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="paper: fine-tunings of one checkpoint; full: whole chains, pre-training included;"
            " when not given paper, and full with --chains",
            autocompletion=complete.words("paper", "full"),
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=1024, help="stages at a time: the number of CUDA devices when not given")
    ] = None,
    points: Annotated[str | None, typer.Option(help="of a figure's axis, instead of the paper's: 50,100,200")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="some arms alone: fine-tuning,LoRA,kNN,self-distillation; all when not given",
            autocompletion=complete.method_names,
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, max=1000, help="of compare: test each of so many folds, each by its own models")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, max=1000, help="divide into folds so often, by other split seeds")
    ] = None,
    chains: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="whole chains, each with its own seed and, with data.limit or data.labelled_limit, sample of rows",
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Run a table or figure of the paper, or compare all methods on your own data."""
    from sdfast.cli.closing import close_study, study_document
    from sdfast.cli.show import show_markdown
    from sdfast.pipeline import Pipeline
    from sdfast.rundir import slug
    from sdfast.studies.declared import study_named
    from sdfast.studies.run import run_study

    study_named(name)  # before anything is opened
    given: list[str | None] = [*data] if data else [None]
    if out is None and called is None and len(given) > 1:
        out = f"runs/{slug(model or 'bundled')}-{name}"
    common: dict[str, Any] = {
        "model": model,
        "out": out,
        "name": called,
        "config": config,
        "preset": preset,
        "device": device,
    }
    overrides = with_columns(overrides, label_column, file_column, text_column, unlabelled)
    runs = [Pipeline(data=each, overrides=overrides, **common) for each in given]
    text, failures = run_study(
        name,
        [run.config for run in runs],
        runs[0].out,
        seeds,
        protocol,  # type: ignore[arg-type]
        jobs,
        _numbers(points),
        [method for method in (methods or "").split(",") if method.strip()],
        folds,
        repeats,
        chains,
    )
    place = runs[0].out

    def show() -> None:
        show_markdown(text)
        close_study(place, name)

    output.give(lambda: study_document(place, name, failures), show)
    if failures:
        said = "; ".join(each.removesuffix(".") for each in failures)
        raise RunError(f"{len(failures)} stages failed: {said}.")


def _numbers(text: str | None) -> list[int]:
    try:
        return [int(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise UserError(f"--points {text} must be whole numbers with commas between them, such as 50,100.") from None
