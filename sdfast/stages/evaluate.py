"""Evaluate a run's fine-tuned model on its own test split or on another source, and write what it predicted."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdfast import durable
from sdfast.config import Config
from sdfast.context import Classifier, Modality
from sdfast.data.labels import Unseen, known_classes
from sdfast.data.pack_checks import first_names
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, ProblemType
from sdfast.errors import UserError
from sdfast.evaluation.classification import evaluation_split, labelled_rows
from sdfast.evaluation.predictions import file_for
from sdfast.evaluation.scoring import HALF, SCORING
from sdfast.evaluation.votes import answers_of
from sdfast.frames import Per, metric_frame
from sdfast.log import log
from sdfast.modalities.choose import modality_of
from sdfast.models.neighbours import FeatureClassifier, has_neighbours, load_neighbours
from sdfast.rundir import RESULT, StoredResult, check_model

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does with some rows.

    Attributes:
        metrics: see `sdfast.evaluation.scoring`.
        per_class: by the name of each class its precision, recall, F1, support, and where rows have several classes its
            average precision; empty where labels are numbers.
        confusion_matrix: see `sdfast.evaluation.classification.class_tables`; None where rows have several classes.
        per_output: of labels that are numbers, by the name of each its errors, R2 and rank correlation; else None.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion_matrix: list[list[int]] | None = None
    per_output: dict[str, dict[str, float]] | None = None

    def to_pandas(self, per: Per = "metric") -> pd.DataFrame:
        """The metrics: a row for each, or for each class or number (see `metric_frame`)."""
        return metric_frame(per, self.metrics, self.per_class or self.per_output or {})


def evaluate_run(
    out: Path, config: Config, device: torch.device, data: str | None, to: Path | None = None, read_only: bool = False
) -> Evaluation:
    """Classify with the fine-tuned model of a run and write what it predicted.

    Neither the run's first model nor its source needs to be there any more.

    Args:
        out: the run directory.
        config: of the run; its `data` section is for the other source.
        device: where to compute.
        data: another labelled source; the run's own test split when None.
        to: file for the predictions; where `file_for` says when None.
        read_only: the run directory cannot be written.

    Raises:
        UserError: there is no fine-tuned model or a damaged one, the source has no labels, or it has classes the model
            does not know.
    """
    if to is not None and not to.absolute().parent.is_dir():
        raise UserError(f"--predictions {to}: there is no folder {to.parent}.")
    with contextlib.ExitStack() as stack:
        if read_only:
            packs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sdfast-")))
        else:
            packs = out
            durable.recover_directory(out / "finetune" / "model")
        found, text = _evaluated(out, config, device, data, packs / "eval-pack")
    if to is None and read_only:
        log.warning("%s cannot be written, so the predictions are not kept; give --predictions FILE.", out)
    else:
        path = file_for(out, data) if to is None else to
        durable.write_bytes(path, text.encode("utf-8", "surrogateescape"))  # names of files as the system has them
        log.info("predictions: %s", path)
    return found


def _evaluated(
    out: Path, config: Config, device: torch.device, data: str | None, packed: Path
) -> tuple[Evaluation, str]:
    """What came out, and the predictions as CSV; the pack of another source is made at `packed`."""
    tuned = fine_tuned(out)
    modality, classifier, stored, problem = tuned.modality, tuned.classifier, tuned.stored, tuned.problem
    module, names = classifier.module.to(device), classifier.names
    config = for_labels(config, problem)
    if data is None:
        pack = _own_pack(out, config, modality, classifier, stored.inputs)
    else:
        pack = modality.evaluation_pack(data, packed, config, classifier)
    split_name, split = ("train", pack.split("train")) if set(pack.splits) == {"train"} else evaluation_split(pack)
    source_names = pack.class_names
    if split.labels is None or source_names is None:
        raise UserError(f"{data or config.data_spec} has no labels to compare predictions with.")
    rows, labels = _KNOWN[problem](split, source_names, names, data or config.data_spec, config.data.unseen)
    if not len(rows):
        raise UserError(f"no row of {data or config.data_spec} has a label to compare predictions with.")

    def answers(seen: Any, rows: torch.Tensor) -> torch.Tensor:
        return modality.predict(module, classifier.companions, seen, rows, modality.reader(seen, device))

    scoring, threshold = SCORING[problem], tuned.threshold
    logits = answers_of(split, rows, modality.voting(pack, split, config), answers, scoring.voted)
    metrics = scoring.reported(scoring.metrics(logits, labels, threshold), len(names))
    found = Evaluation(metrics, **scoring.tables(logits, labels, names, threshold))
    where = split_name if data is None else data if len(pack.splits) == 1 else f"{split_name} of {data}"
    log.info("evaluated %d %s (%s)", len(labels), modality.name, where)
    log.info("%s", scoring.note(labels, names))
    return found, scoring.predictions([split.names[row] for row in rows.tolist()], logits, labels, names, threshold)


@dataclass(frozen=True)
class FineTuned:
    """The model of a run's stage `finetune`, with the bytes that were written.

    Attributes:
        modality: of it.
        classifier: read; where nearest neighbours vote the encoder and they.
        stored: the stage's result.
    """

    modality: Modality
    classifier: Classifier
    stored: StoredResult

    @property
    def problem(self) -> ProblemType:
        """What its labels are."""
        problem: ProblemType = self.stored.inputs.get("problem_type", SINGLE)
        return problem

    @property
    def threshold(self) -> float:
        """The probability from which on a class applies, where a row has several."""
        return self.stored.metrics.get("threshold", HALF)


def fine_tuned(out: Path) -> FineTuned:
    """The fine-tuned model of a run.

    Raises:
        UserError: there is none, or a damaged one.
    """
    folder = out / "finetune" / "model"
    if not folder.is_dir() and not (folder.parent / RESULT).exists():
        raise UserError(
            f"{folder} holds no fine-tuned model; run `sdfast train --stage finetune` with this --out first."
        )
    stored, modality = check_model(folder.parent), modality_of(folder)
    return FineTuned(modality, classifier_in(modality, folder), stored)


def classifier_in(modality: Modality, folder: Path) -> Classifier:
    """The fine-tuned model, or the encoder whose nearest neighbours vote."""
    if not has_neighbours(folder):
        return modality.read_classifier(folder)
    loaded, (neighbours, names) = modality.reload(folder), load_neighbours(folder)
    module = FeatureClassifier(loaded.module, neighbours)
    return Classifier(module, names, modality.companions(loaded), folder)


def for_labels(config: Config, problem: ProblemType) -> Config:
    """The configuration that reads labels of a source as the model was trained on them.

    Raises:
        UserError: it asks for other ones.
    """
    asked = config.data.problem_type
    if asked not in (None, problem):
        raise UserError(f"data.problem_type={asked}: the model was trained with {problem}; leave it away.")
    separator = config.data.label_separator if problem == SEVERAL else None
    data = config.data.model_copy(update={"problem_type": problem, "label_separator": separator})
    return config.model_copy(update={"data": data})


def _known_rows(
    split: Any, source_names: list[str], names: Sequence[str], where: str, unseen: Unseen
) -> tuple[torch.Tensor, torch.Tensor]:
    """The labelled rows of a split whose class the model knows, [n] int64, and its number of that class, [n] int64.

    Raises:
        UserError: there are classes that it does not know, and `unseen` is "error"; or there are no others.
    """
    rows = labelled_rows(split)
    known = torch.tensor([-1 if number is None else number for number in known_classes(source_names, names)])
    own = torch.from_numpy(split.labels)[rows]
    labels = known[own]
    unknown = [f"{source_names[label]}" for label in own[labels < 0].unique().tolist()]
    if unknown:
        _say_unknown(unknown, int((labels < 0).sum()), not (labels >= 0).any(), names, where, unseen)
    return rows[labels >= 0], labels[labels >= 0]


def _known_several(
    split: Any, source_names: list[str], names: Sequence[str], where: str, unseen: Unseen
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of rows that have several classes, all of which the model knows: labels [n, C] uint8."""
    rows = labelled_rows(split)
    own = torch.from_numpy(split.labels)[rows]
    numbers = known_classes(source_names, names)
    labels = torch.zeros(len(rows), len(names), dtype=torch.uint8)
    for place, number in enumerate(numbers):
        if number is not None:
            labels[:, number] |= own[:, place]
    foreign = [place for place, number in enumerate(numbers) if number is None]
    astray = own[:, foreign].bool().any(dim=1)
    if astray.any():
        unknown = [source_names[place] for place in foreign if own[:, place].any()]
        _say_unknown(unknown, int(astray.sum()), bool(astray.all()), names, where, unseen)
    return rows[~astray], labels[~astray]


def _known_numbers(
    split: Any, source_names: list[str], names: Sequence[str], where: str, unseen: Unseen
) -> tuple[torch.Tensor, torch.Tensor]:
    """The labelled rows of a split and their numbers, [n, K] float32, in the order of the model's outputs."""
    rows = labelled_rows(split)
    own = torch.from_numpy(split.labels)[rows]
    if len(names) == 1 == len(source_names):
        return rows, own
    if sorted(source_names) != sorted(names):
        raise UserError(
            f"{where} has the numbers {first_names(source_names)}, and the model gives {first_names(list(names))}; "
            "name those columns by data.label_key."
        )
    return rows, own[:, [source_names.index(name) for name in names]]


_KNOWN: Mapping[ProblemType, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    SINGLE: _known_rows,
    SEVERAL: _known_several,
    REGRESSION: _known_numbers,
}


def _say_unknown(unknown: list[str], rows: int, every: bool, names: Sequence[str], where: str, unseen: Unseen) -> None:
    """Say which classes of some rows the model does not know.

    Raises:
        UserError: `unseen` is "error", or there are no other rows.
    """
    what = f"{len(unknown)} ({first_names(unknown)}), of {rows:,} rows"
    if unseen == "error" or every:
        raise UserError(
            f"{where} has classes that the model was not trained on: {what}; it knows {first_names(list(names))}. "
            "Rename them, or leave their rows out by data.unseen=drop."
        )
    log.warning("Classes of %s that the model was not trained on: %s, which are left out.", where, what)


def _own_pack(out: Path, config: Config, modality: Modality, classifier: Classifier, inputs: Mapping[str, Any]) -> Any:
    """The run's own pack, where it is of the data that the model was fine-tuned on from these inputs."""
    pack = modality.open_pack(out / "pack")
    _, split = evaluation_split(pack)
    tested = split.digests[labelled_rows(split).numpy()] if split.labels is not None else split.digests
    same = inputs.get(f"test {modality.name}") == durable.sha256_array(tested)
    if not same or not modality.fits(pack, config, classifier):
        raise UserError(
            f"{out / 'pack'} holds other data than the model was fine-tuned on; run"
            " `sdfast train --stage finetune` with this --out again, or give --data."
        )
    return pack
