"""On what a stage computes, as far as that decides the last bits of a sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sdfast.ops import native
from sdfast.ops.linear.fp32_matmul import bf16x6_is_on, several_processes

_NAMES = {
    "device": "device",
    "processes": "number of processes",
    "threads": "number of threads",
    "processor": "kind of processor",
    "core": "compiled core",
    "products": "float32 products",
}


def arithmetic(device: torch.device) -> dict[str, int | str]:
    """What decides them besides a stage's inputs: of a CPU the order of its sums, which threads and registers decide.

    `core` is how wide the compiled core's loops are on this processor, or as SDFAST_SIMD makes them.
    """
    world = torch.distributed.get_world_size() if several_processes() else 1
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "processes": world}
    return {
        "device": "CPU",
        "processes": world,
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "core": str(torch.ops.sdfast.simd_level()) if native.available() else "none",
        "products": "bf16x6" if bf16x6_is_on() else "ieee",
    }


def changed_arithmetic(before: Mapping[str, int | str] | None, now: Mapping[str, int | str]) -> str | None:
    """What differs, for a sentence, as "number of threads: 1 before, now 2"; None where nothing does or is known to."""
    if before is None:
        return None
    both = [name for name in _NAMES if name in before and name in now and before[name] != now[name]]
    return ", ".join(f"{_NAMES[name]}: {before[name]} before, now {now[name]}" for name in both) or None
