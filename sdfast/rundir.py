"""A run directory: where each stage's model, records and result lie, and whether a stage is already done."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdfast.durable import (
    read_json,
    recover_directory,
    sha256_file,
    sha256_json,
    staged_directory,
    write_json,
)
from sdfast.engine import checkpoint
from sdfast.errors import UserError

_SOME = {"paper_metric", "best_step", "best_by"}  # what some results have


@dataclass(frozen=True)
class Result:
    """What a stage gave.

    Attributes:
        stage: `pretrain`, `distill` or `finetune`.
        model: folder of the model, in Hugging Face format.
        steps: optimiser steps.
        seconds: time spent training, over all resumptions.
        fingerprint: identity of everything that decided the result, by content.
        weights: digest of the model's weights.
        metrics: `distance`, how far the encoder is from the initial one; for `finetune` also `accuracy`, `macro_f1`,
            `micro_f1`, `test_loss`, `train_loss`, and `generalisation_gap`, the difference of those two;
            with `finetune.best_dev` `dev_accuracy`, `dev_macro_f1`, `dev_micro_f1` and `dev_loss`, of the val split.
        img_per_s, seq_per_s: images or texts per second of training; the other is None.
        paper_metric: which of `metrics` the paper reports for this data set, where it has it.
        best_step: with `finetune.best_dev`, after which step the weights were that were kept.
        best_by: and which metric on the val split decided.
    """

    stage: str
    model: Path
    steps: int
    seconds: float
    fingerprint: str
    weights: str
    metrics: dict[str, float] = field(default_factory=dict)
    img_per_s: float | None = None
    seq_per_s: float | None = None
    paper_metric: str | None = None
    best_step: int | None = None
    best_by: str | None = None

    @property
    def unit(self) -> str:
        """Of `rate`."""
        return "img/s" if self.seq_per_s is None else "seq/s"

    @property
    def rate(self) -> float:
        """Images or texts per second of training."""
        return (self.img_per_s if self.seq_per_s is None else self.seq_per_s) or 0.0


@dataclass(frozen=True)
class Outcome:
    """What the training of a stage hands over to be kept.

    Attributes:
        weights: digest of the weights.
        write_model: writes the model's files into the folder it is given.
        numbers: `steps`, `seconds`, `img_per_s` or `seq_per_s`, and further ones of `Result` where there are any.
        metrics: see `Result`.
    """

    weights: str
    write_model: Callable[[Path], object]
    numbers: dict[str, Any]
    metrics: dict[str, float] | None = None


class StageDirectory:
    """One stage's folder: `model/`, `checkpoints/`, `metrics.jsonl`, `result.json`."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self.model = path / "model"

    def finished(self, inputs: dict[str, Any]) -> Result | None:
        """The result, when the stage was finished from these very inputs and its model is intact."""
        recover_directory(self.model)
        stored = read_json(self.path / "result.json")
        names = {"steps", "seconds", "fingerprint", "weights"}
        rates = {"img_per_s", "seq_per_s"}
        if not isinstance(stored, dict) or stored.get("fingerprint") != sha256_json(inputs):
            return None
        files = stored.get("files")
        if (
            not isinstance(files, dict)
            or not files
            or not names <= set(stored)
            or rates.isdisjoint(stored)
            or any(
                not (self.model / name).is_file() or sha256_file(self.model / name) != digest
                for name, digest in files.items()
            )
        ):
            return None
        known = {name: stored[name] for name in names | rates | _SOME if name in stored}
        return Result(self.stage, self.model, metrics=stored.get("metrics", {}), **known)

    def changed_input(self, inputs: dict[str, Any]) -> str | None:
        """The first input that differs from those of the stored result; None when there is no result."""
        stored = read_json(self.path / "result.json")
        if not isinstance(stored, dict):
            return None
        old = stored.get("inputs")
        if not isinstance(old, dict):
            return "result.json"
        changed = [name for name in {**inputs, **old} if inputs.get(name) != old.get(name)]
        return changed[0] if changed else "the model's files"

    def finish(self, inputs: dict[str, Any], outcome: Outcome) -> Result:
        """Write the model, then the result, durably; then drop the checkpoints.

        Args:
            inputs: everything that decided the result; its digest is the fingerprint.
            outcome: what came out.
        """
        weights, numbers, metrics = outcome.weights, outcome.numbers, outcome.metrics
        with staged_directory(self.model) as staging:
            outcome.write_model(staging)
        fingerprint = sha256_json(inputs)
        value = {
            "stage": self.stage,
            **numbers,
            "fingerprint": fingerprint,
            "weights": weights,
            **({"metrics": metrics} if metrics is not None else {}),
            "inputs": inputs,
            "files": {path.name: sha256_file(path) for path in sorted(self.model.iterdir())},
        }
        write_json(self.path / "result.json", value)
        checkpoint.clear(self.path / "checkpoints")
        return Result(
            self.stage, self.model, fingerprint=fingerprint, weights=weights, metrics=metrics or {}, **numbers
        )


@contextlib.contextmanager
def locked(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold a directory, so that two processes never write the same one.

    Args:
        directory: a run's, or a stage's of a study.
        wait: until whoever holds it is done.

    Raises:
        UserError: another process holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "w")  # noqa: SIM115 (held until the block ends)
    except OSError as error:
        raise UserError(
            f"--out {directory} cannot be used: {(error.strerror or str(error)).lower()}; choose another --out."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise UserError(
            f"another sdfast process is working in {directory}; wait for it or choose another --out."
        ) from None
    try:
        yield
    finally:
        file.close()
