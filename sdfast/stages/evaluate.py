"""Evaluate a run's fine-tuned model on its own test split or on another source, and write what it predicted."""

from __future__ import annotations

import contextlib
import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdfast import durable
from sdfast.config import Config
from sdfast.context import Classifier, Modality
from sdfast.data.labels import Unseen, known_classes
from sdfast.data.pack_checks import first_names
from sdfast.errors import UserError
from sdfast.evaluation.classification import (
    baseline_note,
    class_tables,
    classification_metrics,
    evaluation_split,
    labelled_rows,
    reported_metrics,
)
from sdfast.evaluation.predictions import file_for
from sdfast.evaluation.votes import answers_of
from sdfast.log import log
from sdfast.modalities.choose import modality_of
from sdfast.rundir import RESULT, check_model


@dataclass(frozen=True)
class Evaluation:
    """What a classifier does with some rows.

    Attributes:
        metrics: see `reported_metrics`.
        per_class, confusion_matrix: see `sdfast.evaluation.classification.class_tables`.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    confusion_matrix: list[list[int]] | None = None


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
    folder = out / "finetune" / "model"
    if not folder.is_dir() and not (folder.parent / RESULT).exists():
        raise UserError(
            f"{folder} holds no fine-tuned model; run `sdfast train --stage finetune` with this --out first."
        )
    stored = check_model(folder.parent)
    modality = modality_of(folder)
    classifier = modality.read_classifier(folder)
    module, names = classifier.module.to(device), classifier.names
    if data is None:
        pack = _own_pack(out, config, modality, classifier, stored.inputs)
    else:
        pack = modality.evaluation_pack(data, packed, config, classifier)
    split_name, split = ("train", pack.split("train")) if set(pack.splits) == {"train"} else evaluation_split(pack)
    source_names = pack.class_names
    if split.labels is None or source_names is None:
        raise UserError(f"{data or config.data_spec} has no labels to compare predictions with.")
    rows, labels = _known_rows(split, source_names, names, data or config.data_spec, config.data.unseen)

    def answers(seen: Any, rows: torch.Tensor) -> torch.Tensor:
        return modality.predict(module, classifier.companions, seen, rows, modality.reader(seen, device))

    logits = answers_of(split, rows, modality.voting(pack, split, config), answers)
    metrics = reported_metrics(classification_metrics(logits, labels), len(names))
    found = Evaluation(metrics, **class_tables(logits, labels, names))
    where = split_name if data is None else data if len(pack.splits) == 1 else f"{split_name} of {data}"
    log.info("evaluated %d %s (%s)", len(labels), modality.name, where)
    log.info("%s", baseline_note(labels, names))
    return found, _predictions([split.names[row] for row in rows.tolist()], labels, logits, names)


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
        what = f"{len(unknown)} ({first_names(unknown)}), of {int((labels < 0).sum()):,} rows"
        if unseen == "error" or not (labels >= 0).any():
            raise UserError(
                f"{where} has classes that the model was not trained on: {what}; it knows {first_names(list(names))}. "
                "Rename them, or leave their rows out by data.unseen=drop."
            )
        log.warning("Classes of %s that the model was not trained on: %s, which are left out.", where, what)
    return rows[labels >= 0], labels[labels >= 0]


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


def _predictions(files: list[str], labels: torch.Tensor, logits: torch.Tensor, names: list[str]) -> str:
    probabilities, predicted = logits.softmax(dim=1).max(dim=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "label", "predicted", "probability"])
    for file_name, label, guess, p in zip(
        files, labels.tolist(), predicted.tolist(), probabilities.tolist(), strict=True
    ):
        writer.writerow([file_name, names[label], names[guess], f"{p:.6f}"])
    return text.getvalue()
