"""What a model card says when its stage is done: the steps that led to the model, the settings, and what it scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast.config import HEADS
from sdfast.context import Context
from sdfast.data.problem import REGRESSION, SEVERAL
from sdfast.durable import write_bytes
from sdfast.evaluation.classification import evaluation_split, labelled_rows
from sdfast.modalities.card import USE
from sdfast.modalities.provenance import name_of_data, own_settings, plain
from sdfast.stages.graph import Stage

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_DONE = {
    "head": "`head`: a new {head}, the encoder frozen",
    "pretrain": "`pretrain`: further masked pre-training on the data, without labels",
    "distill": "`distill`: self-distillation for further pre-training: it starts again from the base model, and beside"
    " the masked objective matches the model that was trained before it",
    "finetune": "`finetune`: training with labels",
}
_SHOWN = {  # of what a stage reports: the hub's name of the metric, and what a person calls it
    "accuracy": ("accuracy", "accuracy"),
    "macro_f1": ("f1", "macro F1"),
    "micro_f1": ("f1", "micro F1"),
    "mean_average_precision": ("mean_average_precision", "mean average precision"),
    "subset_accuracy": ("subset_accuracy", "subset accuracy"),
    "mse": ("mse", "mean squared error"),
    "rmse": ("rmse", "root of the mean squared error"),
    "mae": ("mae", "mean absolute error"),
    "r2": ("r_squared", "R2"),
    "spearman": ("spearmanr", "Spearman's rank correlation"),
}
_CITATION = """\
## Source of the method

```bibtex
@inproceedings{lee2023selfdistillation,
  title = {Self-Distillation for Further Pre-training of Transformers},
  author = {Lee, Seanie and Kang, Minki and Lee, Juho and Hwang, Sung Ju and Kawaguchi, Kenji},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  url = {https://arxiv.org/abs/2210.02871}
}
```
"""


def finish_card(
    folder: Path, context: Context, stage: Stage, steps: int, metrics: Mapping[str, float] | None = None
) -> None:
    """Add to the card in a model's folder what is known at the stage's end.

    Args:
        folder: of the model.
        context: of the run.
        stage: that made it.
        steps: that it took.
        metrics: on the test rows, of a classifier.
    """
    from huggingface_hub import ModelCard

    card = ModelCard((folder / "README.md").read_text("utf-8"))
    data: Any = card.data
    parts = _training(context, stage, steps)
    if metrics is not None:
        title = next(line for line in card.text.splitlines() if line.startswith("# ")).removeprefix("# ")
        data.model_name, data.eval_results, table = title, *_results(context, metrics)
        parts += table
    before, after = card.text.lstrip("\n").split(f"{USE}\n", 1)
    cited = [_CITATION] if any(each.kind == "distill" and each.round for each in stage.chain()) else []
    text = "\n".join(("---", data.to_yaml().strip(), "---", "", before + "\n".join((*parts, "")), f"{USE}\n{after}"))
    write_bytes(folder / "README.md", "\n".join((text, *cited)).encode())


def _training(context: Context, stage: Stage, steps: int) -> list[str]:
    lines, chain = ["## How it was made", ""], stage.chain()
    for kind in dict.fromkeys(each.kind for each in chain):
        some = [each for each in chain if each.kind == kind]
        if kind == "distill" and some[-1].round == 0:
            continue
        section = context.section(kind)
        how, rounds = getattr(section, "method", "full"), f", {len(some)} rounds" if len(some) > 1 else ""
        count = steps if kind == stage.kind else section.steps
        with_ = "" if how == "full" else f" (`{kind}.method={how}`)"
        size = f"{count:,} steps of {section.batch_size:,} {context.modality.name}"
        done = _DONE[kind].format(head=HEADS[context.modality.name])
        if kind == "distill" and not context.config.distill.weight:
            done = "`distill`: further masked pre-training once more from the base model, matching nothing"
        lines.append(f"1. {done}{with_}: {'no training' if how == 'knn' else size}{rounds}.")
    own = own_settings(context.config, context.modality.name)
    if own:
        lines += ["", "Settings other than sdfast's own:", "", "```yaml"]
        lines += [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in own.items()]
        lines += ["```"]
    return [*lines, ""]


def _results(context: Context, metrics: Mapping[str, float]) -> tuple[list[EvalResult], list[str]]:
    """For the hub, and as a table."""
    from huggingface_hub import EvalResult

    split_name, split = evaluation_split(context.pack)
    rows, name = len(labelled_rows(split)), plain(name_of_data(context))
    found = [
        EvalResult(
            task_type="image-classification" if context.modality.name == "images" else "text-classification",
            dataset_type=name,
            dataset_name=name,
            dataset_split=split_name,
            dataset_args={"rows": rows},
            metric_type=kind,
            metric_name=called,
            metric_value=_rounded(metrics[key]),
        )
        for key, (kind, called) in _SHOWN.items()
        if key in metrics and not (key == "micro_f1" and "accuracy" in metrics)  # which are the same
    ]
    lines = ["## What it scores", "", f"On the {rows:,} {context.modality.name} of the {split_name} split:", ""]
    lines += ["| metric | value |", "|---|---|", *(f"| {each.metric_name} | {each.metric_value} |" for each in found)]
    problem, more = context.pack.problem, ""
    if (usual := metrics.get("majority_class_accuracy")) is not None:
        more = f"Always answering the largest class would have an accuracy of {_rounded(usual)}."
    elif problem == SEVERAL and "threshold" in metrics:
        more = f"A class is taken to apply from a probability of {metrics['threshold']:g} on."
    elif problem == REGRESSION:
        more = "Errors are in the units of the data."
    return found, [*lines, "", *([more, ""] if more else [])]


def _rounded(value: Any) -> float:
    return float(f"{value:.4g}")
