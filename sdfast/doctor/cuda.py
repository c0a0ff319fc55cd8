"""Whether torch, CUDA and the driver of this machine fit each other."""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.doctor.finding import Finding, absent, broken, ok

CHECK = "CUDA"
_DRIVER = ("libcuda.so.1", "nvcuda.dll")
_UPDATE = "update NVIDIA's driver, or install a torch for an older CUDA (pytorch.org has the commands)."


def gathered() -> dict[str, Any]:
    """What torch and the driver say.

    Returns:
        `torch`; `built`, the CUDA of torch, or None; `driver`, the newest CUDA that the driver knows as "13.0", or None
        without one; `card`, whether the system has a device of NVIDIA's; `visible`, CUDA_VISIBLE_DEVICES or None;
        `devices`, their names and capabilities; `architectures` that torch has kernels for; `error` of torch.
    """
    import torch

    error = None
    devices: list[tuple[str, str]] = []
    if torch.version.cuda is not None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                for index in range(torch.cuda.device_count()):
                    major, minor = torch.cuda.get_device_capability(index)
                    devices.append((torch.cuda.get_device_name(index), f"{major}.{minor}"))
                if not devices:
                    torch.cuda.init()
            except (RuntimeError, AssertionError) as raised:
                error = str(raised).strip().splitlines()[0]
        error = error or (None if devices or not said else str(said[0].message).strip().splitlines()[0])
    return {
        "torch": torch.__version__,
        "built": torch.version.cuda,
        "driver": _driver(),
        "card": any(Path("/dev").glob("nvidia[0-9]*")),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "devices": devices,
        "architectures": torch.cuda.get_arch_list() if devices else [],
        "error": error,
    }


def _driver() -> str | None:
    """The newest CUDA that the driver of the machine knows."""
    for name in _DRIVER:
        with contextlib.suppress(OSError, AttributeError):
            number = ctypes.c_int()
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(number)) == 0:
                return f"{number.value // 1000}.{number.value % 1000 // 10}"
    return None


def judged(facts: Mapping[str, Any]) -> Finding:
    """What `gathered` says, in a line."""
    built, driver, visible = facts["built"], facts["driver"], facts["visible"]
    if built is None and driver is None:
        return absent(CHECK, f"torch {facts['torch']} is without CUDA, and no driver is here: the CPU computes")
    if built is None:
        return broken(
            CHECK,
            f"a driver for CUDA {driver} is here, but torch {facts['torch']} is without CUDA",
            "install a torch with CUDA (pytorch.org has the commands).",
        )
    if driver is None and facts["card"]:
        return broken(
            CHECK,
            f"torch is made for CUDA {built} and a card is here, but the driver's library (libcuda) does not load",
            "install NVIDIA's driver, or start the container with its GPUs (`docker run --gpus all`).",
        )
    if driver is None:
        return absent(CHECK, f"torch is made for CUDA {built}, and no driver is here: the CPU computes")
    if _numbers(driver)[0] < _numbers(built)[0]:
        return broken(CHECK, f"torch is made for CUDA {built}, and the driver knows none above {driver}", _UPDATE)
    if not facts["devices"] and visible is not None:
        return absent(CHECK, f"CUDA_VISIBLE_DEVICES={visible} hides the devices: the CPU computes")
    if not facts["devices"]:
        why = facts["error"] or "torch finds no device"
        return broken(CHECK, f"torch for CUDA {built}, driver for {driver}: {why}", _UPDATE)
    names = ", ".join(f"{name} ({capability})" for name, capability in facts["devices"])
    if (old := _without_kernels(facts["devices"], facts["architectures"])) is not None:
        return broken(
            CHECK,
            f"torch {facts['torch']} has no kernels for {old}",
            "install a torch that has some (pytorch.org has the commands), or set CUDA_VISIBLE_DEVICES to others.",
        )
    return ok(CHECK, f"torch for CUDA {built}, driver for {driver}; {names}")


def _without_kernels(devices: list[tuple[str, str]], architectures: list[str]) -> str | None:
    """The first device that torch has no kernels for: a major number's serve its later minors, and PTX later majors."""
    if not architectures:
        return None
    known = [(each.split("_")[0], int("".join(filter(str.isdigit, each.split("_")[1])))) for each in architectures]
    for name, capability in devices:
        major, minor = _numbers(capability)
        here = 10 * major + minor
        if not any(number <= here and (kind == "compute" or number // 10 == major) for kind, number in known):
            return f"{name} (capability {capability})"
    return None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
