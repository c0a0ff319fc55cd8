"""Training state on disk: one directory per step, durable, verified before it is trusted; safetensors and JSON only."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sdfast.durable import read_json, save_tensors, sha256_file, sha256_json, staged_directory, write_json
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
    directory: Path, step: int, inputs: dict[str, Any], tensors: dict[str, Tensor], values: dict[str, Any], keep: int
) -> None:
    """Write `directory/step-N` durably, then drop all but the newest `keep` of this stage's identity.

    Args:
        directory: where the checkpoints lie.
        step: optimiser steps done.
        inputs: everything that decides the stage's result; their digest is its identity.
        tensors: the state.
        values: small JSON values beside it.
        keep: how many to keep.
    """
    _sweep(directory)
    fingerprint = sha256_json(inputs)
    with staged_directory(directory / f"step-{step:08d}") as staging:
        save_tensors(staging / _STATE, {name: tensor.detach().contiguous() for name, tensor in tensors.items()})
        manifest = {
            "step": step,
            "fingerprint": fingerprint,
            "inputs": inputs,
            "values": values,
            "bytes": (staging / _STATE).stat().st_size,
            "sha256": sha256_file(staging / _STATE),
        }
        write_json(staging / _MANIFEST, manifest)
    kept = 0
    for other, path in _by_step(directory):
        kept += other <= step
        if other > step or kept > keep or _identity(path) != fingerprint:  # left by a run that this one replaces
            shutil.rmtree(path, ignore_errors=True)


def load_newest(directory: Path, inputs: dict[str, Any]) -> Checkpoint | None:
    """The newest checkpoint of these inputs that verifies; damaged and other ones are passed over with a warning."""
    fingerprint = sha256_json(inputs)
    for step, path in _by_step(directory):
        manifest = read_json(path / _MANIFEST)
        try:
            if manifest is None or manifest["bytes"] != (path / _STATE).stat().st_size:
                raise ValueError("it is not whole")
            if manifest["fingerprint"] != fingerprint:
                old = manifest["inputs"]
                changed = next((name for name in {**inputs, **old} if inputs.get(name) != old.get(name)), "the format")
                log.warning("not resuming %s: %s changed since", path, changed)
                continue
            if manifest["sha256"] != sha256_file(path / _STATE):
                raise ValueError("its bytes have changed")
            return Checkpoint(step, load_file(path / _STATE), manifest["values"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            log.warning("skipping the damaged checkpoint %s: %s", path, error)
    return None


def clear(directory: Path) -> None:
    """Remove all checkpoints of a finished stage."""
    shutil.rmtree(directory, ignore_errors=True)


def _identity(path: Path) -> Any:
    manifest = read_json(path / _MANIFEST)
    return manifest.get("fingerprint") if isinstance(manifest, dict) else None


def _sweep(directory: Path) -> None:
    """Remove what a writer that was killed left half done."""
    for pattern in (".staging-step-*", ".old-step-*"):
        for path in directory.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _by_step(directory: Path) -> list[tuple[int, Path]]:
    """Checkpoints, newest first, ordered by number."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.match(path.name))]
    return sorted(found, reverse=True)
