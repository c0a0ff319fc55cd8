"""What a process finds around it: its encoding, its clock, and folders in which caches are kept."""

from __future__ import annotations

import contextlib
import getpass
import locale
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from sdfast.doctor.disk import nearest_folder
from sdfast.doctor.finding import Finding, broken, ok
from sdfast.durable import reason

_DAY = 86_400.0


def check_encoding(files: str | None = None, text: str | None = None, printed: str | None = None) -> Iterator[Finding]:
    """How names of files and what is printed are encoded.

    Args:
        files: of names of files; this process's when None, as are the others.
        text: that Python takes for files where none is said.
        printed: of the standard output.
    """
    files = files or sys.getfilesystemencoding()
    text = text or locale.getpreferredencoding(False)
    printed = printed or getattr(sys.stdout, "encoding", None) or files
    found = f"names of files {files}, text {text}, output {printed}"
    if files.lower().replace("-", "") != "utf8":
        yield broken("encoding", f"{found}: other names of files and classes cannot be used", "set PYTHONUTF8=1.")
    elif not _prints(printed):
        yield broken("encoding", f"{found}: names of classes cannot be printed", "set PYTHONUTF8=1.")
    else:
        yield ok("encoding", found)


def _prints(encoding: str) -> bool:
    try:
        "é─字".encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def check_clock(now: float | None = None) -> Iterator[Finding]:
    """The clock is not before the day on which sdfast was installed."""
    now = time.time() if now is None else now
    installed = Path(__file__).stat().st_mtime
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
    if now < installed - _DAY:
        yield broken(
            "clock", f"{day} UTC, which is before sdfast was installed", "set the clock, which dates files and logs."
        )
    else:
        yield ok("clock", f"{day} UTC")


def caches(environment: Mapping[str, str], home: Path) -> dict[str, Path]:
    """Folders in which libraries keep things, by what they keep, as each finds its own."""
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    hugging_face = Path(environment.get("HF_HOME") or cache / "huggingface")
    user = "user"
    with contextlib.suppress(OSError, KeyError, ImportError):  # one without a name
        user = getpass.getuser()
    inductor = Path(tempfile.gettempdir()) / f"torchinductor_{user}"
    return {
        "models of the hub": Path(
            environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or hugging_face / "hub"
        ).expanduser(),
        "what torch compiles": Path(environment.get("TORCHINDUCTOR_CACHE_DIR") or inductor),
        "what Triton compiles": Path(environment.get("TRITON_CACHE_DIR") or home / ".triton" / "cache"),
    }


def check_caches(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Whether something can be written in each."""
    wrong = []
    folders = caches(environment, Path.home())
    for what, folder in folders.items():
        there = nearest_folder(folder)
        try:
            with tempfile.TemporaryDirectory(prefix=".sdfast-doctor-", dir=there):
                pass
        except OSError as error:
            wrong.append(f"{folder} ({what}): {reason(error).split(';')[0]}")
    if wrong:
        yield broken(
            "caches",
            "; ".join(wrong),
            "set HF_HOME, TORCHINDUCTOR_CACHE_DIR or TRITON_CACHE_DIR to a folder that can be written.",
        )
        return
    yield ok("caches", ", ".join(map(str, folders.values())))
