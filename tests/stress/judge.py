"""What is right: the same bits, or one sentence and an exit code; everything else is a fault."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stress.files import contents, differing
from stress.scenes import Command, Workplace
from stress.server import Outcome

Kind = Literal["right", "refused", "wrong"]
_LONGEST = 900  # letters of a sentence, besides what it repeats of the command


@dataclass(frozen=True)
class Verdict:
    """What became of a command under an attack.

    Attributes:
        command: its name in the tables.
        kind: the same bits, a refusal in one sentence, or a fault.
        why: what the fault is, or what was said.
    """

    command: str
    kind: Kind
    why: str = ""


@dataclass(frozen=True)
class Case:
    """One attack.

    Attributes:
        attack: row of the table.
        name: by which `--only` finds it.
        run: does it in a workplace; nothing where the attack hit nothing.
    """

    attack: str
    name: str
    run: Callable[[Workplace], list[Verdict]]


def refusal(outcome: Outcome, about: str | None = None) -> Verdict:
    """Judge a command that did not end with 0.

    Args:
        outcome: what it did.
        about: path of the file that its sentence has to name, or a folder above it.
    """
    said = sentence(outcome)
    fault = ill(outcome)
    if fault is None and outcome.code not in (1, 2):
        fault = f"exit code {outcome.code}"
    if fault is None and said is None:
        fault = f"exit code {outcome.code} without one sentence: {_end(outcome.stderr)}"
    if fault is None and about is not None and said is not None and not names(said, about):
        fault = f"the sentence does not name {about}: {said}"
    name = title(outcome.argv)
    return Verdict(name, "refused", said or "") if fault is None else Verdict(name, "wrong", fault)


def title(argv: Sequence[str]) -> str:
    """Of a command in the tables, from its words."""
    return " ".join(argv[: 2 if argv[0] in ("cache", "config") else 1])


def ill(outcome: Outcome) -> str | None:
    """What no command may do, whatever its exit code; None when it does none of it."""
    if outcome.stopped is not None:
        limits = {"time": f"no end after {outcome.seconds:.0f} s", "memory": f"took {outcome.megabytes:.0f} MB"}
        return limits[outcome.stopped]
    if outcome.code > 128:
        return f"ended by signal {outcome.code - 128}: {_end(outcome.stderr)}"
    if "Traceback (most recent call last)" in outcome.stderr or "Logging error" in outcome.stderr:
        return f"traceback: {_end(outcome.stderr)}"
    return None


def sentence(outcome: Outcome) -> str | None:
    """What a command says last, where that is its only complaint."""
    lines = outcome.stderr.strip().splitlines()
    complaints = [line for line in lines if line.startswith("sdfast: ")]
    if len(complaints) != 1 or lines[-1] != complaints[0]:
        return None
    said = complaints[0].removeprefix("sdfast: ")
    longest = _LONGEST + len(" ".join(outcome.argv))  # what was given may be said again
    return said if said.endswith((".", "?")) and len(said) <= longest else None


def names(said: str, path: str) -> bool:
    """Whether a sentence names a file by path or name, a folder that it lies in, or a file beside it or in it."""
    path = re.sub(r"(^|/)\.(staging|old|partial)-", r"\1", path)  # what is made beside is called by what it becomes
    said = re.sub(r"(^|[/\s])\.(staging|old|partial)-", r"\1", said)
    words = {word.strip("'\"():;,.").rstrip("/") for word in said.split()}
    above = {str(each) for each in (Path(path), *Path(path).parents)} - {"."}
    near = (f"{Path(path).parent}/", f"{path}/")
    return any(
        word == each or word.endswith(f"/{each}") or word.startswith(near)
        for word in words
        for each in {*above, Path(path).name}
    )


def result(
    command: Command, outcome: Outcome, place: Workplace, apart: Sequence[str] = (), leftovers: bool = False
) -> Verdict:
    """Judge a command that ended with 0 by what it left and printed.

    Args:
        command: with what it leaves undisturbed.
        outcome: what it did.
        place: where.
        apart: files that were damaged and that no command has to mend.
        leftovers: whether there may be more files than undisturbed.
    """
    found = contents(place.folder)
    more = [name for name in found if name not in command.truth] if leftovers else []
    return Verdict(command.name, *_compared(command, outcome, found, [*apart, *more]))


def _compared(command: Command, outcome: Outcome, found: dict[str, Any], apart: Sequence[str]) -> tuple[Kind, str]:
    if (fault := ill(outcome)) is not None:
        return "wrong", fault
    if command.older is not None and "skipping the damaged checkpoint" in outcome.stderr:
        command = command.older
    others = [name for name in differing(command.truth, found) if name not in {*command.volatile, *apart}]
    if command.argv[0] == "train":  # a classifier that is trained anew takes the predictions of the old with it
        others = [name for name in others if name in found or not name.startswith("run/predictions.")]
    if others:
        how = [
            "left over" if name not in command.truth else "absent" if name not in found else "other" for name in others
        ]
        listed = ", ".join(f"{name} ({each})" for name, each in zip(others[:4], how, strict=False))
        return "wrong", f"exit code 0 with other bits in {len(others)} files: {listed}"
    if steady(outcome.stdout) != steady(command.stdout):
        return "wrong", f"exit code 0 and prints {outcome.stdout!r} in place of {command.stdout!r}"
    return "right", ""


def steady(printed: str) -> list[str]:
    """Metrics and identities that a command prints, without times, speeds and frames."""
    lines = [line for line in printed.splitlines() if re.match(r"\w+ +\S", line)]
    return [line for line in lines if not re.match(r"built|to rebuild|teacher run again", line)]


def _end(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return lines[-1][:300] if lines else "nothing on stderr"
