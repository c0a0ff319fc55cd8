"""What `sdfast.doctor.sandbox` runs in processes of its own: each answers with lines of values."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[..., None]

_LONGEST = 300  # characters of an error


def main(answers: str, probe: str, *arguments: str) -> None:
    """Run a probe; its answers go into a file, as packages may print what they want."""
    with open(answers, "a", encoding="utf-8") as file:

        def say(**values: Any) -> None:
            file.write(json.dumps(values) + "\n")
            file.flush()

        PROBES[probe](say, *arguments)


def _imports(say: Say, *names: str) -> None:
    for name in names:
        say(name=name)
        try:
            module = importlib.import_module(name)
            note = _check_xformers() if name == "xformers" else None
        except Exception as error:
            said = " ".join(str(error).split())[:_LONGEST] or "no message"
            say(name=name, why=f"its import raises {type(error).__name__}: {said}")
            continue
        version = getattr(module, "__version__", None)
        say(name=name, version=version, place=str(getattr(module, "__file__", "")), note=note)


def _check_xformers() -> str | None:
    """A note where its own library does not load, of which it only warns; torch has kernels that serve it as well.

    Raises:
        Exception: what its library says, where there is no other kernel.
    """
    library = sys.modules.get("xformers._cpp_lib")
    error = getattr(library, "_cpp_library_load_exception", None)
    if error is None:
        return None
    others: list[Any] = []
    with contextlib.suppress(ImportError, AttributeError):
        others = [each for each in importlib.import_module("xformers.ops.fmha").ALL_FW_OPS if each.is_available()]
    if not others:
        raise error
    return "its own library is of another torch and does not load; torch's kernels serve sdfast in its place"


def _core(say: Say) -> None:
    import torch

    from sdfast.doctor.agreement import attention, loss
    from sdfast.ops import native

    built = native.build_metadata()
    say(built=built, why_not=native.why_not(), torch=torch.__version__)
    if native.why_not() is not None:
        return
    try:
        level = str(torch.ops.sdfast.simd_level())
    except RuntimeError as error:
        say(level=None, why=str(error).splitlines()[0])
        return
    cuda = native.why_not(cuda=True) if torch.version.cuda is not None else None
    say(level=level, cuda=cuda)
    for agreement in (loss("cpu", "native"), attention("cpu", "native")):
        say(**agreement)


def _computes(say: Say, device: str) -> None:
    import torch

    from sdfast.doctor.agreement import attention, loss, product
    from sdfast.ops import registry
    from sdfast.ops.registry import Use, why_not

    dtypes = [torch.float32] if device == "cpu" else [torch.float32, torch.bfloat16]
    rows = registry.all_rows()
    left_out = {"reference", *(["native"] if device == "cpu" else [])}  # that one is looked at by itself
    for dtype in dtypes:
        say(**product(device, dtype))
    for name in rows["mae_distill"].backends:
        if name not in left_out and why_not("mae_distill", name, *Use(device)) is None:
            say(**loss(device, name))
    for name in rows["attention"].backends:
        for dtype in dtypes:
            if name not in left_out and why_not("attention", name, *Use(device, dtype, 16)) is None:
                say(**attention(device, name, dtype))


def _threads(say: Say) -> None:
    import torch

    from sdfast.engine.waiting import why_not_adapting

    say(threads=torch.get_num_threads(), why_not=why_not_adapting())


def _cuda(say: Say) -> None:
    from sdfast.doctor.cuda import gathered

    say(**gathered())


def _in_turn(say: Say, *probes: str) -> None:
    for name in probes:
        say(begin=name)
        PROBES[name](say)


def _meets(say: Say, store: str, rank: str, world: str) -> None:
    import datetime

    import torch
    import torch.distributed as dist

    options = {"rank": int(rank), "world_size": int(world), "timeout": datetime.timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{store}", **options)  # type: ignore[arg-type]
    say(met=dist.get_world_size())
    numbers = torch.arange(1000, dtype=torch.float64) * (int(rank) + 1)
    dist.all_reduce(numbers)
    total = int(world) * (int(world) + 1) // 2
    say(right=bool((numbers == torch.arange(1000, dtype=torch.float64) * total).all()))
    dist.barrier()
    sys.stdout.flush()
    import os

    os._exit(0)  # threads of gloo may outlive its groups (pytorch#179291)


def _disk(say: Say, folder: str) -> None:
    from sdfast.doctor.disk import measured

    measured(Path(folder), say)


def _room(say: Say, out: str) -> None:
    from sdfast.doctor.room import needed

    say(**needed(Path(out)))


PROBES: dict[str, Callable[..., None]] = {
    "imports": _imports,
    "core": _core,
    "in_turn": _in_turn,
    "cpu": lambda say: _computes(say, "cpu"),
    "gpu": lambda say: _computes(say, "cuda"),
    "threads": _threads,
    "cuda": _cuda,
    "meets": _meets,
    "disk": _disk,
    "room": _room,
}
