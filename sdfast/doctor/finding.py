"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "not installed", "broken"]


@dataclass(frozen=True)
class Finding:
    """What a check has found, in a line, and of what is broken what to do, in a sentence."""

    check: str
    state: State
    found: str
    todo: str = ""

    @property
    def broken(self) -> bool:
        """Whether something that is installed does not work."""
        return self.state == "broken"


def ok(check: str, found: str) -> Finding:
    """It works."""
    return Finding(check, "ok", found)


def absent(check: str, found: str = "not installed") -> Finding:
    """It is not there, which is fine."""
    return Finding(check, "not installed", found)


def broken(check: str, found: str, todo: str) -> Finding:
    """It is there, or has to be, and does not work."""
    return Finding(check, "broken", found.rstrip("."), todo)
