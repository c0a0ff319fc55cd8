"""Commands in forked children: the packages are imported once, and a child of that process runs one command.

Importing torch and sdfast takes seconds, a forked child starts in milliseconds. What forks has computed nothing and has
one thread. A child runs what the program runs, with the descriptors, the exit code and the end of the interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sdfast.cli import main  # the function, before its module of the same name is imported
from stress import calls

SECONDS = 60.0  # after which a command hangs
MEGABYTES = 1500  # of its own, over what the process had that forked it
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        argv: its words.
        code: its exit code; 128 + n after signal n.
        stdout, stderr: what it printed.
        seconds: that it took.
        megabytes: the most memory of its own that was seen.
        stopped: "time" or "memory" where it was ended for taking too much of it.
        trace: its system calls, where they were traced.
        modules: that were imported at its end.
    """

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float
    megabytes: float
    stopped: str | None = None
    trace: str = ""
    modules: tuple[str, ...] = ()


def prepare(modules: Sequence[str] = ()) -> None:
    """Make this process ready to fork: what children import is imported, and there is one thread and no pool of them.

    Args:
        modules: that a command was seen to import.
    """
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "SDFAST_REPORT": "0"}  # it decides nothing
    torch.set_num_threads(1)
    for name in ("sdfast.cli.main", *modules):
        with contextlib.suppress(Exception):  # an optional part of a package
            importlib.import_module(name)
    gc.freeze()  # a child's collector then touches none of these pages
    tasks = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if len(tasks) != 1:
        raise RuntimeError(f"the process that forks has several threads: {tasks}; set OMP_NUM_THREADS=1")


def run(
    argv: Sequence[str],
    folder: Path,
    attack: Sequence[str] | None = None,
    seconds: float = SECONDS,
    megabytes: float = MEGABYTES,
) -> Outcome:
    """Run `sdfast argv` in a folder.

    Args:
        argv: words after the program's name.
        folder: working directory.
        attack: options of strace, which then watches the command; [] to record its calls.
        seconds, megabytes: limits.
    """
    said = Path(tempfile.mkdtemp(prefix="stress-said-"))  # no TemporaryDirectory: a child that ends would remove it
    paths = [said / name for name in ("stdout", "stderr", "trace", "modules")]
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(argv, folder, paths, traced=attack is not None)
    tracer = None
    try:
        if attack is not None:
            os.waitpid(pid, os.WUNTRACED)
            tracer = calls.attach(pid, paths[2], attack)
            os.kill(pid, signal.SIGCONT)
        status, most, stopped = _watch(pid, began + seconds, megabytes)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if tracer is not None:
            tracer.wait()
    spent = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    out, err, trace, modules = (path.read_text(errors="replace") if path.is_file() else "" for path in paths)
    shutil.rmtree(said)
    return Outcome(
        tuple(argv), code if code >= 0 else 128 - code, out, err, spent, most, stopped, trace, tuple(modules.split())
    )


def _watch(pid: int, until: float, megabytes: float) -> tuple[int, float, str | None]:
    """Wait for a child, and end it when it takes too long or too much: its status, its memory, and why it was ended."""
    most, stopped = 0.0, None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status, most, stopped
        most = max(most, _own_megabytes(pid))
        if stopped is None:
            stopped = "time" if time.monotonic() > until else "memory" if most > megabytes else None
            if stopped is not None:
                os.killpg(pid, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)


def _own_megabytes(pid: int) -> float:
    """Memory of a process that no file stands behind and that it does not share with the one that forked it."""
    with contextlib.suppress(OSError, ValueError):
        pages = [int(word) for word in Path(f"/proc/{pid}/statm").read_text().split()]
        return (pages[1] - pages[2]) * resource.getpagesize() / 1e6 - _inherited()
    return 0.0


def _inherited() -> float:
    pages = [int(word) for word in Path("/proc/self/statm").read_text().split()]
    return (pages[1] - pages[2]) * resource.getpagesize() / 1e6


def _child(argv: Sequence[str], folder: Path, said: Sequence[Path], traced: bool) -> None:
    """Run a command as the program would, and end."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one thread reads data: the calls come in one order
        for descriptor, path in zip((1, 2), said, strict=False):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if traced:
            os.kill(os.getpid(), signal.SIGSTOP)
        code = _as_program(lambda: _command(argv))
        said[3].write_text("\n".join(sys.modules))
    finally:
        os._exit(code)


def _command(argv: Sequence[str]) -> None:
    sys.argv = ["sdfast", *argv]
    main()


def _as_program(work: Callable[[], None]) -> int:
    """Run it, and then what the interpreter runs at its end: the exit code."""
    code = 0
    try:
        work()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code
