"""The campaign: make the states, choose among the attacks, run them on all cores, count."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from stress import calls, hostile, interruptions, mutations, report, scenes, server
from stress.judge import Case, Verdict
from stress.scenes import Command, Workplace

# Of how many attacks of a kind, on one command or state, one is run in `full`; `quick` runs a tenth of these.
ONE_IN = {
    "kills": 8,
    "chains of kills": 2,
    "failed calls": 60,
    "failing files": 4,
    "damaged bytes": 4,
    "other kinds of file": 3,
    "lies in JSON": 40,
}
SIZES = {"quick": 10, "full": 1, "all": 0}
_cases: list[Case] = []  # which the processes that run them are forked with


def main(arguments: Sequence[str]) -> int:
    """Run it; the exit code is 1 when a fault was found."""
    parser = argparse.ArgumentParser("python -m stress", description=__doc__)
    parser.add_argument("size", nargs="?", default="full", choices=SIZES)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="the attacks that have it in their name, all of them"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--table", type=Path, help="write the counts to this Markdown file")
    parser.add_argument("--list", action="store_true", help="print the names of the attacks alone")
    options = parser.parse_args(arguments)
    if (reason := calls.why_not()) is not None:
        print(f"stress: {reason}; the kills and the failing calls need it.", file=sys.stderr)
        return 2
    with workplace() as root:
        began = time.monotonic()
        cases = _chosen(list(_all(root)), options.size, options.only)
        print(f"{len(cases)} attacks, prepared in {time.monotonic() - began:.0f} s", flush=True)
        if options.list:
            print("\n".join(case.name for case in cases))
            return 0
        found = attack(cases, root, options.jobs)
        found.seconds = time.monotonic() - began
        print(found.markdown())
        if options.table is not None:
            found.write(options.table, options.size)
        return 1 if found.faults else 0


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder with the models and data in `states/inputs`; what is read there is not computed by this process."""
    root = Path(tempfile.mkdtemp(prefix="sdfast-stress-"))
    try:
        writer = get_context("fork").Process(target=scenes.write_inputs, args=(root / "states" / "inputs",))
        writer.start()
        writer.join()
        yield root
    finally:
        shutil.rmtree(root)


def attack(cases: Sequence[Case], root: Path, jobs: int) -> report.Report:
    """Run cases in so many processes, each in a place of its own."""
    _cases[:] = cases
    found = report.Report()
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        for case, verdicts in zip(cases, pool.map(_run, range(len(cases)), [root] * len(cases)), strict=True):
            found.add(case, verdicts)
    return found


def _run(number: int, root: Path) -> list[Verdict]:
    """One case, in the place of this process."""
    return _cases[number].run(Workplace(root / str(os.getpid()), root / "states"))


def _chosen(cases: list[Case], size: str, only: str) -> list[Case]:
    """Evenly spread over each kind of attack and command."""
    if only:
        return [case for case in cases if only in case.name]
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.attack, case.name.split(":")[0].split("/run/")[0]), []).append(case)
    chosen = []
    for (attack, _), group in groups.items():
        count = max(1, len(group) // max(1, ONE_IN.get(attack, 1) * SIZES[size]))
        chosen += [group[number * len(group) // count] for number in range(count)]
    return chosen


def _all(root: Path) -> Iterator[Case]:
    """Every attack."""
    place = Workplace(root / "first", root / "states")
    server.prepare()
    scenes.import_what_commands_do(place)
    scenes.write_states(place)
    for kind in scenes.KINDS:
        commands = scenes.commands(kind)
        for command in commands:
            scenes.learn(place, command)
            if command.name == "export unfinished":
                scenes.learn_older(place, command)
        yield from interruptions.undisturbed(kind, commands)
        for command in commands:
            yield from _interrupted(kind, command)
        for state in (f"{kind}-finished", f"{kind}-interrupted"):
            yield from mutations.mutations(kind, state, root / "states", _readers(commands, state))
    yield from hostile.cases()


def _interrupted(kind: str, command: Command) -> Iterator[Case]:
    yield from interruptions.kills(kind, command)
    yield from interruptions.failures(kind, command)
    if command.name in ("train", "study"):
        yield from interruptions.chains(kind, command, 20)


def _readers(commands: list[Command], state: str) -> list[Command]:
    """Those that only read first."""
    found = [
        command for command in commands if command.start == state and command.name not in ("train anew", "cache build")
    ]
    return sorted(found, key=lambda command: command.argv[0] == "train")
