"""A few attacks on one stage, for the ordinary tests; with a fault put back, to show that they notice.

`python -m stress.sample [trusting|repeating]` exits with 1 when an attack found a fault.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from stress import interruptions, mutations, scenes, server
from stress.campaign import attack, workplace
from stress.judge import Case
from stress.scenes import Command, Workplace

_STAGE = ("--stage", "pretrain")


class _Equal(str):
    """A digest that is any other's equal."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def _trusting() -> None:
    """No file is compared with its digest."""
    from sdfast.durable import sha256_file

    def trusted(path: Path) -> str:
        return _Equal(sha256_file(path))

    for module in list(sys.modules.values()):
        if getattr(module, "sha256_file", None) is sha256_file:
            module.sha256_file = trusted  # type: ignore[attr-defined]


def _repeating() -> None:
    """A stage that goes on keeps the records of the steps that it does again."""
    from sdfast.engine import telemetry

    telemetry._drop_lines_after = lambda path, step: None


FAULTS = {"trusting": _trusting, "repeating": _repeating}


def main(fault: str | None) -> int:
    """Attack; put a fault back first."""
    with workplace() as root:
        found = attack(list(_cases(root, fault)), root, jobs=len(os.sched_getaffinity(0)))
    print(found.markdown())
    return 1 if found.faults else 0


def _cases(root: Path, fault: str | None) -> Iterator[Case]:
    place = Workplace(root / "first", root / "states")
    trained = Command("train", scenes.train("images", *_STAGE), "images-new")
    again = Command("train again", trained.argv, "images-trained")
    export = Command("export", ("export", "--out", "run", "--to", "to", *_STAGE), "images-trained")
    server.prepare()
    server.prepare(scenes.done(place, trained).modules)
    place.keep("images-trained")
    if fault is not None:
        FAULTS[fault]()
    for command in (trained, again, export):
        scenes.learn(place, command)
    changing = replace(trained, calls=[call for call in trained.calls if call.changes])
    for made in (interruptions.kills("images", changing), interruptions.failures("images", changing)):
        cases, count = list(made), 8
        yield from (cases[(2 * number + 1) * len(cases) // (2 * count)] for number in range(count))
    for case in mutations.mutations("images", "images-trained", root / "states", [export, again]):
        if "pretrain/model/model.safetensors: " in case.name and ("bit" in case.name or "FIFO" in case.name):
            yield case


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or [None]))
