"""What the files of a run directory say: its configuration, how far each stage is, and what was recorded of it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdfast.config import Config, resolve
from sdfast.durable import read_json
from sdfast.errors import UserError
from sdfast.regular import open_regular
from sdfast.rundir import REPORT_FOLDER, RESULT, StoredResult, read_result
from sdfast.store import checkpoint

SESSIONS = "sessions.json"  # in the report's folder: the commands that worked on the run, and on what
State = Literal["done", "running", "interrupted", "outdated", "not begun"]
_KINDS = ("head", "pretrain", "distill", "finetune")
_LARGEST = 1e300  # of a value that is drawn
_KEPT = 4000  # records of a stage that are held; more are thinned by two as they come


@dataclass(frozen=True)
class Live:
    """What a process that trains says of itself.

    Attributes:
        folder: of the stage that trains, such as `distill/round-1`; None between two of them.
        kind: of that stage.
        step, steps: done, and in all.
    """

    folder: str | None = None
    kind: str | None = None
    step: int = 0
    steps: int = 0


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run.

    Attributes:
        folder: its name in the run directory.
        kind: `head`, `pretrain`, `distill` or `finetune`.
        state: `outdated` is one that was made from weights that are no more.
        step, steps: done, and in all.
        result: of one that is done.
        values: of each quantity in `metrics.jsonl`, steps and values.
    """

    folder: str
    kind: str
    state: State
    step: int
    steps: int
    result: StoredResult | None
    values: Mapping[str, tuple[list[float], list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run directory, read.

    Attributes:
        out: its path.
        config: None where there is none that this version reads.
        stages: those that are there or are to come, in the order in which they are made.
        manifest: of the data; empty where there is none.
        sessions: see `sdfast.report.live`; empty for runs of before.
        live: whether a process works on it, as it says of itself.
    """

    out: Path
    config: Config | None
    stages: list[StageRecord]
    manifest: Mapping[str, Any]
    sessions: list[dict[str, Any]]
    live: Live | None

    @property
    def classifiers(self) -> list[StageRecord]:
        """Fine-tunings that are done and hold, that in `finetune` first."""
        found = [each for each in self.stages if each.kind == "finetune" and each.state == "done" and each.result]
        return sorted(found, key=lambda each: each.folder != "finetune")

    @property
    def modality(self) -> Literal["images", "texts"]:
        """What the model is of."""
        return "texts" if "tokenization" in self.manifest else "images"


def read_run(out: Path, live: Live | None = None) -> Run | None:
    """What is in a run directory; None where it is none.

    Raises:
        OSError, UserError: something may not be read.
    """
    config = _config(out / "config.yaml")
    found = _found(out)
    if config is None and not found and live is None:
        return None
    manifest = _json(out / "pack" / "manifest.json")
    sessions = read_json(out / REPORT_FOLDER / SESSIONS)
    stages = _stages(out, found, config, live)
    told = [each for each in sessions if isinstance(each, dict)] if isinstance(sessions, list) else []
    return Run(out, config, stages, manifest if isinstance(manifest, dict) else {}, told, live)


def _config(path: Path) -> Config | None:
    try:
        return resolve(file=path) if path.is_file() else None
    except UserError:  # of a later version
        return None


def _found(out: Path) -> list[str]:
    """Folders of stages that have a result, records or a state."""
    signs = (RESULT, "metrics.jsonl", "checkpoints")
    folders = [*out.glob("*"), *out.glob("distill/round-*")]
    here = [each for each in sorted(folders) if any((each / sign).exists() for sign in signs)]
    return [each.relative_to(out).as_posix() for each in here]


def _expected(config: Config | None) -> list[str]:
    if config is None:
        return []
    rounds = config.distill.rounds
    chain = ["pretrain", *(f"distill/round-{number}" for number in range(1, rounds)), "distill"]
    upto = {"init": 0, "pretrain": 1, "distill": len(chain)}[config.finetune.start]
    return [*chain[:upto], "finetune"]


def _place(folder: str) -> tuple[int, int, str]:
    """Where a stage comes in the order in which they are made."""
    kinds = {"head": 0, "pretrain": 1, "distill": 3, "finetune": 4}
    if folder.startswith("distill/round-"):
        number = folder.removeprefix("distill/round-")
        return 2, int(number) if number.isdigit() else 0, folder
    return kinds.get(folder, 5), 0, folder


def _stages(out: Path, found: list[str], config: Config | None, live: Live | None) -> list[StageRecord]:
    there: list[StageRecord] = []
    for folder in sorted({*found, *_expected(config), *([live.folder] if live and live.folder else [])}, key=_place):
        stored = _result(out / folder)
        is_live = live is not None and live.folder == folder
        kind = live.kind if live is not None and is_live else _kind(out, folder, stored)
        if kind is None:
            continue
        steps = _steps(config, kind, stored)
        values = records(out / folder / "metrics.jsonl")
        at = int(max((each[0][-1] for each in values.values()), default=0))
        if live is not None and is_live:
            there.append(StageRecord(folder, kind, "running", live.step, live.steps or steps, None, values))
        elif (saved := _saved(out / folder)) or (stored is None and folder in found):
            there.append(StageRecord(folder, kind, "interrupted", saved or at, steps, None, values))
        elif stored is None:
            there.append(StageRecord(folder, kind, "not begun", 0, steps, None))
        else:
            state: State = "outdated" if _is_outdated(stored, kind, folder, there, config) else "done"
            there.append(StageRecord(folder, kind, state, stored.steps, stored.steps, stored, values))
    return there


def _is_outdated(
    stored: StoredResult, kind: str, folder: str, before: list[StageRecord], config: Config | None
) -> bool:
    """Whether what a stage was made from is of a stage that is there, and has other weights now or none."""
    if kind == "distill":
        asked, need = stored.inputs.get("teacher"), _teacher_of(folder, before)
    elif folder == "finetune" and config is not None and config.finetune.start != "init":
        asked, need = stored.inputs.get("start"), config.finetune.start
    else:
        return False
    source = next((each for each in before if each.folder == need), None)
    if source is None or source.state == "not begun" or asked is None:
        return False
    return source.state != "done" or source.result is None or source.result.weights != asked


def _teacher_of(folder: str, before: list[StageRecord]) -> str:
    rounds = [each.folder for each in before if each.folder.startswith("distill/")]
    return rounds[-1] if rounds else "pretrain"


def _kind(out: Path, folder: str, stored: StoredResult | None) -> str | None:
    inputs = None if stored is not None else checkpoint.inputs_of(out / folder / "checkpoints")
    named = folder.partition("/")[0] if inputs is None else inputs.get("stage")
    kind = named if stored is None else stored.stage
    return kind if kind in _KINDS else None


def _steps(config: Config | None, kind: str, stored: StoredResult | None) -> int:
    if config is not None and kind == "head":
        return config.pretrain.new_head_steps
    if config is not None:
        return int(getattr(config, kind).steps)
    return stored.steps if stored else 0


def _saved(folder: Path) -> int:
    """The step of the newest state that is there to go on from; 0 where there is none."""
    steps = [int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-[0-9]*")]
    return max(steps, default=0) if checkpoint.inputs_of(folder / "checkpoints") is not None else 0


def _result(folder: Path) -> StoredResult | None:
    try:
        status = os.stat(folder / RESULT)
    except OSError:
        return None
    return _read_once(str(folder), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _read_once(folder: str, changed: int, size: int) -> StoredResult | None:
    return read_result(Path(folder))


def _json(path: Path) -> Any:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return _json_once(str(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _json_once(path: str, changed: int, size: int) -> Any:
    return read_json(Path(path))


class _Growing:
    """A file of records that is read on from where it was left."""

    def __init__(self) -> None:
        self.at, self.identity = 0, (0, 0)
        self.values: dict[str, tuple[list[float], list[float]]] = {}
        self.rest = b""

    def read(self, path: Path) -> dict[str, tuple[list[float], list[float]]]:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self.identity or status.st_size < self.at:
                self.__init__()  # type: ignore[misc]  # another file than before
                self.identity = (status.st_dev, status.st_ino)
            file.seek(self.at)
            data = file.read()
        self.at += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self._add(line)
        return self.values

    def _add(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            step = float(record.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return  # a torn line, or a person's
        for name, value in record.items():
            if type(value) not in (int, float) or not abs(value) < _LARGEST:
                continue
            if name not in self.values:
                self.values[name] = ([], [])
            steps, values = self.values[name]
            steps.append(step)
            values.append(float(value))
            if len(steps) >= 2 * _KEPT:
                _halve(steps, values)


def _halve(steps: list[float], values: list[float]) -> None:
    """Keep of each four neighbours the lowest and the highest, in their order."""
    kept: list[int] = []
    for start in range(0, len(values), 4):
        part = values[start : start + 4]
        kept += sorted({start + part.index(min(part)), start + part.index(max(part))})
    steps[:], values[:] = [steps[at] for at in kept], [values[at] for at in kept]


_growing: dict[str, _Growing] = {}


def records(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of each quantity in a `metrics.jsonl`, about 4,000 at least of more; none where there is none.

    What was read before is not read again while this process runs.
    """
    if not path.is_file():
        _growing.pop(str(path), None)
        return {}
    if len(_growing) > 200:
        _growing.clear()
    return _growing.setdefault(str(path), _Growing()).read(path)
