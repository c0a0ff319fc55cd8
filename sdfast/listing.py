"""Runs and studies below a folder, as their own files tell of them: nothing is opened that is trained or cached."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from sdfast.durable import load_json
from sdfast.errors import UserError
from sdfast.locks import in_use
from sdfast.regular import read_regular
from sdfast.rundir import RESULT, StoredResult, read_result

State = Literal["done", "running", "interrupted", "not begun", "damaged"]

STAGES = ("pretrain", "distill", "finetune")
_TOUCHED = ("config.yaml", "log.txt", "predictions.csv")
_BEST = ("accuracy", "mean_average_precision", "r2")  # of classes, of several classes a row, of numbers
_STUDY_STAGE = re.compile(r"(head|pretrain|distill|finetune)-[0-9a-f]{12}")
_ANNOUNCED = re.compile(r"study (\S+) on .*; \d+ of (\d+) stages are done")
_DEEPEST = 6  # folders below the one that is listed
_SMALL, _TAIL, _LOG = 1 << 20, 1 << 12, 1 << 20  # bytes of a file, or of its end, that are read


@dataclass
class Listed:
    """A run or a study.

    Attributes:
        name: its path below the folder that is listed; "." is that itself.
        kind: `run` or `study`.
        called: what its owner calls it (`--name`).
        running: whether a process works in it.
        stages: of a run, the state of each; a round of several, and a new head, where there are.
        steps: of a run, those done and those wanted of each stage that is under way; None where not known.
        counts: of a study, how many of its stages are in each state.
        wanted: of a study, how many stages the last command wanted; None where its log does not say.
        study: its name.
        model, data: as they were asked for; None for those that come with sdfast.
        metric, value: of the best fine-tuning.
        touched: seconds since 1970.
        bytes: on the disk.
        problems: what is damaged or cannot be read, each in a sentence without its end.
    """

    name: str
    kind: Literal["run", "study"]
    called: str | None = None
    running: bool = False
    stages: dict[str, State] = field(default_factory=dict)
    steps: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    counts: dict[State, int] = field(default_factory=dict)
    wanted: int | None = None
    study: str | None = None
    model: str | None = None
    data: str | None = None
    metric: str | None = None
    value: float | None = None
    touched: float = 0.0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def list_runs(folder: Path) -> list[Listed]:
    """All runs and studies below a folder, the one that was touched last first.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the one in which the runs are.")
    found = [_listed(path, "." if path == folder else path.relative_to(folder).as_posix()) for path in _places(folder)]
    return sorted(found, key=lambda each: (-each.touched, each.name))


def _places(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Run and study directories; what is in one is its own."""
    names: dict[str, bool] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    if _is_run(folder, names) or _is_study(folder, names):
        yield folder
    elif depth < _DEEPEST:
        for name in sorted(name for name, inside in names.items() if inside and not name.startswith(".")):
            yield from _places(folder / name, depth + 1)


def _is_run(folder: Path, names: Mapping[str, bool]) -> bool:
    known = [name for name in STAGES if names.get(name)]
    if names.get("config.yaml") is False and (known or {"log.txt", ".lock", "pack"} & names.keys()):
        return True
    return any((folder / name / each).exists() for name in known for each in (RESULT, "metrics.jsonl", "checkpoints"))


def _is_study(folder: Path, names: Mapping[str, bool]) -> bool:
    if not names.get("stages"):
        return False
    with contextlib.suppress(OSError), os.scandir(folder / "stages") as entries:
        return any(_STUDY_STAGE.fullmatch(entry.name) for entry in entries)
    return False


def _listed(folder: Path, name: str) -> Listed:
    listed = Listed(name, "run")
    try:
        listed.running = in_use(folder)
    except OSError as error:
        listed.problems.append(f"its lock cannot be read ({error.strerror})")
    if (folder / "stages").is_dir():
        listed.kind = "study"
        _read_study(folder, listed)
    else:
        _read_run(folder, listed)
    times = [listed.touched, *(_time(folder / name) for name in _TOUCHED)]
    listed.touched = max(times) or _time(folder)
    listed.bytes = _size(folder)
    return listed


def _read_run(folder: Path, listed: Listed) -> None:
    config = _config(folder, listed)
    _name_inputs(config, listed)
    rounds = sorted(folder.glob("distill/round-*"), key=lambda path: (len(path.name), path.name))
    more = ["head"] if (folder / "head").is_dir() else []
    names = [*more, "pretrain", *(path.relative_to(folder).as_posix() for path in rounds), "distill", "finetune"]
    begun: dict[str, float] = {}
    for name in names:
        stored = _result(folder / name, listed)
        metrics = _time(folder / name / "metrics.jsonl")
        changed = _time(folder / name / RESULT)
        listed.touched = max(listed.touched, metrics, changed)
        begins = metrics > changed or (stored is None and (folder / name / "checkpoints").is_dir())
        if stored is not None:
            listed.stages[name] = "done"
            _compare(stored, listed)
        elif changed:
            listed.stages[name] = "damaged"
        else:
            listed.stages[name] = "interrupted" if begins else "not begun"
        if begins and (stored is None or listed.running):
            begun[name] = metrics
    for name in begun:
        section = config.get(name.partition("/")[0])
        steps = section.get("steps") if isinstance(section, dict) else None
        listed.steps[name] = _last_step(folder / name), steps if isinstance(steps, int) else None
    if listed.running and begun:
        listed.stages[max(begun, key=lambda name: begun[name])] = "running"


def _read_study(folder: Path, listed: Listed) -> None:
    for path in sorted((folder / "stages").iterdir()):
        if not _STUDY_STAGE.fullmatch(path.name):
            continue
        stored = _result(path, listed)
        state: State = "done"
        if stored is None:
            state = "damaged" if (path / RESULT).exists() else "interrupted"
            with contextlib.suppress(OSError):
                state = "running" if in_use(path) else state
        elif stored.stage == "finetune":
            _compare(stored, listed)
        listed.counts[state] = listed.counts.get(state, 0) + 1
        listed.touched = max(listed.touched, _time(path / RESULT), _time(path / "metrics.jsonl"))
    with contextlib.suppress(OSError):
        for line in _end_of(folder / "log.txt", _LOG).splitlines():
            if match := _ANNOUNCED.search(line):
                listed.study, listed.wanted = match[1], int(match[2])
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem != listed.study):
        with contextlib.suppress(OSError, ValueError):
            values = load_json(path)
            configs = values.get("config") if isinstance(values, dict) else None
            if isinstance(configs, list) and configs and isinstance(configs[0], dict):
                listed.study = listed.study or path.stem
                _name_inputs(configs[0], listed)
                return


def _config(folder: Path, listed: Listed) -> dict[str, Any]:
    """What `config.yaml` holds, read by the library's own parser where it has one: a thousand are soon read."""
    try:
        text = read_regular(folder / "config.yaml", _SMALL).decode("utf-8")
        values = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        values = None
    if isinstance(values, dict):
        return values
    listed.problems.append("its config.yaml cannot be read")
    return {}


def _name_inputs(config: Mapping[str, Any], listed: Listed) -> None:
    data = config.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    given = (config.get("name"), config.get("model"), source)
    listed.called, listed.model, listed.data = (str(each) if each is not None else None for each in given)


def _result(folder: Path, listed: Listed) -> StoredResult | None:
    try:
        stored = read_result(folder)
    except UserError:
        stored = None
    if stored is None and os.path.lexists(folder / RESULT):
        listed.problems.append(f"{folder.name}/{RESULT} is damaged or cannot be read")
    return stored


def _compare(stored: StoredResult, listed: Listed) -> None:
    """Keep the result's metric where it is the best so far; the paper's, where the data set has one."""
    if stored.stage != "finetune":
        return
    names = [name for name in (stored.paper_metric, *_BEST) if name in stored.metrics]
    if names and (listed.value is None or (names[0] == listed.metric and stored.metrics[names[0]] > listed.value)):
        listed.metric, listed.value = names[0], stored.metrics[names[0]]


def _last_step(folder: Path) -> int:
    """The last one that its metrics have."""
    with contextlib.suppress(OSError):
        for line in reversed(_end_of(folder / "metrics.jsonl", _TAIL).splitlines()):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return int(json.loads(line)["step"])
    return 0


def _end_of(path: Path, size: int) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size).decode("utf-8", "replace")


def _time(path: Path) -> float:
    """When it was last changed; 0 where it is not there."""
    try:
        return os.lstat(path).st_mtime
    except (OSError, ValueError):
        return 0.0


def _size(folder: Path) -> int:
    """Bytes of its files, those that are held by another name too."""
    size, left = 0, [str(folder)]
    while left:
        with contextlib.suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_size
    return size
