"""A run directory: where each stage's model, records and result lie, and whether a stage is already done."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, StringConstraints

from sdfast import durable
from sdfast.errors import UserError, said
from sdfast.frames import Per, metric_frame
from sdfast.locks import check_held
from sdfast.models.hub import TOKENIZER_FILES
from sdfast.models.weights import SAFETENSORS_FILE
from sdfast.store import checkpoint
from sdfast.store.artifact import Count, Digest, Stored, files_in, first_changed, first_changed_key, fitted

if TYPE_CHECKING:
    import pandas as pd

RESULT = "result.json"
REPORT, REPORT_FOLDER = "report.html", "report"  # of a run: for a person, and what it is made from besides
_MODEL_FILES = {"config.json", SAFETENSORS_FILE, "preprocessor_config.json", "README.md", *TOKENIZER_FILES}
_AGAIN = "run `sdfast train` with this --out again, which makes a damaged model anew"
_Name = Annotated[str, StringConstraints(pattern=r"^(\w[\w.-]*/)*\w[\w.-]*$")]  # in the folder, and not above it
_Seconds = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


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
        metrics: `distance`, how far the encoder is from the initial one; for `finetune` also `accuracy`, beside it
            `majority_class_accuracy`, that of always answering the largest class of the test rows, `macro_f1`, where it
            is the mean over fewer classes than there are `macro_f1_classes`, how many, `micro_f1`, `test_loss`,
            `train_loss`, and `generalisation_gap`, the difference of those two; with `finetune.best_dev`
            `dev_accuracy`, `dev_macro_f1`, `dev_micro_f1` and `dev_loss`, of the val split.
        img_per_s, seq_per_s: images or texts per second of training; the other is None.
        paper_metric: which of `metrics` the paper reports for this data set, where it has it.
        best_step: with `finetune.best_dev`, after which step the weights were that were kept.
        best_by: and which metric on the val split decided.
        per_class: for `finetune`, of the rows that it is evaluated on (`test`) and with `finetune.best_dev` of the val
            split (`val`): by the name of each class its `precision`, `recall`, `f1` and `support` (rows).
        confusion_matrix: likewise, `[classes][classes]`: how many rows of the one class (first index) were taken for
            the other, in the order of `per_class`; not of more than 1,000 classes.
        per_output: likewise of labels that are numbers, by the name of each: `mse`, `rmse`, `mae`, `r2`, `spearman`.

    Where rows have several classes, `metrics` has `mean_average_precision`, `macro_f1`, `micro_f1`, `subset_accuracy`
    and `threshold`, the probability from which on a class applies, `per_class` has `average_precision` too, and there
    is no matrix. Where labels are numbers it has the means of `per_output`. Both have the losses as above.
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
    per_class: dict[str, dict[str, dict[str, float]]] | None = field(default=None, repr=False)
    confusion_matrix: dict[str, list[list[int]]] | None = field(default=None, repr=False)
    per_output: dict[str, dict[str, dict[str, float]]] | None = field(default=None, repr=False)

    def to_pandas(self, per: Per = "metric") -> pd.DataFrame:
        """The metrics: a row for each, or for each class or number of the test rows (see `metric_frame`)."""
        each = (self.per_class or {}).get("test") or (self.per_output or {}).get("test") or {}
        return metric_frame(per, self.metrics, each)

    @property
    def unit(self) -> str:
        """What `rate` counts."""
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
        tables: `per_class`, `confusion_matrix` and `per_output` of `Result`, where there are any.
    """

    weights: str
    write_model: Callable[[Path], object]
    numbers: dict[str, Any]
    metrics: dict[str, float] | None = None
    tables: dict[str, Any] = field(default_factory=dict)


class StoredClass(Stored):
    """What `result.json` holds of one class in `per_class`."""

    precision: _Share
    recall: _Share
    f1: _Share
    support: Count


class StoredSeveral(StoredClass):
    """The same where rows have several classes."""

    average_precision: _Share


class StoredResult(Stored):
    """What `result.json` holds; `Result` says what it means.

    Attributes:
        inputs: everything that decided the result, by name; `fingerprint` is its digest.
        files: SHA-256 of each file of the model, by its name in the folder.
    """

    stage: str
    steps: Count
    seconds: _Seconds
    fingerprint: Digest
    weights: Digest
    metrics: dict[str, float] = Field(default_factory=dict)
    img_per_s: _Seconds | None = None
    seq_per_s: _Seconds | None = None
    paper_metric: str | None = None
    best_step: Count | None = None
    best_by: str | None = None
    per_class: dict[str, dict[str, StoredSeveral]] | dict[str, dict[str, StoredClass]] | None = None
    confusion_matrix: dict[str, list[list[Count]]] | None = None
    per_output: dict[str, dict[str, dict[str, float]]] | None = None
    inputs: dict[str, Any]
    files: Annotated[dict[_Name, Digest], Field(min_length=1)]

    def result(self, model: Path) -> Result:
        """The stage's result, with the folder of the model."""
        return Result(model=model, **self.model_dump(exclude={"inputs", "files"}))


def read_result(folder: Path) -> StoredResult | None:
    """What a stage's folder says that it gave; None where it says nothing, or not what was written.

    Raises:
        UserError: it may not be read.
    """
    try:
        return _load_result(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise durable.unreadable(folder / RESULT, error) from error


def check_model(folder: Path, copy: Path | None = None) -> StoredResult:
    """The result of a stage that has ended, whose model has the very bytes that the stage wrote.

    Args:
        folder: of the stage.
        copy: of its model, which is compared instead.

    Raises:
        UserError: there is no result, it is not what was written, or a file of the model differs or cannot be read.
    """
    try:
        stored = _load_result(folder)
    except (OSError, ValueError) as error:
        reason = said(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"{folder / RESULT} cannot be used: {reason}; {_AGAIN}.") from error
    model = folder / "model" if copy is None else copy
    if (name := _damaged(model, stored.files)) is not None:
        raise UserError(f"{folder / 'model' / name} is not what {folder / RESULT} says was written; {_AGAIN}.")
    return stored


def _load_result(folder: Path) -> StoredResult:
    stored = fitted(StoredResult, durable.load_json(folder / RESULT))
    if stored.img_per_s is None and stored.seq_per_s is None:
        raise ValueError("it has no rate")
    return stored


def _damaged(model: Path, files: Mapping[str, str]) -> str | None:
    """The first file of a model that is not there or has other bytes than when it was written."""
    path = first_changed((model / name, digest) for name, digest in files.items())
    return None if path is None else path.relative_to(model).as_posix()


class StageDirectory:
    """One stage's folder: `model/`, `checkpoints/`, `metrics.jsonl`, `result.json`."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self.model = path / "model"

    def finished(self, inputs: dict[str, Any]) -> Result | None:
        """The result, when the stage was finished from these very inputs and its model is intact.

        Then its checkpoints go too, which a process that was killed as it ended has left.
        """
        durable.recover_directory(self.model)
        stored = read_result(self.path)
        if stored is None or stored.fingerprint != durable.sha256_json(inputs) or _damaged(self.model, stored.files):
            return None
        checkpoint.clear_finished(self.path / "checkpoints", stored.fingerprint)
        return stored.result(self.model)

    def changed_input(self, inputs: dict[str, Any]) -> str | None:
        """The first input that differs from those of the stored result; None when there is no result."""
        stored = durable.read_json(self.path / RESULT)
        if not isinstance(stored, dict):
            return None
        old = stored.get("inputs")
        if not isinstance(old, dict):
            return RESULT
        return first_changed_key(old, inputs) or (RESULT if read_result(self.path) is None else "the model's files")

    def check_replaceable(self) -> None:
        """Before the stage is trained: its folder is still this run's, and nothing in it would be lost.

        Raises:
            UserError: the folder of the model is none, or holds something that no stage wrote.
            RunError: the run directory was taken away.
        """
        check_held(self.path)
        if self.model.exists() and not self.model.is_dir():
            raise UserError(f"{self.model} is no folder; move it away or choose another --out.")
        if (name := next(iter(self.foreign()), None)) is not None:
            raise UserError(
                f"{self.model} holds {name!r}, which no stage wrote and which would be lost as {self.stage} runs again;"
                " move it away or choose another --out."
            )

    def foreign(self) -> list[str]:
        """What is in the folder of the model, and is no part of it."""
        stored = read_result(self.path)
        if stored is not None:
            return [name for name in files_in(self.model) if name not in stored.files]
        # its writer may have been killed before it wrote the result
        return foreign_in(self.model)

    def finish(self, inputs: dict[str, Any], outcome: Outcome, replaced: Callable[[], object] = lambda: None) -> Result:
        """Write the model, then the result, durably; then drop the checkpoints.

        Args:
            inputs: everything that decided the result; its digest is the fingerprint.
            outcome: what came out.
            replaced: removes what was of the model before, when the new one is durable and before it counts.
        """
        weights, numbers, metrics = outcome.weights, outcome.numbers, outcome.metrics
        with durable.staged_directory(self.model) as staging:
            outcome.write_model(staging)
        replaced()
        fingerprint = durable.sha256_json(inputs)
        value = {
            "stage": self.stage,
            **numbers,
            "fingerprint": fingerprint,
            "weights": weights,
            **({"metrics": metrics} if metrics is not None else {}),
            "inputs": inputs,
            "files": {name: durable.sha256_file(path) for name, path in files_in(self.model).items()},
            **outcome.tables,
        }
        durable.write_json(self.path / RESULT, durable.sealed(value))
        checkpoint.clear(self.path / "checkpoints")
        more = numbers | outcome.tables
        return Result(self.stage, self.model, fingerprint=fingerprint, weights=weights, metrics=metrics or {}, **more)


def slug(spec: str) -> str:
    """The end of a path or hub id, fit for the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", spec.rstrip("/").rsplit("/", 1)[-1]) or "run"


def foreign_in(folder: Path) -> list[str]:
    """What is in the folder of a model and has no name that sdfast gives the files of one."""
    return [name for name in files_in(folder) if name.rsplit("/", 1)[-1] not in _MODEL_FILES]
