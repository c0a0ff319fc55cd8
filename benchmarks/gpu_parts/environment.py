"""What the figures were measured on: card, versions, settings, and the two ceilings of this very card."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import losses_setup
import torch
from step_clock import matmul_precision, product_rate

import sdfast
from gpu_parts.context import Context

PACKAGES = ("torch", "triton", "transformers", "xformers", "deepspeed", "numpy")


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Versions first, then the ceilings."""
    result: dict[str, Any] = {
        "device": context.device,
        "quick": context.quick,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "versions": {"sdfast": sdfast.__version__, **{name: version(name) for name in PACKAGES}},
        "settings": settings(),
    }
    if context.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        result["card"] = {
            "name": properties.name,
            "memory_GB": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver(),
        }
    yield result
    result["products"], result["errors"] = {}, {}
    for precision in ("bf16", "tf32", "fp32") if context.device == "cuda" else ("fp32",):
        rate = context.attempt(ceiling, precision, context)
        failed = isinstance(rate, dict)
        result["errors" if failed else "products"][precision] = rate["error"] if failed else rate
    yield result
    result["copy_bytes_per_s"] = losses_setup.copy_bandwidth(context.device, 1 << (22 if context.quick else 30))
    yield result


def ceiling(precision: str, context: Context) -> float:
    """FLOP/s of a large square product of random operands in that precision."""
    size = 128 if context.quick else 8192 if precision != "fp32" else 4096
    with matmul_precision(precision == "tf32"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return product_rate(size, dtype, context.device, 5 if context.quick else 20)


def settings() -> dict[str, Any]:
    """torch's own, before anything is changed."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "bf16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "PYTORCH_CUDA_ALLOC_CONF": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
    }


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the working tree, `+` where it is changed; SDFAST_COMMIT where there is no git."""
    folder = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SDFAST_COMMIT", "unknown")


def driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None
