"""A loss that is not finite: which step it was, without a wait for the device; and what is kept of that step."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdfast import __version__, durable
from sdfast.log import log

FAULT = "fault"  # the folder in that of a stage
INPUTS = "inputs.safetensors"


class FiniteSteps:
    """Counts, on the device, the steps before the first one whose loss is not finite."""

    def __init__(self, device: torch.device, start: int) -> None:
        """Begin after `start` steps."""
        self.start = start
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)

    def see(self, loss: Tensor) -> None:
        """Take the loss of a step, 0-D; nothing is waited for."""
        self._finite &= torch.isfinite(loss)
        self._count += self._finite

    def read(self) -> int:
        """Steps done when the loss was finite last, which waits for the device."""
        return self.start + int(self._count)


def keep_fault(directory: Path, values: Mapping[str, Any], inputs: Any) -> None:
    """Write `fault/` in a stage's directory, durably; what is there is replaced. Where that fails, the log says so.

    Args:
        directory: of the stage.
        values: of `fault.json`, JSON values; numbers that are not finite are written as words.
        inputs: a tensor, or a dataclass with tensors, of the batch.
    """
    try:
        with durable.staged_directory(directory / FAULT) as staging:
            durable.save_tensors(staging / INPUTS, tensors_in(inputs))
            durable.write_json(staging / "fault.json", plain({**values, **_machine(inputs)}))
    except Exception as error:  # the reason that the run ends for is another
        log.warning("what the step was computed from is not kept: %s", error)


def tensors_in(inputs: Any) -> dict[str, Tensor]:
    """The tensors of a batch by name, on the CPU: `inputs`, or those of a dataclass."""
    if isinstance(inputs, Tensor):
        return {"inputs": inputs.detach().cpu().contiguous()}
    found = {each.name: getattr(inputs, each.name) for each in fields(inputs)} if is_dataclass(inputs) else {}
    return {name: value.detach().cpu().contiguous() for name, value in found.items() if isinstance(value, Tensor)}


def plain(value: Any) -> Any:
    """A JSON value; numbers that are not finite become words, as JSON has none of them."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def run_of(directory: Path) -> Path | None:
    """The run directory that a stage's lies in; None where it lies in none."""
    return next((path for path in directory.parents if (path / "config.yaml").is_file()), None)


def _machine(inputs: Any) -> dict[str, Any]:
    device = inputs.device if hasattr(inputs, "device") else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    versions = {"sdfast": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {"device": name, "versions": versions}
