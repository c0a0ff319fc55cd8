"""Every file that sdfast writes, damaged in every way, and read by every command that reads it."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stress import server
from stress.judge import Case, Verdict, refusal, result
from stress.scenes import Command, Workplace

Change = Callable[[Path], None]
LIES: tuple[Any, ...] = (-1, 10**9, 1e308, "x", "\ud800", None, [], {}, True)
_DEEP = 100_000
# What is written for a person, or is the person's own to change: damage is not mended, and decides nothing.
RECORDS = ("log.txt", "metrics.jsonl", "predictions.csv", "config.yaml", "built.json", ".lock", "report.html")
_SECONDS = 20.0


def damaged(data: bytes) -> dict[str, bytes]:
    """Other contents of a file."""
    chance = random.Random(len(data))
    places = sorted({chance.randrange(8 * len(data)) for _ in range(4)}) if data else []
    cut = {"emptied": 0, "cut to one byte": 1, "cut in half": len(data) // 2, "cut by one byte": len(data) - 1}
    ways = {how: data[:length] for how, length in cut.items() if 0 <= length < len(data)}
    for bit in places:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        ways[f"bit {bit} flipped"] = bytes(changed)
    return ways | {"zeros appended": data + bytes(4096), "all zeros": bytes(len(data)), "twice": data + data}


def _replaced(make: Change) -> Change:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


REPLACED: dict[str, Change] = {
    "absent": lambda path: path.unlink(),
    "a folder": _replaced(lambda path: path.mkdir()),
    "a FIFO": _replaced(lambda path: os.mkfifo(path)),
    "a link to /dev/zero": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _replaced(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _replaced(lambda path: path.symlink_to("nowhere")),
}


def edited(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Other JSON: each value replaced by lies in turn, each key removed, numbers one more, and depth."""
    value = json.loads(data)
    lies = 0
    for path in _places(value):
        where = "/".join(map(str, path)) or "all"
        for _ in range(3):
            lie = LIES[lies % len(LIES)]
            lies += 1
            yield f"{where} is {lie!a}", json.dumps(_with(value, path, lie)).encode()
        if path and path != ("sha256",):  # without the digest of itself it is what an earlier version wrote
            yield f"{where} is absent", json.dumps(_without(value, path)).encode()
        number = _at(value, path)
        if isinstance(number, int) and not isinstance(number, bool):
            yield f"{where} is {number + 1}", json.dumps(_with(value, path, number + 1)).encode()
    yield "deep lists", b"[" * _DEEP + b"]" * _DEEP
    yield "deep objects", b'{"step":' * _DEEP + b"1" + b"}" * _DEEP


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(child, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    return functools.reduce(lambda place, key: place[key], path, value)


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = json.loads(json.dumps(value))
    _at(value, path[:-1])[path[-1]] = new
    return value


def _without(value: Any, path: tuple[Any, ...]) -> Any:
    value = json.loads(json.dumps(value))
    del _at(value, path[:-1])[path[-1]]
    return value


def mutations(kind: str, state: str, states: Path, readers: list[Command]) -> Iterator[Case]:
    """One for every file of a state and way to damage it.

    Args:
        kind: images or texts.
        state: name of it.
        states: where it lies.
        readers: commands that start from it, those that mend it last.
    """
    for path in sorted((states / state).rglob("*")):
        if not path.is_file():
            continue
        name = str(path.relative_to(states / state))
        reading = [command for command in readers if any(call.path == name for call in command.calls)]
        for attack, how, change in _changes(path):
            yield Case(
                attack, f"damage {state}/{name}: {how}", functools.partial(_damage, state, name, change, reading)
            )


def _changes(path: Path) -> Iterator[tuple[str, str, Change]]:
    data = path.read_bytes()
    for how, changed in damaged(data).items():
        yield "damaged bytes", how, _writing(changed)
    for how, change in REPLACED.items():
        yield "other kinds of file", how, change
    if path.suffix == ".json":
        for how, changed in edited(data):
            yield "lies in JSON", how, _writing(changed)


def _writing(data: bytes) -> Change:
    return lambda path: path.write_bytes(data) and None


def _damage(state: str, name: str, change: Change, readers: list[Command], place: Workplace) -> list[Verdict]:
    place.put(state)
    change(place.folder / name)
    verdicts = []
    for number, command in enumerate(readers):
        if number and _writes(readers[number - 1]):
            place.put(state)
            change(place.folder / name)
        outcome = server.run(command.argv, place.folder, seconds=_SECONDS)
        if outcome.code:
            verdict = refusal(outcome, name)
        else:
            verdict = result(command, outcome, place, apart=[name, f"{name}/"] if _is_record(command, name) else [])
        verdicts.append(Verdict(command.name, verdict.kind, verdict.why))
        shutil.rmtree(place.folder / "to", ignore_errors=True)
    return verdicts


def _is_record(command: Command, name: str) -> bool:
    """Whether a damaged file may stay as it is: it decides nothing, or the command only reads it."""
    return Path(name).name in RECORDS or command.argv[0] != "train"


def _writes(command: Command) -> bool:
    return any(call.changes and call.path.split("/")[0] not in ("to", ".staging-to") for call in command.calls)
