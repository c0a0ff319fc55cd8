"""What the figures are measured on: card, driver, versions, commit, settings."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import sdfast
from gpu_parts.context import Context

PACKAGES = ("torch", "triton", "transformers", "pydantic", "timm", "xformers", "deepspeed", "numpy")
ASKED = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,mig.mode.current"


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One row; the card is asked last, so that a driver that does not answer leaves the versions."""
    yield {
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
        yield {"card": card()}


def card() -> dict[str, Any]:
    """The first card, as torch and as nvidia-smi describe it."""
    properties = torch.cuda.get_device_properties(0)
    asked = nvidia_smi()
    free, total = torch.cuda.mem_get_info()
    return {
        "name": properties.name,
        "memory_GB": total / 1e9,
        "free_GB": free / 1e9,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": asked.get("driver_version"),
        "nvidia_smi": asked,
    }


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


def nvidia_smi() -> dict[str, str]:
    """What the driver says of the first card; nothing where the program is missing."""
    command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(ASKED.split(","), said.strip().split(", "), strict=False))
