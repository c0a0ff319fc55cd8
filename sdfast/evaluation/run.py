"""Evaluate a run's fine-tuned model on its own test split or on another source, and write what it predicted."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import torch

from sdfast import durable
from sdfast.domains.base import Classifier, Domain
from sdfast.domains.choose import domain_of
from sdfast.errors import UserError
from sdfast.evaluation.classification import classification_metrics, evaluation_split, labelled_rows
from sdfast.log import log

if TYPE_CHECKING:
    from sdfast.pipeline import Pipeline


def evaluate_run(pipeline: Pipeline, data: str | None) -> dict[str, float]:
    """See `Pipeline.evaluate`.

    Raises:
        UserError: there is no fine-tuned model, the source has no labels, or it has classes the model does not know.
    """
    folder = pipeline.out / "finetune" / "model"
    durable.recover_directory(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no fine-tuned model; run `sdfast train --stage finetune` with this --out first."
        )
    # Neither the run's first model nor its source needs to be there any more.
    domain = pipeline.domain = domain_of(folder, pipeline)
    classifier = domain.read_classifier(folder)
    module, names = classifier.module.to(pipeline.device), classifier.names
    pack = _pack(pipeline, domain, data, classifier)
    split_name, split = ("train", pack.split("train")) if set(pack.splits) == {"train"} else evaluation_split(pack)
    source_names = pack.class_names
    if split.labels is None or source_names is None:
        raise UserError(f"{data or pipeline.data_spec} has no labels to compare predictions with.")
    unknown = sorted(set(source_names) - set(names))
    if unknown:
        raise UserError(
            f"{data or pipeline.data_spec} has classes that the model was not trained on: {', '.join(unknown)}."
        )
    rows = labelled_rows(split)
    labels = torch.tensor([names.index(name) for name in source_names])[torch.from_numpy(split.labels)[rows]]
    logits = domain.predict(module, classifier.companions, split, rows)
    scores = classification_metrics(logits, labels)
    metrics = {"accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"], "micro_f1": scores["micro_f1"]}
    metrics["test_loss"] = scores["loss"]
    path = pipeline.out / "predictions.csv"
    durable.write_bytes(path, _predictions([split.names[row] for row in rows.tolist()], labels, logits, names).encode())
    log.info("evaluated %d %s (%s); predictions: %s", len(labels), domain.modality, split_name, path)
    return metrics


def _pack(pipeline: Pipeline, domain: Domain, data: str | None, classifier: Classifier) -> Any:
    """The run's own pack, or that of another source."""
    if data is not None:
        return domain.evaluation_pack(data, pipeline.out / "eval-pack", classifier)
    pack = domain.open_pack(pipeline.out / "pack")
    stored = durable.read_json(pipeline.out / "finetune" / "result.json")
    _, split = evaluation_split(pack)
    tested = split.digests[labelled_rows(split).numpy()] if split.labels is not None else split.digests
    inputs = stored.get("inputs") if isinstance(stored, dict) else None
    if (
        not isinstance(inputs, dict)
        or inputs.get(f"test {domain.modality}") != durable.sha256_array(tested)
        or not domain.fits(pack, classifier)
    ):
        raise UserError(
            f"{pipeline.out / 'pack'} holds other data than the model was fine-tuned on; run"
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
