"""Find and load the compiled core, and say in one sentence why it cannot be used when it cannot.

A build leaves ``libsdfast_cpu.so`` in ``sdfast/lib`` and, where nvcc was found, ``libsdfast_cuda.so``.
Both are written against the libtorch stable ABI: one binary serves every torch from the version in ``build.json`` on,
the CUDA one for one CUDA major. Importing this module loads nothing; loading registers the ops ``torch.ops.sdfast.*``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIB_DIR = Path(__file__).resolve().parents[1] / "lib"
BUILD = "build it with `make build`, or `pip install .` where a C++20 compiler is"


class NativeLibraryError(RuntimeError):
    """The compiled core is absent or does not fit this torch; the message names what does not match."""


def build_metadata() -> dict[str, Any]:
    """What CMake wrote beside the libraries (see CMakeLists.txt); empty when nothing was built."""
    path = LIB_DIR / "build.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@functools.cache
def load() -> None:
    """Load the CPU library and register its ops; the first call does it, later ones return at once.

    Raises:
        NativeLibraryError: It was not built, or it does not fit the running torch.
    """
    path = LIB_DIR / "libsdfast_cpu.so"
    if not path.is_file():
        raise NativeLibraryError(f"the compiled core was not built ({path} is missing): {BUILD}")
    _check_torch()
    _load(path)


@functools.cache
def load_cuda() -> None:
    """Load the CPU library, which defines the ops, and the CUDA library, which adds their kernels.

    Needs no device. Raises:
        NativeLibraryError: It was not built, or it does not fit the running torch and its CUDA major.
    """
    load()
    path = LIB_DIR / "libsdfast_cuda.so"
    if not path.is_file():
        reason = build_metadata().get("cuda", {}).get("why_not") or f"{path} is missing"
        raise NativeLibraryError(f"the CUDA part of the compiled core was not built ({reason}): {BUILD}")
    _check_cuda()
    _load(path)


def available() -> bool:
    """Whether the CPU library is there and loads."""
    return why_not() is None


def why_not(cuda: bool = False) -> str | None:
    """None when the CPU library (with ``cuda`` also the CUDA library) loads, else the reason in one sentence."""
    try:
        load_cuda() if cuda else load()
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


def why_not_operator(
    name: str, register: Callable[[], None] | None = None, cuda: bool = False, last: str | None = None
) -> str | None:
    """None when the compiled core has the operator ``sdfast::name``, else the reason in one sentence.

    Args:
        name: of the operator.
        register: called when it is there, to tell torch more of it; it has to do so once.
        cuda: whether its CUDA kernel is needed too.
        last: its last argument, where it once had fewer.
    """
    import torch

    reason = why_not(cuda)
    if reason is not None:
        return reason
    known = torch.ops.sdfast
    if not hasattr(known, name) or last not in (None, getattr(known, name).default._schema.arguments[-1].name):
        return "the compiled core is older than this Python package: build it again"
    if register is not None:
        register()
    return None


def _check_torch() -> None:
    """Refuse a torch that is older than the stable ABI that was compiled against."""
    import torch

    needed = build_metadata().get("stable_abi", "0.0")
    if _release(torch.__version__) < _release(needed):
        raise NativeLibraryError(
            f"the compiled core needs torch >= {needed}, but torch {torch.__version__} is running: "
            "update torch, or install sdfast with SDFAST_NO_EXT=1"
        )


def _check_cuda() -> None:
    """Refuse a torch without CUDA, or of another CUDA major than nvcc's."""
    import torch

    built = build_metadata().get("cuda", {}).get("nvcc", "")
    running = torch.version.cuda
    if running is None:
        raise NativeLibraryError(
            f"the CUDA part of the compiled core needs a torch with CUDA, but torch {torch.__version__} has none"
        )
    if built and built.split(".")[0] != running.split(".")[0]:
        raise NativeLibraryError(
            f"the CUDA part of the compiled core was built with CUDA {built}, but torch {torch.__version__} runs "
            f"CUDA {running}: the major versions must be equal; {BUILD} with the nvcc of CUDA {running}"
        )


def _load(path: Path) -> None:
    import torch

    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        built = build_metadata()
        cause = str(error.__cause__ or error).strip()
        raise NativeLibraryError(
            f"{path.name} does not load: {cause}; it was built against torch {built.get('torch', 'unknown')} with "
            f"{built.get('compiler', 'an unknown compiler')} on {built.get('system', 'an unknown system')}, and "
            f"torch {torch.__version__} is running: {BUILD}"
        ) from error


def _release(version: str) -> tuple[int, int]:
    """The first two numbers of a version such as "2.14.1+cu130"."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int("".join(character for character in minor if character.isdigit()) or 0)
