"""Whether the compiled core loads here, and how it was got: carried along, or built here where it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpu_parts.context import Context
from sdfast.ops import native, registry
from sdfast.ops.mae_distill.loss import ROW

ROOT = Path(__file__).parents[2]


def run(context: Context) -> Iterator[dict[str, Any]]:
    """A row; on a GPU a second one where it had to be built."""
    row = state(context)
    yield {"item": "carried", **row}
    if row["why_not"] is not None and context.device == "cuda":
        yield {"item": "built here", **build(context.left())}


def state(context: Context) -> dict[str, Any]:
    """What there is, why it cannot be used, and which losses can."""
    why_not = native.why_not(cuda=context.device == "cuda")
    row = {"why_not": why_not, "metadata": native.build_metadata()}
    row["losses"] = {name: registry.why_not("mae_distill", name, context.device) for name in ROW.backends}
    row["auto"] = registry.choose("mae_distill", "auto", context.device)
    if why_not is None and context.device == "cuda":
        row["built_for"] = json.loads(torch.ops.sdfast.cuda_build_info())
    return row


def build(seconds: float) -> dict[str, Any]:
    """Build it into sdfast/lib for this card alone; what the tools said last, where that fails."""
    major, minor = torch.cuda.get_device_capability()
    environment = {**os.environ, "CMAKE_CUDA_ARCHITECTURES": f"{major}{minor}"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    started = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        return {"error": f"not built within {seconds:.0f} s", "traceback": said[-8000:]}
    took = {"build_s": time.monotonic() - started}
    if done.returncode:
        return {**took, "error": "the build failed", "traceback": (done.stdout + done.stderr)[-8000:]}
    ask = "from sdfast.ops import native; print(native.why_not(cuda=True) or '')"
    loaded = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, timeout=60)
    reason = (loaded.stdout + loaded.stderr).strip() or None
    return {**took, "why_not": reason} if reason is None else {**took, "error": reason}
