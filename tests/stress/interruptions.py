"""Commands that are killed at a system call, and commands of whose system calls one fails."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator

from stress import calls, server
from stress.judge import Case, Verdict, refusal, result, title
from stress.scenes import Command, Workplace

ERRORS = {
    "opening": ("EACCES", "EIO", "EMFILE", "ENOSPC", "EROFS", "ENOMEM", "EDQUOT"),
    "making": ("ENOSPC", "EACCES", "EROFS", "EIO", "EDQUOT"),
    "removing": ("EACCES", "EIO", "EROFS"),
    "writing": ("ENOSPC", "EIO", "EDQUOT", "EINTR", "EROFS"),
    "keeping": ("EIO", "ENOSPC", "EDQUOT", "EINTR", "EROFS"),
    "reading": ("EIO", "EACCES", "ENOMEM", "EINTR"),
}
_PERSISTENT = ("ENOSPC", "EIO")
_READERS = (("eval", "--out", "run"), ("export", "--out", "run", "--to", "to"), ("cache", "info", "--out", "run"))


def kills(kind: str, command: Command) -> Iterator[Case]:
    """One at every call that changes the disk; the same command again then ends as if nothing had been."""
    for number, call in enumerate(call for call in command.calls if call.changes):
        reader = _READERS[number % 3] if number % 2 else None
        yield Case(
            "kills",
            f"kill {kind}/{command.name}: {call.name} {call.number} {call.path}",
            functools.partial(_kill, command, call, reader),
        )


def _kill(command: Command, call: calls.Call, reader: tuple[str, ...] | None, place: Workplace) -> list[Verdict]:
    place.put(command.start)
    if server.run(command.argv, place.folder, calls.killing(call)).code != 137:
        return []
    verdicts = []
    if reader is not None and (place.folder / "run").exists():
        verdicts = [_read(reader, place)]
    return [*verdicts, again(command, place)]


def _read(argv: tuple[str, ...], place: Workplace) -> Verdict:
    """Another command on what a killed one left; what it makes is removed again."""
    made = [place.folder / "to", place.folder / "run" / "predictions.csv"]
    made = [path for path in made if not path.exists()]
    outcome = server.run(argv, place.folder)
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return refusal(outcome) if outcome.code else Verdict(title(argv), "right")


def again(command: Command, place: Workplace) -> Verdict:
    """The same command, undisturbed; an export that is whole already may say so."""
    outcome = server.run(command.argv, place.folder)
    if outcome.code == 2 and "is there already" in outcome.stderr and command.argv[0] == "export":
        outcome = server.Outcome(command.argv, 0, command.stdout, "", 0.0, 0.0)
    if outcome.code:
        return Verdict(command.name, "wrong", f"the same command again: {refusal(outcome).why}")
    verdict = result(command, outcome, place)
    return Verdict(command.name, verdict.kind, verdict.why and f"the same command again: {verdict.why}")


def chains(kind: str, command: Command, count: int) -> Iterator[Case]:
    """Killed several times on its way: at later and later calls of the attempts."""
    changing = [call for call in command.calls if call.changes]
    for first in range(count):
        picked = [changing[(first * 37 + step * 61) % len(changing)] for step in range(4)]
        yield Case(
            "chains of kills",
            f"chain {kind}/{command.name}: {', '.join(f'{call.name} {call.number}' for call in picked)}",
            functools.partial(_chain, command, picked),
        )


def _chain(command: Command, picked: list[calls.Call], place: Workplace) -> list[Verdict]:
    place.put(command.start)
    for call in picked:
        if server.run(command.argv, place.folder, calls.killing(call)).code == 0:
            return [result(command, server.run(command.argv, place.folder), place)]
    return [again(command, place)]


def failures(kind: str, command: Command) -> Iterator[Case]:
    """One call fails with an error: each call, the errors in turn; then every file that is written, for good."""
    turn = dict.fromkeys(ERRORS, 0)
    written = {call.path for call in command.calls if call.changes}
    for call in command.calls:
        if call.name == "close" and call.path not in written:  # of what is only read it never fails
            continue
        group = _group(call.name)
        error = ERRORS[group][turn[group] % len(ERRORS[group])]
        turn[group] += 1
        yield Case(
            "failed calls",
            f"fail {kind}/{command.name}: {call.name} {call.number} {error} {call.path}",
            functools.partial(_fail, command, calls.failing(call, error)),
        )
    for number, path in enumerate(dict.fromkeys(call.path for call in command.calls if call.name in calls.WRITING)):
        error = _PERSISTENT[number % 2]
        yield Case(
            "failing files",
            f"fail {kind}/{command.name}: every write {error} {path}",
            functools.partial(_fail_file, command, path, error),
        )


def _group(name: str) -> str:
    groups = {
        "opening": calls.OPENING,
        "making": calls.MAKING,
        "removing": calls.REMOVING,
        "writing": calls.WRITING,
        "keeping": calls.KEEPING,
    }
    return next((group for group, members in groups.items() if name in members), "reading")


def _fail_file(command: Command, path: str, error: str, place: Workplace) -> list[Verdict]:
    options = calls.always_failing((*calls.WRITING, "fsync", "fdatasync"), place.folder / path, error)
    return _fail(command, options, place)


def _fail(command: Command, options: list[str], place: Workplace) -> list[Verdict]:
    place.put(command.start)
    outcome = server.run(command.argv, place.folder, options)
    about = calls.attacked(outcome.trace, place.folder)
    if about is None:
        return []
    if outcome.code == 0:
        verdict = result(command, outcome, place, leftovers=True)  # what cannot be removed now is swept by the next
    else:
        verdict = refusal(outcome, about)
        verdict = Verdict(command.name, verdict.kind, verdict.why)
    if verdict.kind == "wrong":
        return [verdict]
    after = again(command, place)
    return [verdict if after.kind == "right" else after]


def undisturbed(kind: str, commands: list[Command]) -> Iterator[Case]:
    """A run that was killed and goes on, or is done already, is the run that was never disturbed."""
    of = {command.name: command for command in commands}
    yield Case(
        "undisturbed",
        f"undisturbed {kind}/train resumed",
        functools.partial(_same_as, of["train resumed"], of["train"]),
    )


def _same_as(command: Command, other: Command, place: Workplace) -> list[Verdict]:
    place.put(command.start)
    outcome = server.run(command.argv, place.folder)
    return [refusal(outcome) if outcome.code else result(other, outcome, place)]
