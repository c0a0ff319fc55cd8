"""Results of a study, made up: cells and their nodes as if trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sdfast.config import Config
from sdfast.data.paper_sets import PaperSet
from sdfast.rundir import Result
from sdfast.studies.declared import Arm, Study, expand
from sdfast.studies.plan import Cell, Node, Target, Task
from sdfast.studies.results import Found, gather

Metrics = dict[str, float]


def noisy(arm: Arm, seed: int) -> Metrics:
    """Accuracies that rise in the order of the methods and with n, losses that fall."""
    random = np.random.default_rng([sum(arm.title.encode()), seed])
    better = {"init": 0.0, "pretrain": 0.01, "distill": 0.025}[arm.start] + 0.03 * np.log10(1 + (arm.x or 0))
    accuracy = 0.62 + better + 0.01 * random.normal()
    test, train = 1.4 - 2 * better + 0.03 * random.normal(), 0.2 + 0.01 * random.random()
    distance = 9 - 80 * better + 0.1 * random.normal()
    scores = {"accuracy": accuracy, "macro_f1": accuracy - 0.01, "micro_f1": accuracy}
    return scores | {
        "test_loss": test,
        "train_loss": train,
        "generalisation_gap": test - train,
        "distance": distance,
    }


def made_up(
    study: Study,
    seeds: Sequence[int] = (0, 1, 2),
    metrics: Callable[[Arm, int], Metrics] = noisy,
    title: str = "photos",
    paper: PaperSet | None = None,
    points: Sequence[int] = (),
) -> Found:
    """A study on images as if all of it were trained."""
    config, cells = Config(), []
    arms, notes = expand(study, config, 50_000, points)
    for arm in arms:
        for seed in seeds:
            key = f"{arm.title}, {seed}"
            result = Result("finetune", Path("model"), 10, 2.0, key, key, metrics(arm, seed), img_per_s=3.0)
            node = Node(key, Task(config, Path(), "finetune", arm.start, seed), [], [arm.title], result)
            cells.append(Cell(arm, seed, config, (node,)))
    target = Target(title, Path(), title, "images", "accuracy", paper, arms, 50_000, cells=cells, notes=notes)
    return gather(study, target)
