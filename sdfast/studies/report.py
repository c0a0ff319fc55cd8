"""The report of a study: `report.html` in its directory, from its JSON file and what its stages left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdfast.log import log
from sdfast.report.page import Page, save
from sdfast.report.panel import Panel, duration
from sdfast.report.run import attempted
from sdfast.rundir import REPORT
from sdfast.studies.declared import study_named
from sdfast.studies.drawing import style
from sdfast.studies.evidence import add_evidence
from sdfast.studies.panels import again_panel, panels, stages_panel, trouble_panel
from sdfast.studies.results import METRICS
from sdfast.studies.settle import settled
from sdfast.studies.stored import Data, fixed, label, records_in
from sdfast.studies.verdict import stages_in, verdicts

_SHARE = 0.02  # of the time that may go into pages while a study runs
_PATIENCE = 1800.0  # seconds without news; a stage may take long


def write_report(out: Path) -> Path | None:
    """Write the report of the newest study in a directory anew.

    Returns:
        Its path; None where there is no study, or where it cannot be written, which is said in the log.
    """
    return attempted(lambda: _stored(out), out / REPORT)


def _stored(out: Path) -> Path | None:
    found = list(records_in(out))
    return save(page_of(out, found[0], others=[each["study"] for each in found[1:]]), out / REPORT) if found else None


def make_report(out: Path, device: str | None = None) -> Path | None:
    """The same of a study that nobody works on; what it shows of models is made first where it is missing.

    Args:
        out: the study's directory.
        device: where that is computed; where the study was when None.
    """
    if (record := next(records_in(out), None)) is not None:
        add_evidence(out, record, device)
    return write_report(out)


class LiveReport:
    """Writes the report after stages of a study that runs, as often as it takes little of the time."""

    def __init__(self, out: Path, record: Callable[[], dict[str, Any] | None]) -> None:
        """Set up.

        Args:
            out: the study's directory.
            record: what the study's JSON file would hold now; None before there is anything.
        """
        self.out, self.record, self._due = out, record, 0.0

    def tell(self, done: int, total: int) -> None:
        """A stage is done: a page, where the last one is old enough."""
        begun = time.monotonic()
        if begun < self._due or done == total:
            return
        attempted(lambda: self._write(done, total), self.out / REPORT)
        self._due = time.monotonic() + (time.monotonic() - begun) / _SHARE

    def _write(self, done: int, total: int) -> Path | None:
        record = self.record()
        return None if record is None else save(page_of(self.out, record, (done, total)), self.out / REPORT)


def page_of(
    out: Path, record: Mapping[str, Any], progress: tuple[int, int] | None = None, others: list[str] | None = None
) -> Page:
    """The page of a study.

    Args:
        out: its directory.
        record: as its JSON file has it.
        progress: stages that are done, and how many there are, while it runs.
        others: further studies in the directory.
    """
    study = study_named(record["study"])
    parts = [Data(out, record, values) for values in record["data"]]
    notes = [] if progress is None else ["The study goes on; what is shown is of the stages that are done."]
    notes += [*_settled(record), *_legend(record), *_said(parts)]
    notes += [f"The directory has the tables of further studies: {', '.join(others)}."] if others else []
    return Page(
        title=str(out),
        verdict=" ".join(verdicts(record)),
        panels=_with_style(list(_panels(parts))),
        running=progress is not None,
        about=f"{_about(record)} · {study.name}: {study.title.lower()}",
        notes=notes,
        tiles=_tiles(record, parts),
        progress=None if progress is None else progress[0] / max(progress[1], 1),
        state=f"{progress[0]} of {progress[1]} stages" if progress else "done",
        patience=_PATIENCE,
    )


def _with_style(found: list[Panel]) -> list[Panel]:
    """The first panel brings what the drawings need."""
    if not found:
        return []
    first = found[0]
    return [Panel(first.key, first.title, style() + first.body, first.lead, first.wide), *found[1:]]


def _about(record: Mapping[str, Any]) -> str:
    configs = record.get("config") or [{}]
    name = f"{configs[0]['name']}: " if configs[0].get("name") else ""
    model = configs[0].get("model") or "the bundled model"
    data = ["bundled data" if values["title"] == "bundled" else values["title"] for values in record["data"]]
    return f"{name}{model} on {', '.join(data)}"


def _legend(record: Mapping[str, Any]) -> Iterator[str]:
    """How the numbers were computed; what the columns are stands below the table."""
    about = [metric.about for metric in METRICS.values() if metric.about]
    for sentence in record.get("legend", []):
        if not any(sentence.startswith(each) for each in about):
            yield sentence.replace("`", "")


def _settled(record: Mapping[str, Any]) -> Iterator[str]:
    """What would settle each verdict, by data set where there are several."""
    for data, sentences in zip(record["data"], settled(record), strict=True):
        if sentences:
            yield f"{data['title']}: {sentences}" if len(record["data"]) > 1 else sentences


def _said(parts: list[Data]) -> Iterator[str]:
    for data in parts:
        name = f"{data.values['title']}: " if len(parts) > 1 else ""
        for note in data.values.get("notes", []):
            if not note.startswith(("Failed: ", "Not available: ")):
                yield name + note


def _tiles(record: Mapping[str, Any], parts: list[Data]) -> list[tuple[str, str]]:
    tiles = []
    for data in parts[:2]:
        means, _ = data.shared_means([arm for arm in data.arms if data.metric in arm["summary"]], data.metric)
        if means:
            value, title = max((mean, title) for title, mean in means.items())
            where = f" on {data.values['title']}" if len(parts) > 1 else ""
            told = f"highest {label(data.metric).removesuffix(' %')}{where}: {title}"
            tiles.append((told, fixed(value, data.metric) + (" %" if label(data.metric).endswith("%") else "")))
    runs = sum(len(arm["runs"]) for data in parts for arm in data.arms)
    arms = max((len(data.arms) for data in parts), default=0)
    stages = {stage["fingerprint"]: stage["seconds"] for data in parts for stage in stages_in(data.values)}
    tiles += [("methods", str(arms)), ("classifiers", str(runs)), ("stages", str(len(stages)))]
    return [*tiles, ("training in all", duration(sum(stages.values())))]


def _panels(parts: list[Data]) -> Iterator[Panel]:
    yield from _kept(lambda: trouble_panel(parts), "failures")
    for place, data in enumerate(parts):
        several = len(parts) > 1
        name = data.values["title"] if several else ""
        yield from _kept(lambda data=data, place=place, name=name: panels(data, f"d{place}-", name), "results")  # type: ignore[misc]
    yield from _kept(lambda: iter([stages_panel(parts), again_panel(parts)]), "stages")


def _kept(make: Callable[[], Iterator[Panel]], what: str) -> list[Panel]:
    """The panels that can be made; where one cannot, those before it are kept."""
    found: list[Panel] = []
    try:
        for panel in make():
            found.append(panel)
    except Exception as error:
        log.warning("the report has not all of its %s: %s: %s", what, type(error).__name__, error)
    return found
