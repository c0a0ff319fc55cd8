"""Run directories without a run: the files that stages leave, written by the helpers that write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdfast.config import Config
from sdfast.durable import write_json
from sdfast.rundir import Outcome, StageDirectory

WEIGHTS = {name: name[0] * 64 for name in ("a given", "b pretrain", "c distill", "d finetune", "e plain")}
HOSTILE = "</script><script>window.hurt=1</script><img src=x onerror=window.hurt=1>\"'&"


def write_config(out: Path, **sections: Any) -> Config:
    steps = {"steps": 20}
    config = Config.model_validate({"pretrain": steps, "distill": steps, "finetune": steps, **sections})
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(config.to_yaml())
    return config


def write_records(folder: Path, lines: int = 20, every: int = 1, **more: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "w") as file:
        for at in range(1, lines + 1):
            loss = 2.0 / (1 + at / lines)
            record = {"step": at * every, "loss": loss, "loss_mae": 0.5 * loss, "loss_distill": 0.5 * loss}
            record |= {"lr": 1e-3, "rate": 100.0, "wait_share": 0.1, "tflops": 0.06, "peak_share": 0.4}
            file.write(json.dumps({**record, "step_seconds": 0.2, "epoch": at // 10, **more}) + "\n")


def write_result(
    out: Path,
    folder: str,
    kind: str,
    inputs: Mapping[str, Any],
    weights: str,
    metrics: Mapping[str, float] | None = None,
    tables: Mapping[str, Any] | None = None,
    **numbers: Any,
) -> None:
    def write_model(place: Path) -> None:
        (place / "config.json").write_text("{}")

    numbers = {"steps": 20, "seconds": 4.0, "img_per_s": 100.0, **numbers}
    outcome = Outcome(weights, write_model, numbers, dict(metrics or {"distance": 1.5}), dict(tables or {}))
    StageDirectory(out / folder, kind).finish({"stage": kind, **inputs}, outcome)


def class_result(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and tables of a confusion matrix."""
    count = len(names)
    support = [sum(row) for row in matrix]
    taken = [sum(row[place] for row in matrix) for place in range(count)]
    right = [matrix[place][place] for place in range(count)]
    each = {}
    for place, name in enumerate(names):
        precision, recall = (right[place] / max(of[place], 1) for of in (taken, support))
        f1 = 2 * right[place] / max(taken[place] + support[place], 1)
        each[name] = {"precision": precision, "recall": recall, "f1": f1, "support": support[place]}
    rows = sum(support)
    metrics = {
        "accuracy": sum(right) / rows,
        "majority_class_accuracy": max(support) / rows,
        "macro_f1": sum(one["f1"] for one in each.values()) / count,
        "test_loss": 1.25,
        "distance": 2.0,
    }
    return metrics, {"per_class": {"test": each}, "confusion_matrix": {"test": [list(row) for row in matrix]}}


def write_manifest(out: Path, names: Sequence[str], rows: int = 60, **more: Any) -> None:
    classes = {name: rows // len(names) for name in names}
    split = {"rows": rows + 2, "labelled": rows, "classes": classes, "files": {}}
    write_json(
        out / "pack" / "manifest.json",
        {
            "source": {"name": "photos", "kind": "a folder", "content": "f" * 64},
            "transform": {"height": 28, "width": 30, "channels": 3},
            "split_rule": {"rule": "the source's splits"},
            "splits": {"train": split, "test": split},
            "skipped": [{"split": "train", "name": HOSTILE, "reason": "it is cut"}],
            "duplicates": {"policy": "drop", "dropped_from_train": [{"name": "a"}], "shared": {"train, test": 3}},
            "conversions": {"rotation": 4},
            "warnings": [f"odd: {HOSTILE}"],
            **more,
        },
    )


def write_run(
    out: Path, names: Sequence[str] = ("cat", "dog", HOSTILE), matrix: Sequence[Sequence[int]] | None = None
) -> Path:
    """A whole run of one class a row."""
    count = len(names)
    matrix = matrix or [[16 if row == column else 2 for column in range(count)] for row in range(count)]
    write_config(out, model=f"models/{HOSTILE}")
    tested = {"test images": "t" * 64, "test labels": "l" * 64}
    given, teacher, student = WEIGHTS["a given"], WEIGHTS["b pretrain"], WEIGHTS["c distill"]
    for folder in ("pretrain", "distill", "finetune"):
        write_records(out / folder)
    write_result(out, "pretrain", "pretrain", {"start": given, "precision": "fp32"}, teacher)
    write_result(out, "distill", "distill", {"start": given, "teacher": teacher}, student)
    metrics, tables = class_result(matrix, names)
    inputs = {"start": student, "classes": list(names), **tested}
    write_result(out, "finetune", "finetune", inputs, WEIGHTS["d finetune"], metrics, tables)
    write_manifest(out, names)
    (out / "log.txt").write_text("said\n")
    return out
