"""What a command says and gives: how much of it, and whether a person or a program reads it.

Every command takes `--quiet`, `--verbose` and `--json`, before or after its name. A command hands its result to `give`;
with `--json` that is the one document on stdout, and everything else that is printed goes to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TextIO

import typer

from sdfast.errors import UserError

_PANEL = "Messages"
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="warnings and errors alone, and the result", rich_help_panel=_PANEL)
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="what is decided and why, with the time of day", rich_help_panel=_PANEL),
]
Json = Annotated[bool, typer.Option("--json", help="the result as one JSON document on stdout", rich_help_panel=_PANEL)]
_COMMON = {"quiet_": Quiet, "verbose_": Verbose, "json_": Json}


@dataclasses.dataclass
class _State:
    """What one run of the command line was told.

    Attributes:
        handler: shows messages.
        stdout: of the process, where `--json` is given.
        given: whether a document was written.
        quiet, verbose: whether they are given.
    """

    handler: logging.Handler | None = None
    stdout: TextIO | None = None
    given: bool = False
    quiet: bool = False
    verbose: bool = False


_state = _State()


def stdout() -> TextIO:
    """The process's own, which is `sys.stderr` to everybody else where `--json` is given."""
    return sys.stdout if _state.stdout is None else _state.stdout


def wants_json() -> bool:
    """Whether `--json` is given."""
    return _state.stdout is not None


def give(document: Any, show: Callable[[], object]) -> None:
    """Hand over what a command found: as JSON where that is wanted, else shown by `show`.

    Args:
        document: mappings, lists, dataclasses, paths, numbers and words; a number that is not finite becomes null. Or
            what makes it, called where it is wanted.
        show: prints it for a person.
    """
    if _state.stdout is None:
        show()
    else:
        _write(document() if callable(document) else document)


def give_error(sentence: str, code: int) -> None:
    """With `--json`, a failure is a document too, where no result was given before: its sentence and the exit code."""
    _write({"error": sentence, "exit_code": code})


def _write(document: Any) -> None:
    if _state.stdout is not None and not _state.given:
        _state.given = True
        text = json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)
        typer.echo(text, file=_state.stdout)


def _plain(value: Any) -> Any:
    """As values that JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    if hasattr(value, "item") and not isinstance(value, type):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def choose(quiet: bool = False, verbose: bool = False, json: bool = False) -> None:
    """Take note of the options; one that was given before stays.

    Raises:
        UserError: `--quiet` and `--verbose`.
    """
    from sdfast.log import log, show_progress

    if (quiet or _state.quiet) and (verbose or _state.verbose):
        raise UserError("--quiet and --verbose exclude each other; give one.")
    _state.quiet, _state.verbose = _state.quiet or quiet, _state.verbose or verbose
    if quiet:
        show_progress(False)
        if _state.handler is not None:
            _state.handler.setLevel(logging.WARNING)
    if verbose and _state.handler is not None:
        log.setLevel(logging.DEBUG)
        _state.handler.setLevel(logging.DEBUG)
        _state.handler.setFormatter(_Timed("%(asctime)s %(message)s"))
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").addHandler(_state.handler)
    if json and _state.stdout is None:
        _state.stdout, sys.stdout = sys.stdout, sys.stderr


class _Timed(logging.Formatter):
    """Time of day, where the handler does not show it already."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) if type(_state.handler) is logging.StreamHandler else record.getMessage()

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return f"{super().formatTime(record, '%H:%M:%S')}.{record.msecs:03.0f}"


@contextlib.contextmanager
def session(silent: bool) -> Iterator[None]:
    """Show messages on stderr, and keep stdout for the result, while a command runs.

    Args:
        silent: nothing is said, as by every process of a job but the first.
    """
    global _state
    from sdfast.log import show_progress

    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr is not None and sys.stderr.isatty():
        from rich.logging import RichHandler

        from sdfast.log import console

        handler = RichHandler(console=console(), show_path=False, show_level=False, markup=False)
    if silent:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log, warnings = logging.getLogger("sdfast"), logging.getLogger("py.warnings")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    _state = _State(handler)
    try:
        yield
    except Exception as error:  # a defect of ours, whose traceback follows
        give_error(f"{type(error).__name__}: {error}", 1)
        raise
    finally:
        if _state.stdout is not None:
            sys.stdout, _state.stdout = _state.stdout, None
        show_progress(True)
        log.removeHandler(handler)
        warnings.removeHandler(handler)
        logging.captureWarnings(False)
        _state.handler = None


def everywhere(app: typer.Typer) -> None:
    """Give every command of an application the three options, but those that it has itself by that name."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _with_options(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            everywhere(group.typer_instance)


def _with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(command, eval_str=True)
    own = list(signature.parameters.values())
    taken = {name for each in own for name in _names(each.annotation)}
    added = {name: kind for name, kind in _COMMON.items() if not taken & set(_names(kind))}

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        choose(*(given.pop(name, False) for name in _COMMON))
        return command(**given)

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in added.items()
    ]
    run.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in [*own, *more]} | {"return": None}
    return run


def _names(annotation: Any) -> tuple[str, ...]:
    """What an option is called on the command line, where it says so itself."""
    for each in getattr(annotation, "__metadata__", ()):
        if isinstance(each, type(typer.Option())):
            first = (each.default,) if isinstance(each.default, str) else ()
            return (*first, *(each.param_decls or ()))
    return ()
