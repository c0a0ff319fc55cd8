"""Whether a folder holds what is written there, how fast, and whether there is room."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdfast.doctor.finding import Finding, absent, broken, ok
from sdfast.doctor.sandbox import tried
from sdfast.durable import reason
from sdfast.portable import flush_path, held_by_another, hold

_BLOCK, _BLOCKS = 4 << 20, 16
_CLOCK_SECONDS = 60.0  # that a disk of another machine may be off
_SHM = Path("/dev/shm")
_SHM_BYTES = 1 << 30


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    path = Path(os.path.abspath(path))
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


def check_disk(out: Path, seconds: float) -> Iterator[Finding]:
    """Write, flush, rename, lock and read where a run would be."""
    check = "disk"
    folder = nearest_folder(out)
    if not folder.is_dir():
        yield broken(check, f"--out {out}: {folder} is no folder", "choose another --out.")
        return
    outcome = tried("disk", str(folder), seconds=seconds)
    if outcome.ended is not None:
        yield broken(check, f"writing in {folder} {outcome.ended}", "choose another --out, or mend the disk.")
        return
    answers = {name: value for answer in outcome.answers for name, value in answer.items()}
    if "wrong" in answers:
        yield broken(check, f"{folder}: {answers['wrong']}", "choose another --out, or make room and give permission.")
        return
    free = shutil.disk_usage(folder).free / 1e9
    yield ok(
        check,
        f"{folder}: writes {answers['write']:.0f} MB/s, reads {answers['read']:.0f} MB/s, renames and locks; "
        f"{free:.1f} GB free",
    )


def measured(folder: Path, say: Callable[..., None]) -> None:
    """Try a folder: `write` and `read` in MB/s (10^6 bytes), or `wrong`. Nothing is left there."""
    try:
        with tempfile.TemporaryDirectory(prefix=".sdfast-doctor-", dir=folder) as name:
            wrong = _renaming(Path(name)) or _clock(Path(name)) or _locking(Path(name))
            if wrong is None:
                wrong = _speed(Path(name), say)
    except OSError as error:
        wrong = reason(error)
    if wrong is not None:
        say(wrong=wrong)


def _speed(folder: Path, say: Callable[..., None]) -> str | None:
    path, block = folder / "blocks", os.urandom(_BLOCK)
    begun = time.perf_counter()
    with open(path, "wb") as file:
        for _ in range(_BLOCKS):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    written = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        if sys.platform == "linux":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # else the memory is measured
        before = time.perf_counter()
        same = all(file.read(_BLOCK) == block for _ in range(_BLOCKS))
    read = time.perf_counter()
    size = _BLOCK * _BLOCKS / 1e6
    say(write=size / max(written - begun, 1e-9), read=size / max(read - before, 1e-9))
    return None if same else "what is read is not what was written"


def _renaming(folder: Path) -> str | None:
    old, new = folder / "old", folder / "new"
    for path in (old, new):
        path.write_text(path.name, encoding="utf-8")
        flush_path(path)
    os.replace(new, old)
    flush_path(folder)
    return None if old.read_text("utf-8") == "new" and not new.exists() else "a rename does not replace a file"


def _clock(folder: Path) -> str | None:
    path = folder / "now"
    path.touch()
    off = path.stat().st_mtime - time.time()
    return None if abs(off) < _CLOCK_SECONDS else f"its clock is {off:+.0f} s from this machine's"


def _locking(folder: Path) -> str | None:
    path = folder / "lock"
    path.touch()
    with open(path, "rb+") as one, open(path, "rb+") as other:
        hold(one)
        return None if held_by_another(other) else "a lock does not hold against others, so two runs could collide"


def check_room(out: Path, seconds: float) -> Iterator[Finding]:
    """Whether pack and bank of the run that `--out` holds, by its config.yaml, have room."""
    check = "room for pack and bank"
    if not (out / "config.yaml").is_file():
        yield absent(check, f"not known: {out} holds no config.yaml of a run")
        return
    outcome = tried("room", str(out), seconds=seconds)
    if outcome.ended is not None:
        yield broken(check, f"the process that counts the rows {outcome.ended}", f"see whether {out} is a run.")
        return
    yield judged_room(outcome.last, shutil.disk_usage(nearest_folder(out)).free, out)


def judged_room(needs: dict[str, Any], free: int, out: Path) -> Finding:
    """Bytes that are needed against those that are free.

    Args:
        needs: what `sdfast.doctor.room.needed` gives.
        free: bytes.
        out: the run directory.
    """
    check = "room for pack and bank"
    if "why_not" in needs:
        return absent(check, f"not known: {needs['why_not']}")
    to_come = sum(each["bytes"] for each in needs.values() if not each["there"])
    parts = ", ".join(
        f"{name} {each['bytes'] / 1e9:.3g} GB{' (there)' if each['there'] else ''}" for name, each in needs.items()
    )
    if to_come > free:
        return broken(
            check,
            f"{parts}; {free / 1e9:.3g} GB free in {out}",
            "free some space, choose another --out, set data.limit or teacher.dtype=int8, or teacher.mode=live.",
        )
    return ok(check, f"{parts}; {free / 1e9:.3g} GB free")


def check_shared_memory(devices: int = 0, folder: Path = _SHM) -> Iterator[Finding]:
    """/dev/shm, through which the GPUs of a machine exchange (NCCL)."""
    if not folder.is_dir():
        return
    usage = shutil.disk_usage(folder)
    found = f"{usage.total / 1e9:.2g} GB, {usage.free / 1e9:.2g} GB free"
    if devices > 1 and usage.total < _SHM_BYTES:
        yield broken(
            str(folder), f"{found}, for {devices} GPUs", "start the container with more (`docker run --shm-size 8g`)."
        )
        return
    yield ok(str(folder), found)
