"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sdfast.doctor.computing import check_computing
from sdfast.doctor.disk import check_disk, check_room
from sdfast.doctor.finding import Finding
from sdfast.doctor.meeting import check_meeting
from sdfast.doctor.packages import check_imports, check_versions
from sdfast.doctor.surroundings import check_caches, check_clock, check_encoding


def examine(out: Path, seconds: float, begin: Callable[[str], object] = lambda _: None) -> Iterator[Finding]:
    """Yield what each check finds, as it is found. Nothing is fetched, and nothing is left on the disk.

    Args:
        out: where a run would be.
        seconds: without a word of a process that imports or computes, after which it counts as hanging.
        begin: told what is looked at next.
    """
    begin("versions")
    yield check_versions()
    begin("packages")
    yield from check_imports(seconds)
    begin("what computes")
    yield from check_computing(seconds)
    begin("two processes")
    yield from check_meeting(seconds)
    begin("the disk")
    yield from check_disk(out, seconds)
    yield from check_room(out, seconds)
    yield from check_encoding()
    yield from check_clock()
    yield from check_caches()
