"""The first step of an arm, of several arms side by side: what they compile, the ones that are timed find in the cache.

Compiling is for the most part work of one core, and a card is at hand for minutes. Where this fails, or is not done in
time, the timed arm compiles for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gpu_parts import steps
from gpu_parts.arms import why_absent
from gpu_parts.context import Context
from gpu_parts.evidence import Memory, compilation, listening

warm = steps.warm


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One row: how long it took beside the others, and what the compiler did."""
    name, point = context.what["arm"], steps.point_of(context)
    if (reason := why_absent(name, point)) is not None:
        yield {"absent": reason}
        return
    memory = Memory(context.device)
    row: dict[str, Any] = {}
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), listening() as heard:
        steps.started(name, point, context, row)
        yield {**row, **memory.row(), **compilation(), "attention": heard.attention, "said": heard.said}
