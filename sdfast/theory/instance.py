"""Random instances of the linear model, and how often the paper's statements fail on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from sdfast.errors import UserError
from sdfast.theory.linear import Array, LinearModel
from sdfast.theory.verify import ROUNDING, curves

Targets = Literal["near", "independent"]

_NOISE = 0.3  # of "near" targets, in root mean squares of the teacher's outputs


@dataclass(frozen=True)
class Draw:
    """What an instance is drawn with: all entries are independent standard normal numbers.

    Args:
        samples: n.
        features: d, above n.
        outputs: p.
        ridge: lambda.
        targets: "near" the teacher's outputs (they plus 0.3 of their root mean square in noise), or "independent".
    """

    samples: int = 6
    features: int = 9
    outputs: int = 3
    ridge: float = 0.05
    targets: Targets = "near"

    def __post_init__(self) -> None:
        for name in ("samples", "features", "outputs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        if self.targets not in get_args(Targets):
            raise UserError(f"targets must be {' or '.join(get_args(Targets))}, not {self.targets}.")


def draw(settings: Draw, seed: int | tuple[int, ...]) -> tuple[LinearModel, Array]:
    """An instance and the weights before further pre-training, W_init, [p, d]; the same for the same seed.

    Raises:
        UserError: d <= n, a negative ridge or seed.
    """
    if min(seed if isinstance(seed, tuple) else (seed,)) < 0:
        raise UserError(f"the seed {seed} must be 0 or above.")
    random = np.random.default_rng(seed)
    n, d, p = settings.samples, settings.features, settings.outputs
    features = random.standard_normal((d, n))
    teacher = random.standard_normal((p, d))
    targets = random.standard_normal((p, n))
    start = random.standard_normal((p, d))
    if settings.targets == "near":
        outputs = teacher @ features
        targets = outputs + _NOISE * np.sqrt((outputs**2).mean()) * targets
    return LinearModel(features, teacher, targets, settings.ridge), start


@dataclass(frozen=True)
class Survey:
    """How many of `instances` random instances break a statement for some t.

    `norm_rises` counts those where ||w_{t,T}|| grows in some round.
    """

    targets: Targets
    instances: int
    paper_fails: int
    norm_rises: int
    repaired_fails: int


def survey(
    settings: Draw,
    targets: Targets,
    seed: int,
    rounds: int,
    time: float,
    instances: int,
    say: Callable[[int], None] = lambda done: None,
) -> Survey:
    """Count over instances 0, 1, ... of a seed, t from 0 to `rounds`; `say` is told how many are done."""
    paper = rises = repaired = 0
    for number in range(instances):
        found = curves(*draw(replace(settings, targets=targets), (seed, number)), rounds, time)
        allowed = found.norm * (1 - ROUNDING)
        paper += bool((allowed > found.paper).any())
        repaired += bool((allowed > found.repaired).any())
        rises += bool((allowed[1:] > found.norm[:-1]).any())
        say(number + 1)
    return Survey(targets, instances, paper, rises, repaired)
