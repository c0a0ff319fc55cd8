"""Threads of a CPU that wait for each other: they spin while the processors are theirs, and sleep beside other work.

An OpenMP thread that has done its share of a loop waits for the others. torch's runtime, libgomp, lets it spin for
about 3 ms before it sleeps. On processors of their own that is right: waking a thread costs more than most loops take.
Where something else runs, the thread that spins holds the processor on which the awaited one would go on, and a step
becomes several times slower. No number of spins serves both (benchmarks/results/neighbours_cpu.md), so it follows what
Linux counts: how long a thread was ready to run and waited for a processor.

libgomp reads its number of spins when it is loaded, but spins hardly at all while it manages more threads than there
are processors. A second team of threads, which does nothing and sleeps, makes that so, and its end undoes it.

The scheduler's time slice is shortened as well (Linux 6.12 and later): threads that are woken often are then let in
sooner, and get no larger share.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from sdfast.portable import c_library, processors

_LOOK_SECONDS = 0.25
_SHARED, _ALONE = 0.08, 0.04  # share of the time that one of the threads waited for a processor
_SLICE_NS = 100_000  # the shortest that Linux grants; without, 1.4 to 3 ms
_SCHED_ATTR = {"x86_64": (314, 315), "aarch64": (274, 275)}  # numbers of sched_setattr(2) and sched_getattr(2)
_SCHED_OTHER = 0
_active = threading.Lock()


def why_not_adapting(environment: Mapping[str, str] = os.environ) -> str | None:
    """None where waiting threads take note of other work, else the reason why they wait as they are set up."""
    said = [f"{name}={environment[name]}" for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if environment.get(name)]
    if said:
        return f"as {' and '.join(said)} say{'s' if len(said) == 1 else ''}"
    if not Path("/proc/self/schedstat").is_file():
        return "as the OpenMP runtime does: this system does not count how long a thread waits for a processor"
    if libgomp() is None:
        return "as the OpenMP runtime does, which is not libgomp"
    return None


@functools.cache
def libgomp() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch runs its loops on, where it is GNU's."""
    loaded = {Path(line.split(maxsplit=5)[5].strip()) for line in _maps() if "libgomp" in line}
    own = [path for path in loaded if Path(torch.__file__).parent in path.parents or path.parent.name == "torch.libs"]
    for path in own or sorted(loaded):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "GOMP_parallel"):
            return library
    return None


def _maps() -> list[str]:
    try:
        return Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []


@contextlib.contextmanager
def waiting_adapts() -> Iterator[None]:
    """Inside, threads that wait spin while the processors are theirs, and sleep beside other work.

    The user's OMP_WAIT_POLICY or GOMP_SPINCOUNT rules; without them nothing is needed before torch is imported. Blocks
    inside a block, and a single thread, which waits for nobody, change nothing.
    """
    if torch.get_num_threads() == 1 or why_not_adapting() is not None or not _active.acquire(blocking=False):
        yield
        return
    watch = _Watch(torch.get_num_threads())
    try:
        shorten_slices(_SLICE_NS)
        with watch:
            yield
    finally:
        shorten_slices(0)
        _active.release()


class _Watch:
    """Looks every now and then whether this process waits for processors, and has its threads wait accordingly."""

    def __init__(self, threads: int) -> None:
        self.team = _IdleTeam(processors() - threads + 2)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, name="sdfast-waiting", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.team.end()

    def _look(self) -> None:
        waited, then = seconds_waited(), time.monotonic()
        while not self.ended.wait(_LOOK_SECONDS):
            waited_now, now = seconds_waited(), time.monotonic()
            most = max(waited_now[thread] - waited.get(thread, 0.0) for thread in waited_now)
            if most > _SHARED * (now - then):
                self.team.begin()
            elif most < _ALONE * (now - then):
                self.team.end()
            waited, then = waited_now, now


class _IdleTeam:
    """A second team of OpenMP threads: while it is there, libgomp manages more threads than there are processors."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ended = threading.Event()
        self.host: threading.Thread | None = None  # libgomp lets a team go when the thread that formed it ends

    def begin(self) -> None:
        if self.host is None:
            self.ended.clear()
            self.host = threading.Thread(target=self._form, name="sdfast-idle-team", daemon=True)
            self.host.start()

    def end(self) -> None:
        if self.host is not None:
            self.ended.set()
            self.host.join()
            self.host = None

    def _form(self) -> None:
        library, own = libgomp(), c_library()
        assert library is not None and own is not None
        nothing = own.free  # of NULL, as good as a function that does nothing
        library.GOMP_parallel(nothing, None, ctypes.c_uint(max(2, self.size)), ctypes.c_uint(0))
        self.ended.wait()


def seconds_waited() -> dict[str, float]:
    """How long each thread of this process, by its number, was ready to run and waited for a processor."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended
            found[thread] = int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    return found


def shorten_slices(nanoseconds: int) -> None:
    """Give every thread of this process that is scheduled as usual a time slice; 0 gives back the system's.

    What is said to a thread holds for those that it starts. Before Linux 6.12 it has no effect.
    """
    library = c_library()
    if platform.machine() not in _SCHED_ATTR or library is None:
        return
    set_number, get_number = _SCHED_ATTR[platform.machine()]
    system_call = library.syscall
    for thread in os.listdir("/proc/self/task"):
        attributes = _SchedAttr()
        size = ctypes.sizeof(attributes)
        failed = system_call(get_number, int(thread), ctypes.byref(attributes), size, 0)
        if not failed and attributes.policy == _SCHED_OTHER:
            attributes.runtime = nanoseconds
            system_call(set_number, int(thread), ctypes.byref(attributes), 0)


class _SchedAttr(ctypes.Structure):
    """`struct sched_attr` of Linux, its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )
