"""What each process does in the tests with several: run by torchrun as `zero_worker.py FOLDER`.

FOLDER/cases.json holds a list of cases; what each ended with goes to FOLDER/<name>.json and .safetensors (process 0).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_stage import IMAGES, objective_of
from small_text_stage import LENGTHS, text_objective_of, texts
from torch import Tensor

from sdfast import launch
from sdfast.config import EngineConfig, FinetuneConfig, PretrainConfig, ZeroConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.engine.prepare import prepare
from sdfast.engine.selection import Selection
from sdfast.engine.zero import Sharing
from sdfast.errors import SdfastError
from sdfast.modalities.texts.order import TextBatchOrder
from sdfast.models.low_rank import TARGETS, add_low_rank, freeze_encoder
from sdfast.models.standardised import Standard
from sdfast.objectives.cross_entropy import CrossEntropy
from sdfast.objectives.several import BinaryCrossEntropy, SquaredError
from sdfast.ranks import Ranks
from sdfast.regularizers.choose import on_optimizer
from sdfast.regularizers.r3f import R3F

STEPS = 12
LABELS = {  # of the 50 rows, and their loss
    "several": (torch.arange(200).view(50, 4) % 3 == 0, BinaryCrossEntropy(torch.tensor([1, 0.5, 2, 4]), 0.1)),
    "numbers": (torch.arange(200.0).view(50, 4).sin(), SquaredError()),
}


def train(case: dict[str, Any], folder: Path, ranks: Ranks, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Train a small stage as a case says; its weights.

    Args:
        case: `stage`, and what differs from a plain one: `zero`, `offload`, `mask`, `batch`, `engine`, `deepspeed`,
            `dropout`, `method`, `regularizer`, `weights` (of classes), `labels`, `balanced`, `objective`, of texts
            `r3f`; `stop` is a step at which the last process gets a signal, `kill` one at which it dies, `poison` one
            at which its images stop being numbers; with `text` it is a stage of texts, cut by `budget` if there is one.
        folder: for its checkpoints.
        ranks: the processes.
        dtype: of the weights.
    """
    stage, mask = case["stage"], PretrainConfig(mask=case.get("mask", "fixed"))
    if case.get("text"):
        more = {"dropout": case.get("dropout", 0.0), **case.get("objective", {})}
        if "r3f" in case:
            more["r3f"] = R3F(**case["r3f"])
        objective: Any = text_objective_of(stage, dtype, **more)
    else:
        changes = {"dropout": case.get("dropout", 0.0)} if stage == "finetune" else {"masking": mask}
        objective = objective_of(stage, dtype, **changes, **case.get("objective", {}))
    if case.get("method") == "lora":
        add_low_rank(objective.module, TARGETS, rank=4, alpha=8.0, seed=1)
    elif case.get("method") == "linear_probe":
        freeze_encoder(objective.module)
        width, generator = objective.module.classifier.in_features, torch.Generator().manual_seed(3)
        mean, deviation = torch.randn(2, width, generator=generator).to(dtype)
        objective.module.standard = Standard(mean, deviation.abs() + 0.1)
    kept = FinetuneConfig(regularizer=case.get("regularizer", "none"), recadam={"t0": 6}, mars={"head_radius": 0.1})
    if stage == "finetune":
        objective.regularizer = on_optimizer(kept, objective.module)
    if "weights" in case:
        objective.cross_entropy = CrossEntropy(torch.tensor(case["weights"]), smoothing=0.1)
    if "labels" in case:
        objective.labels, objective.cross_entropy = LABELS[case["labels"]]
    zero = ZeroConfig(stage=case.get("zero", 0), offload=case.get("offload", "none"))
    kind = FinetuneConfig if stage == "finetune" else PretrainConfig
    batch = case.get("batch", 16)
    scores = iter(case.get("select", []))

    def score(state: dict[str, Tensor]) -> dict[str, float]:
        return {"dev": next(scores) + ranks.rank}  # what process 0 says counts

    def images(rows: Tensor) -> Any:
        last = ranks.rank == ranks.world - 1
        if last and trainer.steps_done == case.get("stop"):
            os.kill(os.getpid(), signal.SIGTERM)
        if last and trainer.steps_done == case.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if last and trainer.steps_done == case.get("poison"):
            return torch.full_like(IMAGES[rows], 255).float() * float("nan")
        return texts(rows) if case.get("text") else IMAGES[rows]

    engine = EngineConfig(log_every=4, **case.get("engine", {}))
    prepare(objective.module, engine, torch.device("cpu"), STEPS, zero)
    rows = torch.arange(50)
    classes = rows // 42 if case.get("balanced") else None  # of 42 rows and of 8
    text_order = TextBatchOrder(rows, LENGTHS, batch, seed=9, token_budget=case.get("budget"), classes=classes)
    trainer = Trainer(
        stage,
        objective,
        kind(steps=STEPS, batch_size=batch, lr=1e-3),
        engine,
        TrainingData(text_order if case.get("text") else BatchOrder(rows, batch, 9, classes), images),
        StageFolder(folder, {"case": "one"}),
        Sharing(ranks, zero, case.get("deepspeed", {})),
        Selection(score, "dev", len(case["select"])) if "select" in case else None,
    )
    trainer.run()
    return {name: value.clone() for name, value in objective.module.state_dict().items()}


def main(folder: Path) -> None:
    """Every case in turn."""
    torch.set_num_threads(1)
    ranks = launch.join(torch.device("cpu"), alone=True)
    for case in json.loads((folder / "cases.json").read_text()):
        ended: dict[str, Any] = {}
        try:
            weights = train(case, folder / case.get("run", case["name"]), ranks)
            if ranks.is_first:
                save_file(weights, folder / f"{case['name']}.safetensors")
        except SdfastError as error:
            ended = {"error": type(error).__name__, "text": str(error), "code": error.exit_code}
        everyones = ranks.exchange(ended)
        if ranks.is_first:
            (folder / f"{case['name']}.json").write_text(json.dumps(everyones))
    launch.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    launch.end(0)
