"""What torch.profiler recorded, by kernel: which kind of work, how long, and what of the time is covered."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch.autograd import DeviceType

KINDS = [  # the first that matches; what matches none is elementwise
    ("attention", r"flash|fmha|mem_eff|attention|sdpa|softmax"),
    ("optimizer", r"adam|multi_tensor|_foreach"),
    ("loss", r"mae_distill"),
    ("product", r"gemm|nvjet|cutlass|xmma|wgmma|splitk|cublas|cudnn|conv|aten::(add)?(b?mm|bmm|linear)"),
    ("norm", r"layer_?norm"),
    ("copy", r"memcpy|memset|copy_"),
]
NO_KERNELS = ("ProfilerStep", "Optimizer.", "Torch-Compiled", "##", "CompiledF")  # ranges that hold kernels


def kind_of(name: str) -> str:
    """What a kernel (or on a CPU an operator) does, by its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name.lower())), "elementwise")


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of the intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def spent(events: Iterable[Any], device: str) -> list[tuple[str, float, float, float]]:
    """(name, microseconds, start, stop) of every kernel; on a CPU of every operator's own time."""
    events = [event for event in events if not event.name.startswith(NO_KERNELS)]
    if device == "cuda":
        times = [(e.name, e.time_range) for e in events if e.device_type == DeviceType.CUDA]
        return [(name, time.end - time.start, time.start, time.end) for name, time in times]
    operators = (e for e in events if e.device_type == DeviceType.CPU and e.self_cpu_time_total > 0)
    return [(e.name, e.self_cpu_time_total, e.time_range.start, e.time_range.end) for e in operators]
