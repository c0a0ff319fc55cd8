"""As a program: import every module of sdfast, and run a command, as on a system that lacks what Linux has.

Told are `sys.platform`, modules that are not there and functions of `os`. What really differs on Windows, such as files
that cannot be renamed while they are open, is not shown.

    python tests/pretend_system.py win32|darwin [ARGUMENT OF sdfast]...
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import pkgutil
import sys
import types

OTHERS = (
    *("torch._dynamo", "torch.distributed.nn", "torch.nn.attention.flex_attention", "torch.utils.flop_counter"),
    *("datasets", "pandas", "PIL.Image", "torchmetrics", "transformers"),
    *("rich.logging", "rich.progress", "rich.table", "typer.main"),
)
LACKS = {"win32": {"fcntl", "resource", "pwd", "grp", "termios"}, "darwin": set()}
LACKS_OF_OS = {
    "win32": [
        *(
            "O_NONBLOCK",
            "O_CLOEXEC",
            "O_NOFOLLOW",
            "pread",
            "pwrite",
            "preadv",
            "pwritev",
            "fdatasync",
            "posix_fadvise",
        ),
        *("sched_getaffinity", "sysconf", "getuid", "geteuid", "killpg", "getpgid", "setsid", "mkfifo"),
    ],
    "darwin": ["fdatasync", "posix_fadvise", "sched_getaffinity"],
}


def windows_locks() -> types.ModuleType:
    """What `msvcrt` has for locks, made of those that are here."""
    module = types.ModuleType("msvcrt")
    module.LK_UNLCK, module.LK_LOCK, module.LK_NBLCK = 0, 1, 2

    def locking(descriptor: int, mode: int, count: int) -> None:
        kind = {0: fcntl.LOCK_UN, 1: fcntl.LOCK_EX, 2: fcntl.LOCK_EX | fcntl.LOCK_NB}[mode]
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

    module.locking = locking
    return module


class GlobalMemory:
    """`kernel32` of a machine with 8 GB, of which 4 are free."""

    def GlobalMemoryStatusEx(self, status: object) -> int:
        status._obj.total, status._obj.free = 8 << 30, 4 << 30
        return 1


def pretend(system: str) -> None:
    """Third parties are imported before, as the system that they find is this one."""
    for name in OTHERS:
        importlib.import_module(name)
    sys.modules["PIL.Image"].init()
    for name in LACKS[system]:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in LACKS_OF_OS[system]:
        delattr(os, name)
    if system == "win32":
        sys.modules["msvcrt"] = windows_locks()
        ctypes.windll = types.SimpleNamespace(kernel32=GlobalMemory())
        ctypes.WinError = OSError
    sys.platform = system


def main(system: str, *arguments: str) -> int:
    pretend(system)
    import sdfast
    from sdfast.ops import native

    native.LIB_DIR = native.LIB_DIR / "none"
    for module in pkgutil.walk_packages(sdfast.__path__, "sdfast."):
        if not module.name.endswith(("__main__", "triton_kernels")):
            importlib.import_module(module.name)
    from sdfast.cli.main import run

    return run(list(arguments)) if arguments else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
