"""Evaluate a run's fine-tuned model on its own test split or on another source, and write what it predicted."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import torch

from sdfast import durable
from sdfast.data.pack import Pack, open_pack, prepare_pack
from sdfast.data.transform import Transform
from sdfast.errors import UserError
from sdfast.evaluation.classification import classification_metrics, evaluation_split, labelled_rows, predict
from sdfast.log import log
from sdfast.models.checkpoint import load_classifier
from sdfast.models.processor import ImageProcessor
from sdfast.models.vit import ViTClassifier
from sdfast.objectives.base import Normalise

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
    module, processor, names = load_classifier(folder)
    module.to(pipeline.device)
    pack = _pack(pipeline, data, module, processor)
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
    normalise = Normalise(processor.mean, processor.std).to(pipeline.device)
    logits = predict(module, normalise, pipeline.images(split), rows)
    scores = classification_metrics(logits, labels)
    metrics = {"accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"], "micro_f1": scores["micro_f1"]}
    metrics["test_loss"] = scores["loss"]
    path = pipeline.out / "predictions.csv"
    durable.write_bytes(path, _predictions([split.names[row] for row in rows.tolist()], labels, logits, names).encode())
    log.info("evaluated %d images (%s); predictions: %s", len(labels), split_name, path)
    return metrics


def _pack(pipeline: Pipeline, data: str | None, module: ViTClassifier, processor: ImageProcessor) -> Pack:
    """The run's own pack, which needs neither its source nor its first model any more, or that of another source."""
    transform = Transform(processor.height, processor.width, module.shape.channels, processor.mean, processor.std)
    if data is not None:
        # Every row is for evaluation, whatever it shares with others.
        options = pipeline.config.data.model_copy(update={"test_fraction": 0.0, "duplicates": "keep"})
        return prepare_pack(data, pipeline.out / "eval-pack", transform, options, log.warning)
    pack = open_pack(pipeline.out / "pack")
    stored = durable.read_json(pipeline.out / "finetune" / "result.json")
    _, split = evaluation_split(pack)
    tested = split.digests[labelled_rows(split).numpy()] if split.labels is not None else split.digests
    inputs = stored.get("inputs") if isinstance(stored, dict) else None
    if (
        not isinstance(inputs, dict)
        or inputs.get("test images") != durable.sha256_array(tested)
        or pack.transform != transform
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
