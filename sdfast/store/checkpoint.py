"""Training state on disk: one directory per step, durable, verified before it is trusted; safetensors and JSON only."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdfast import durable
from sdfast.log import log
from sdfast.regular import of_the_file
from sdfast.store import artifact
from sdfast.store.artifact import Count, Digest, Stored, StoredFile

_MANIFEST = "checkpoint.json"
_FILE_BYTES = 1 << 29  # of tensors in one file, and so in memory, from which the next begins
_NAME, _NAMES = re.compile(r"step-(\d+)$"), "step-*"


class _BestValues(Stored):
    step: Count
    scores: dict[str, float]


class _Values(Stored):
    seconds: Annotated[float, Field(ge=0)]
    seen: Count
    best: _BestValues | None = None
    arithmetic: dict[str, int | str] | None = None  # earlier versions did not say


class _Manifest(Stored):
    """What `checkpoint.json` holds; its own digest too, which those of earlier versions lack."""

    step: Count
    fingerprint: Digest
    inputs: dict[str, Any]
    values: _Values
    files: dict[Annotated[str, StringConstraints(pattern=r"^state-\d{5,}\.safetensors$")], StoredFile]


def _read_manifest(path: Path) -> _Manifest:
    """The manifest of a checkpoint, of the step of its name and with the inputs that it was written for.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what was written.
    """
    manifest = artifact.fitted(_Manifest, durable.load_json(path / _MANIFEST))
    if path.name != _named(manifest.step):  # all that tells in one that has no digest
        raise ValueError(f"it is of step {manifest.step}")
    if manifest.fingerprint != durable.sha256_json(manifest.inputs):
        raise ValueError("its inputs have changed")
    return manifest


def _named(step: int) -> str:
    return f"step-{step:08d}"


@dataclass
class Checkpoint:
    """A training state on the disk; its tensors are read when they are asked for.

    Attributes:
        step: optimiser steps done.
        values: small values beside the tensors.
        names: of the tensors.
        read: brings one into the CPU's memory.
    """

    step: int
    values: dict[str, Any]
    names: set[str]
    read: Callable[[str], Tensor]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a checkpoint that `newest` found."""
        manifest = _read_manifest(path)
        places: dict[str, Any] = {}
        for name in manifest.files:
            with durable.numbered_errors(path / name):
                file: Any = safe_open(path / name, framework="pt")
            places |= dict.fromkeys(file.keys(), file)
        values = manifest.values.model_dump()
        return cls(manifest.step, values, set(places), lambda name: places[name].get_tensor(name))


def save(
    directory: Path,
    step: int,
    inputs: dict[str, Any],
    state: Iterable[tuple[str, Callable[[], Tensor]]],
    values: dict[str, Any],
    keep: int,
) -> None:
    """Write `directory/step-N` durably, then drop all but the newest `keep` of this stage's identity.

    Args:
        directory: where the checkpoints lie.
        step: optimiser steps done.
        inputs: everything that decides the stage's result; their digest is its identity.
        state: the names of its tensors and what reads each; few at a time are held.
        values: small JSON values beside it.
        keep: how many to keep.
    """
    durable.sweep(directory, _NAMES)
    fingerprint = durable.sha256_json(inputs)
    with durable.staged_directory(directory / _named(step)) as staging:
        _write_tensors(staging, state)
        files = {path.name: artifact.described(path) for path in sorted(staging.iterdir())}
        manifest = {"step": step, "fingerprint": fingerprint, "inputs": inputs, "values": values, "files": files}
        durable.write_json(staging / _MANIFEST, durable.sealed(manifest))
    kept = 0
    for other, path in _by_step(directory):
        kept += other <= step
        if other > step or kept > keep or _identity(path) != fingerprint:  # left by a run that this one replaces
            durable.remove_directory(path)


def _write_tensors(directory: Path, state: Iterable[tuple[str, Callable[[], Tensor]]]) -> None:
    held: dict[str, Tensor] = {}
    number = size = 0
    for name, read in state:
        held[name] = read().detach().cpu().contiguous()
        size += held[name].nbytes
        if size >= _FILE_BYTES:
            durable.save_tensors(directory / f"state-{number:05d}.safetensors", held)
            held, number, size = {}, number + 1, 0
    if held:
        durable.save_tensors(directory / f"state-{number:05d}.safetensors", held)


def newest(directory: Path, inputs: dict[str, Any] | None = None) -> Path | None:
    """The newest checkpoint that verifies, of these inputs; damaged and other ones are passed over with a warning.

    Args:
        directory: where the checkpoints lie.
        inputs: what it must have been made from; any when not given.
    """
    fingerprint = None if inputs is None else durable.sha256_json(inputs)
    for _, path in _by_step(directory):
        try:
            manifest = _read_manifest(path)
            files = {path / name: entry for name, entry in manifest.files.items()}
            if artifact.first_cut((file, entry.bytes) for file, entry in files.items()):
                raise ValueError("it is not whole")
            if inputs is not None and manifest.fingerprint != fingerprint:
                changed = artifact.first_changed_key(manifest.inputs, inputs) or "the format"
                log.warning("not resuming %s: %s changed since", path, changed)
                continue
            if artifact.first_changed((file, entry.sha256) for file, entry in files.items()):
                raise ValueError("its bytes have changed")
            Checkpoint.open(path)
            return path
        except (OSError, ValueError, SafetensorError) as error:
            if isinstance(error, PermissionError) or (isinstance(error, OSError) and not of_the_file(error)):
                raise  # whole as it may be, a new start would drop it
            log.warning("skipping the damaged checkpoint %s: %s", path, error)
    return None


def clear(directory: Path) -> None:
    """Remove all checkpoints of a stage, and their folder where a person has put nothing else into it."""
    durable.sweep(directory, _NAMES)
    _remove(directory, [path for _, path in _by_step(directory)])


def clear_finished(directory: Path, fingerprint: str) -> None:
    """Remove those of an identity that is finished, which a kill has left; those of another may be gone on with."""
    durable.sweep(directory, _NAMES)
    _remove(directory, [path for _, path in _by_step(directory) if _identity(path) == fingerprint])


def inputs_of(directory: Path) -> dict[str, Any] | None:
    """What the newest checkpoint was made from; None where there is none, or none that can be read."""
    for _, path in _by_step(directory):
        with contextlib.suppress(OSError, ValueError):
            return _read_manifest(path).inputs
    return None


def _remove(directory: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        durable.remove_directory(path)
    with contextlib.suppress(OSError):  # not empty, or not there
        directory.rmdir()


def _identity(path: Path) -> str | None:
    try:
        return _read_manifest(path).fingerprint
    except (OSError, ValueError):
        return None


def _by_step(directory: Path) -> list[tuple[int, Path]]:
    """Checkpoints, newest first, ordered by number."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.match(path.name))]
    return sorted(found, reverse=True)
