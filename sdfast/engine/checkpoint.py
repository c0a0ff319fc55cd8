"""Training state on disk: one directory per step, durable, verified before it is trusted; safetensors and JSON only."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdfast.durable import read_json, sha256_file, staged_directory, write_json
from sdfast.log import log

_STATE, _MANIFEST = "state.safetensors", "checkpoint.json"
_NAME = re.compile(r"step-(\d+)$")


@dataclass
class Checkpoint:
    """A verified training state."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save(
    directory: Path,
    step: int,
    fingerprint: str,
    tensors: dict[str, Tensor],
    values: dict[str, Any],
    keep: int,
) -> None:
    """Write `directory/step-N` durably, then drop all but the newest `keep`."""
    with staged_directory(directory / f"step-{step:08d}") as staging:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, staging / _STATE)
        manifest = {
            "step": step,
            "fingerprint": fingerprint,
            "values": values,
            "bytes": (staging / _STATE).stat().st_size,
            "sha256": sha256_file(staging / _STATE),
        }
        write_json(staging / _MANIFEST, manifest)
    for _, path in _by_step(directory)[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def load_newest(directory: Path, fingerprint: str) -> Checkpoint | None:
    """The newest checkpoint of this fingerprint that verifies; damaged ones are skipped with a warning."""
    for step, path in _by_step(directory):
        manifest = read_json(path / _MANIFEST)
        try:
            if manifest is None or manifest["bytes"] != (path / _STATE).stat().st_size:
                raise ValueError("it is not whole")
            if manifest["fingerprint"] != fingerprint:
                continue
            if manifest["sha256"] != sha256_file(path / _STATE):
                raise ValueError("its bytes have changed")
            return Checkpoint(step, load_file(path / _STATE), manifest["values"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("skipping the damaged checkpoint %s: %s", path, error)
    return None


def clear(directory: Path) -> None:
    """Remove all checkpoints of a finished stage."""
    for _, path in _by_step(directory):
        shutil.rmtree(path, ignore_errors=True)


def _by_step(directory: Path) -> list[tuple[int, Path]]:
    """Checkpoints, newest first, ordered by number."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.match(path.name))]
    return sorted(found, reverse=True)
