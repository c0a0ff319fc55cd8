"""The typer application, and how errors become one sentence and an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdfast import __version__, bundled
from sdfast.cli import (
    bench,
    cache,
    complete,
    convert,
    doctor,
    embed,
    guide,
    output,
    plan,
    predict,
    probe,
    push,
    replay,
    report,
    runs,
    study,
    theory,
)
from sdfast.cli.options import (
    ConfigFile,
    Data,
    Device,
    FileColumn,
    LabelColumn,
    Model,
    Name,
    Overrides,
    Preset,
    RunDirectory,
    TextColumn,
    Unlabelled,
    config_of,
    with_columns,
)
from sdfast.errors import SdfastError, UserError, brief, said

if TYPE_CHECKING:
    from sdfast.config import Config

# click's UsageError, which typer brings under a path of its own that differs between its versions
UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="sdfast",
    help="Adapt a pre-trained transformer to a small domain by self-distillation for further pre-training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
config_app = typer.Typer(no_args_is_help=True, help="Print the configuration or its schema.")
app.add_typer(config_app, name="config")
app.add_typer(cache.app, name="cache")
for command in (
    convert.convert,
    bench.bench,
    plan.plan,
    replay.replay,
    theory.theory,
    study.study,
    predict.predict,
    report.report,
    push.push,
    embed.embed,
    probe.probe,
    doctor.doctor,
    runs.runs,
):
    app.command()(command)

_STAGES = ("pretrain", "distill", "finetune")
_OUTPUT = "the standard output"
_LONGEST_MESSAGE = 1000  # characters


@app.command()
def train(
    overrides: Overrides = None,
    stage: Annotated[
        str, typer.Option(help="pretrain, distill, finetune or all", autocompletion=complete.words(*_STAGES, "all"))
    ] = "all",
    model: Model = None,
    data: Data = None,
    unlabelled: Unlabelled = None,
    label_column: LabelColumn = None,
    file_column: FileColumn = None,
    text_column: TextColumn = None,
    out: Annotated[
        str | None,
        typer.Option(help="run directory; runs/<model>-<data> when not given", autocompletion=complete.run_directories),
    ] = None,
    name: Name = None,
    config: ConfigFile = None,
    preset: Preset = None,
    zero: Annotated[int | None, typer.Option(help="DeepSpeed ZeRO stage: 0, 1, 2 or 3")] = None,
    resume: Annotated[
        str,
        typer.Option(
            help="auto continues and skips what is done; never runs all anew",
            autocompletion=complete.words("auto", "never"),
        ),
    ] = "auto",
    replace: Annotated[bool, typer.Option("--replace", help="take the place of another run that is in --out")] = False,
    device: Device = None,
) -> None:
    """Bring a stage up to date: run what it needs, skip what is done, resume what was interrupted."""
    from sdfast.cli.closing import close_run, run_document
    from sdfast.cli.show import show_result
    from sdfast.pipeline import Pipeline

    pipeline = Pipeline(
        model=model,
        data=data,
        out=out,
        name=name,
        config=config,
        preset=preset,
        zero=zero,
        resume=resume,  # type: ignore[arg-type]
        replace=replace,
        device=device,
        overrides=with_columns(overrides, label_column, file_column, text_column, unlabelled),
    )
    result = pipeline.run(stage)  # type: ignore[arg-type]
    if pipeline.ranks.is_first:

        def show() -> None:
            show_result(result, pipeline.results)
            close_run(pipeline.out, pipeline.results)

        output.give(lambda: run_document(pipeline.out, pipeline.results), show)


@app.command(name="eval")
def evaluate(
    out: Annotated[
        Path,
        typer.Option(help="run directory of the fine-tuned model", autocompletion=complete.run_directories),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="keys of data for --data, e.g. data.unseen=drop",
            autocompletion=complete.overrides,
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="labelled source; the run's own test split when not given")] = None,
    label_column: LabelColumn = None,
    file_column: FileColumn = None,
    text_column: TextColumn = None,
    predictions: Annotated[
        Path | None, typer.Option(help="file for the predictions; predictions.csv in --out when not given")
    ] = None,
    device: Device = None,
) -> None:
    """Classify with a run's fine-tuned model; writes predictions.csv, of another source predictions-<its name>.csv."""
    from sdfast.cli.show import show_classes, show_metrics, show_numbers
    from sdfast.pipeline import Pipeline
    from sdfast.rundir import read_result

    config = config_of(out)
    overrides = with_columns(overrides, label_column, file_column, text_column)
    if other := next((each for each in overrides if data is None or not each.startswith("data.")), None):
        raise UserError(f"{other}: eval takes keys of the data section alone, for the source that --data names.")
    pipeline = Pipeline(out=out, config=config, device=device, overrides=overrides)
    found = pipeline.evaluation(data, predictions)
    stored = read_result(out / "finetune")

    def show() -> None:
        show_metrics(found.metrics, stored.paper_metric if data is None and stored is not None else None)
        if found.per_class:
            show_classes(found.per_class, found.confusion_matrix)
        show_numbers(found.per_output or {})

    output.give({"out": out, "data": data or pipeline.config.data_spec, **vars(found)}, show)


@app.command()
def export(
    out: RunDirectory,
    to: Annotated[str, typer.Option(help="folder to make; onnx, torch.export, or a file ending in .onnx or .pt2")],
    stage: Annotated[
        str,
        typer.Option(
            help="folder of the stage: pretrain, distill, distill/round-1, finetune",
            autocompletion=complete.words(*_STAGES),
        ),
    ] = "finetune",
) -> None:
    """Write a stage's model in Hugging Face format, as ONNX, or for torch.export; of an unfinished one, its newest
    checkpoint. No GPU is needed.

    --to onnx and --to torch.export write OUT/export/STAGE.onnx and .pt2,
    compared with the model before they can be seen (./onnx is a folder).
    """
    from sdfast.pipeline import Pipeline
    from sdfast.sharing.target import target_of

    steps = Pipeline(out=out, config=config_of(out), device="cpu").export(stage, to)
    path = target_of(to, out, stage).path
    output.give(
        {"to": path, "stage": stage, "steps": steps}, lambda: typer.echo(f"{path}: {stage} after {steps} steps")
    )


@config_app.command(name="show")
def config_show(
    overrides: Overrides = None,
    config: ConfigFile = None,
    preset: Preset = None,
    model: Model = None,
    data: Data = None,
    unlabelled: Unlabelled = None,
    label_column: LabelColumn = None,
    file_column: FileColumn = None,
    text_column: TextColumn = None,
) -> None:
    """Print the resolved configuration as YAML, ready for --config."""
    from sdfast.config import resolve

    overrides = with_columns(overrides, label_column, file_column, text_column, unlabelled)

    def resolved_for(source: str | None) -> Config:
        options: dict[str, Any] = {"model": model} if model else {}
        options |= {"data": {"source": source}} if source else {}
        return resolve(preset=preset, file=config, overrides=overrides, options=options)

    resolved, own = resolved_for(data), resolved_for(data or "own")
    bundled_only = [
        f"data.{name}={value}" for name, value in resolved.data if name != "source" and getattr(own.data, name) != value
    ]
    shown = _for_model(resolved)

    def show() -> None:
        if bundled_only:
            only = ", ".join(bundled_only)
            typer.echo(f"# {only} is of the bundled data alone; give --data to see what holds for yours")
        typer.echo(shown.to_yaml(), nl=False)

    output.give(lambda: shown.model_dump(mode="json"), show)


def _for_model(config: Config) -> Config:
    """The configuration with what depends on the model, when that is here and would not have to be fetched."""
    name = config.model_spec
    folder = bundled.model_folder(name) if name in bundled.MODELS else Path(name).expanduser()
    if not folder.exists():
        return config
    from sdfast.config import with_own_settings
    from sdfast.modalities.choose import modality_name
    from sdfast.modalities.images.families import describe, trained_with
    from sdfast.models.found import bare_file
    from sdfast.models.weights import read_config

    if bare_file(folder) is not None:
        settings = describe(folder, image_size=config.data.image_size).config
        return with_own_settings(config, trained_with(settings.values, settings.path))[0].resolved("images")
    if not (folder / "config.json").is_file():
        return config
    described = read_config(folder)
    own = trained_with(described, folder / "config.json")
    return with_own_settings(config, own)[0].resolved(modality_name(described))


@config_app.command(name="schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration."""
    import json

    from sdfast.config import Config

    schema = Config.model_json_schema()
    output.give(schema, lambda: typer.echo(json.dumps(schema, indent=2)))


@config_app.command(name="presets")
def config_presets() -> None:
    """List the presets."""
    from sdfast.config import presets

    def show() -> None:
        for name, about in presets().items():
            typer.echo(f"{name:12} {about}")

    output.give(presets(), show)


@app.command()
def env() -> None:
    """Print versions and hardware, ready to paste into a bug report."""
    from sdfast.cli.show import environment

    lines = environment()

    def show() -> None:
        for name, value in lines.items():
            typer.echo(f"{name:16}{value}")

    output.give(lines, show)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdfast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print it")
    ] = False,
    local_rank: Annotated[
        int | None, typer.Option("--local_rank", "--local-rank", hidden=True, help="what the deepspeed launcher adds")
    ] = None,
    quiet: output.Quiet = False,
    verbose: output.Verbose = False,
    json: output.Json = False,
) -> None:
    output.choose(quiet, verbose, json)


@app.command(name="help")
def show_help(
    command: Annotated[list[str] | None, typer.Argument(help="the command, as in: sdfast help config show")] = None,
) -> None:
    """Show the help of sdfast or of a command, as --help does."""
    app([*(command or ()), "--help"], prog_name="sdfast", standalone_mode=False)


output.everywhere(app)
guide.present(app)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 bad usage or input, 128 + n for a signal.

    As one process of several that fail, it ends here: what waits for a process that is gone would never end.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    complete.join_words_of_bash()
    with output.session(silent=bool(_rank_and_world()[0])):
        code = _code_of(arguments)
        output.give({"exit_code": code}, lambda: None)  # of a command that has nothing else to give
    if code and _rank_and_world()[1] > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if "sdfast.launch" in sys.modules:
        sys.modules["sdfast.launch"].leave()
    return code


def _code_of(arguments: list[str] | None) -> int:
    log = logging.getLogger("sdfast")
    try:
        code = app(arguments, prog_name="sdfast", standalone_mode=False)
        return _fail("interrupted.", 130) if code == 130 else code if isinstance(code, int) else 0
    except SdfastError as error:
        log.debug("where it was found:", exc_info=error)
        return error.exit_code if error.everywhere and _rank_and_world()[0] else _fail(str(error), error.exit_code)
    except UsageError as error:
        output.choose(json="--json" in (sys.argv[1:] if arguments is None else arguments))  # which was not read yet
        if not error.format_message():  # the help has been shown
            return 2
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        return _fail(f"{error.format_message().rstrip('.')}{where}.", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted.", 130)
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        if (name := error.filename or _unnamed(error)) == _OUTPUT:
            _drop_output()
        return _fail(f"{name}: {said(error)}.", 1)


def _rank_and_world() -> tuple[int, int]:
    """As the launcher says; alone where it contradicts itself, which is said when something is to be computed."""
    if not {"RANK", "SLURM_PROCID"}.isdisjoint(os.environ):  # else without the import
        from sdfast import launch

        with contextlib.suppress(UserError):
            here = launch.launch_info()
            return here.rank, here.world
    return 0, 1


def _unnamed(error: OSError) -> str:
    """What an error without a file's name is of: where we open a file it is named, but not what is printed to."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("echo", "print"):  # typer's, and that of a rich console
            return _OUTPUT
    return "a file"


def _drop_output() -> None:
    """What is still to be printed and cannot be: the interpreter would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output.stdout().fileno())
        os.close(nowhere)


def _fail(message: str, code: int) -> int:
    if _rank_and_world()[1] > 1:
        from sdfast import launch

        if not launch.may_speak():
            return code
    sentence = _one_sentence(message)
    typer.echo(f"sdfast: {sentence}", err=True)
    output.give_error(sentence, code)
    return code


def _one_sentence(message: str) -> str:
    """A message in one line, with an end, and no longer than is read; what a library says may be otherwise."""
    message = brief(re.sub(r"\s*[\r\n]\s*", " ", message.strip()))
    message = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]} [...]"
    return message if message.endswith((".", "?", "!")) else f"{message}."
