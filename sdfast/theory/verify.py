"""The statements of section 4, each compared on one instance with a computation that does not use the closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sdfast.errors import UserError
from sdfast.theory.bounds import paper_bound, paper_drops, repaired_bound, repaired_drops
from sdfast.theory.linear import Array, LinearModel

_DESCENT_STEPS = 200
ROUNDING = 1e-12  # relative; a norm that differs by less counts as equal


@dataclass(frozen=True)
class Curves:
    """One value per round, t = 0, 1, ...

    `norm` is ||w_{t,T}||, `paper` and `repaired` are zeta and zeta~; `distance` is ||w_init - w_{t,T}||, and adding
    `start`, ||w_init||, to the first three gives the largest distance of any start of that length, psi and psi~.
    """

    norm: Array
    paper: Array
    repaired: Array
    distance: Array
    start: float


def curves(model: LinearModel, start: Array, rounds: int, time: float) -> Curves:
    """The curves for t = 0 .. rounds, after fine-tuning for `time` from W_{t,0}; `start` is W_init, [p, d]."""
    each = range(rounds + 1)
    final = [model.finetuned(t, time) for t in each]
    return Curves(
        norm=np.array([np.linalg.norm(weights) for weights in final]),
        paper=np.array([paper_bound(model, t, time) for t in each]),
        repaired=np.array([repaired_bound(model, t, time) for t in each]),
        distance=np.array([np.linalg.norm(start - weights) for weights in final]),
        start=float(np.linalg.norm(start)),
    )


@dataclass(frozen=True)
class Claim:
    """A statement, what was measured for it, and whether it holds on the instance.

    `measure` says what `value` is: "error" (largest, relative), "ratio" (largest, of the left side to the right) or
    "drop" (smallest, from one round to the next, of the square). `must` tells a theorem from a statement that is known
    to fail in general.
    """

    statement: str
    measure: str
    value: float
    holds: bool
    must: bool


def verify(model: LinearModel, start: Array, rounds: int, time: float) -> list[Claim]:
    """Check every statement for t = 0 .. `rounds` and fine-tuning time `time`.

    With ridge 0 a round shrinks nothing after the first, and what says "strictly" need not hold.

    Raises:
        UserError: no rounds, a negative time, or rounds and time after which the teacher has vanished in float64.
    """
    if rounds < 1:
        raise UserError(f"rounds must be 1 or more, not {rounds}.")
    if not (math.isfinite(time) and time >= 0):
        raise UserError(f"the fine-tuning time {time} must be a finite number, 0 or above.")
    found = curves(model, start, rounds, time)
    paper, repaired = paper_drops(model, rounds, time), repaired_drops(model, rounds, time)
    shrinks = model.ridge > 0 and bool(np.any(model.teacher_outputs))
    if shrinks and min(paper) == 0:
        raise UserError(
            f"nothing that float64 can tell is left of the teacher after {rounds} rounds of ridge {model.ridge:g} and"
            f" fine-tuning for {time:g}; lower one of them."
        )
    tolerance = 1e4 * np.finfo(np.float64).eps * (model.scales[0] / model.scales[-1]) ** 2
    stiffness = model.scales[0] ** 2 * time
    return [
        _equal("Lemma 1: w_{t,0} in closed form", _lemma(model, rounds), tolerance),
        _equal("null-space part of w_{t,0} is 0 for t >= 1", _null_space(model, rounds), tolerance),
        _equal("eq. 5: w_{t,T} of gradient flow", _flow(model, rounds, time), tolerance * (1 + stiffness)),
        _equal("eq. 5 for gradient descent, (1 - eta s^2)^k", _descent(model, rounds, time), tolerance),
        _ordered("(6): ||w_{t,T}|| <= paper's zeta(t)", found.norm, found.paper, must=False),
        _ordered("||w_{t,T}|| decreases in t", found.norm[1:], found.norm[:-1], must=False),
        _drop("paper's zeta(t), psi(t) strictly decrease", paper, found.paper, shrinks),
        _largest_first("zeta(t)^2: largest drop in round 1", paper),
        _ordered("repaired: ||w_{t,T}|| <= zeta~(t)", found.norm, found.repaired, must=True),
        _ordered("||w_init - w_{t,T}|| <= psi~(t)", found.distance, found.repaired + found.start, must=True),
        _equal("zeta~(t), psi~(t) attained if signs agree", _tightness(model, rounds, time), tolerance),
        _drop("zeta~(t), psi~(t) strictly decrease", repaired, found.repaired, shrinks),
        _largest_first("zeta~(t)^2: largest drop in round 1", repaired),
    ]


def _equal(statement: str, error: float, tolerance: float) -> Claim:
    return Claim(statement, "error", float(error), bool(error <= tolerance), must=True)


def _ordered(statement: str, left: Array, right: Array, must: bool) -> Claim:
    ratio = max((x / y if y else float(x > 0) for x, y in zip(left, right, strict=True)), default=0.0)
    return Claim(statement, "ratio", float(ratio), bool(ratio <= 1 + ROUNDING), must)


def _drop(statement: str, drops: Sequence[float], bound: Array, must: bool) -> Claim:
    """The drops are sums of their own; that they lead from the first value to the last is checked as well."""
    adds_up = abs(bound[0] ** 2 - bound[-1] ** 2 - sum(drops)) <= ROUNDING * bound[0] ** 2
    return Claim(statement, "drop", min(drops), bool(min(drops) > 0 and adds_up), must)


def _largest_first(statement: str, drops: Sequence[float]) -> Claim:
    ratio = max(drops[1:], default=0.0) / drops[0] if drops[0] else 1.0
    return Claim(statement, "ratio", ratio, ratio <= 1 + ROUNDING, must=True)


def _relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), np.finfo(np.float64).tiny))


def _lemma(model: LinearModel, rounds: int) -> float:
    """Against round after round of kernel ridge regression on the outputs of the round before."""
    gram = model.features.T @ model.features
    penalty = gram.shape[0] * model.ridge * np.eye(gram.shape[0])
    weights, worst = model.teacher, _relative(model.distilled(0), model.teacher)
    for t in range(1, rounds + 1):
        weights = np.linalg.solve(gram + penalty, (weights @ model.features).T).T @ model.features.T
        worst = max(worst, _relative(model.distilled(t), weights))
    return worst


def _null_space(model: LinearModel, rounds: int) -> float:
    """The size of W - W P, P the projection on the columns of Phi, beside that of the teacher."""
    size = max(float(np.linalg.norm(model.teacher)), np.finfo(np.float64).tiny)
    worst = 0.0
    for t in range(1, rounds + 1):
        weights = model.distilled(t)
        inside = np.linalg.lstsq(model.features, weights.T, rcond=None)[0]
        worst = max(worst, float(np.linalg.norm(weights - (model.features @ inside).T)) / size)
    return worst


def _flow(model: LinearModel, rounds: int, time: float) -> float:
    """Against the matrix exponential of X' = -Phi Phi^T X + Phi Y, X = W^T, with the constant as extra rows."""
    d, p = model.features.shape[0], model.targets.shape[0]
    generator = np.zeros((d + p, d + p))
    generator[:d, :d] = -model.features @ model.features.T
    generator[:d, d:] = model.features @ model.targets.T
    propagator = torch.linalg.matrix_exp(torch.from_numpy(generator * time)).numpy()
    return max(
        _relative(model.finetuned(t, time), (propagator[:d, :d] @ model.distilled(t).T + propagator[:d, d:]).T)
        for t in range(rounds + 1)
    )


def _descent(model: LinearModel, rounds: int, time: float) -> float:
    """Against the loop, at the rate that reaches `time` in 200 steps where that is stable."""
    rate = min(time / _DESCENT_STEPS, 1 / float(model.scales[0]) ** 2)
    worst = 0.0
    for t in range(rounds + 1):
        weights = model.distilled(t)
        for _ in range(_DESCENT_STEPS):
            weights = weights - rate * (weights @ model.features - model.targets) @ model.features.T
        worst = max(worst, _relative(model.finetuned_by_steps(t, rate, _DESCENT_STEPS), weights))
    return worst


def _tightness(model: LinearModel, rounds: int, time: float) -> float:
    """The largest relative gap, with targets reflected so that q_i and y~_i agree in sign: between ||w_{t,T}|| and
    zeta~(t), and between the distance from w_init = -w_{t,T} and psi~(t)."""
    signs = np.where(model.teacher_outputs < 0, -1.0, 1.0)
    outputs = signs * np.abs(model.solution) * model.scales  # in the basis V
    aligned = replace(model, targets=outputs @ model.outputs_basis.T)
    worst = 0.0
    for t in range(rounds + 1):
        final = aligned.finetuned(t, time)
        bound, length = repaired_bound(aligned, t, time), float(np.linalg.norm(final))
        if bound:
            worst = max(worst, abs(length / bound - 1), abs(np.linalg.norm(-final - final) / (bound + length) - 1))
    return worst
