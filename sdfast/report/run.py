"""The report of a run: `report.html` in its directory, from the files there alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sdfast.durable import reason
from sdfast.errors import SdfastError
from sdfast.log import log
from sdfast.report.classes import class_panels
from sdfast.report.datacard import data_panel
from sdfast.report.evidence.panels import panels as evidence_panels
from sdfast.report.page import Page, save
from sdfast.report.panel import Panel
from sdfast.report.records import Live, Run, read_run
from sdfast.report.setting import command_panel, cost_panel, folders_panel
from sdfast.report.training import training_panel
from sdfast.report.verdict import verdict_of
from sdfast.rundir import REPORT, Result

_PATIENCE = 180.0  # seconds without news, at least


def write_report(out: Path, live: Live | None = None, quiet: bool = False) -> Path | None:
    """Write the report of a run directory anew.

    Args:
        out: the run directory.
        live: what a process that works on it says of itself; None where none does.
        quiet: nothing is said where it cannot be written, as that was said before.

    Returns:
        Its path; None where nothing was trained, or where it cannot be written, which is said in the log.
    """
    return attempted(lambda: _write(out, live), out / REPORT, quiet)


def attempted(write: Callable[[], Path | None], path: Path, quiet: bool = False) -> Path | None:
    """What writing a report gives; None with a warning where it fails: nothing else is to fail for it."""
    try:
        return write()
    except Exception as error:  # whatever it is
        why = reason(error) if isinstance(error, OSError) else str(error) or type(error).__name__
        known = isinstance(error, (SdfastError, OSError))
        if quiet:
            return None
        log.warning("no report at %s: %s", path, why if known else f"{type(error).__name__}: {why}")
        return None


def _write(out: Path, live: Live | None) -> Path | None:
    run = read_run(out, live)
    if run is None or (live is None and all(each.state == "not begun" for each in run.stages)):
        return None
    return save(page_of(run), out / REPORT)


def results_of(out: Path) -> list[Result]:
    """The results that a run directory holds, of stages that are done and whose weights are of each other."""
    run = read_run(out)
    done = [] if run is None else [each for each in run.stages if each.state == "done"]
    return [each.result.result(out / each.folder / "model") for each in done if each.result is not None]


def page_of(run: Run) -> Page:
    """The page of a run."""
    verdict = verdict_of(run)
    return Page(
        title=(run.config.name if run.config else None) or str(run.out),
        verdict=verdict.sentence,
        panels=list(_panels(run)),
        running=run.live is not None,
        about=_about(run),
        notes=verdict.notes,
        tiles=verdict.tiles,
        progress=_progress(run),
        state=_state(run),
        at=time.time(),
        patience=max(_PATIENCE, 20 * _slowest(run)),
    )


def _about(run: Run) -> str:
    """Which model, on which data."""
    if run.config is None:
        return ""
    source = run.manifest.get("source")
    name = source.get("name") if isinstance(source, dict) else None
    return f"{run.config.model or 'the bundled model'} on {run.config.data.source or name or 'bundled data'}"


def _panels(run: Run) -> Iterable[Panel]:
    first = run.classifiers[0] if run.classifiers else None
    if run.live is not None:  # what moves is above
        yield from _kept(lambda: [training_panel(run)], "curves")
    if first is not None:
        yield from _kept(lambda: class_panels(run, first), "classes")
    yield from sorted(_kept(lambda: evidence_panels(run.out), "pictures"), key=lambda each: each.key != "mistakes")
    if run.live is None:
        yield from _kept(lambda: [training_panel(run)], "curves")
    yield from _kept(lambda: [data_panel(run)], "data")
    yield cost_panel(run)
    yield command_panel(run)
    yield folders_panel(run)


def _kept(make: Callable[[], Iterable[Panel | None]], what: str) -> list[Panel]:
    """The panels that can be made; where one cannot, the others still are."""
    try:
        return [each for each in make() if each is not None]
    except Exception as error:
        log.warning("the report has no %s: %s: %s", what, type(error).__name__, error)
        return []


def _state(run: Run) -> str:
    running = next((each for each in run.stages if each.state == "running"), None)
    if running is not None:
        return f"{running.folder} {running.step:,} of {running.steps:,}"
    if run.live is not None:
        return "running"
    stopped = [each for each in run.stages if each.state == "interrupted"]
    if stopped:
        return f"interrupted in {stopped[-1].folder}"
    open_stages = [each for each in run.stages if each.state != "done"]
    return "done" if not open_stages else f"done up to {_last_done(run)}"


def _progress(run: Run) -> float | None:
    """Share of the steps of all stages."""
    steps = sum(each.steps for each in run.stages)
    return sum(each.step for each in run.stages if each.state != "outdated") / steps if steps else None


def _last_done(run: Run) -> str:
    done = [each.folder for each in run.stages if each.state == "done"]
    return done[-1] if done else "nothing"


def _slowest(run: Run) -> float:
    """Seconds between two records of the stage that runs."""
    running = next((each for each in run.stages if each.state == "running"), None)
    _, times = ([], []) if running is None else running.values.get("step_seconds", ([], []))
    if not times or run.config is None:
        return 0.0
    return times[-1] * run.config.engine.log_every
