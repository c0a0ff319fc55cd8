"""The paper's bound on ||w_{t,T}||, and the one that holds.

With a_i = q_i (1 - e_i), b_i = c_i(t) e_i and e_i = exp(-s_i^2 T), equation 5 gives ||w_{t,T}||^2 = sum (a_i + b_i)^2
+ 1{t=0} B. Inequality (6) of the paper bounds it by zeta(t)^2 = sum (a_i^2 + b_i^2) + 1{t=0} B, which drops 2 a_i b_i
and is therefore wrong where their sum is positive. (|a_i| + |b_i|)^2 in its place always bounds, and is attained where
all q_i and y~_i agree in sign. psi(t) = zeta(t) + ||w_init|| is to bound the distance to the start, in both versions.

The singular values of I_p (x) Phi repeat, so that its basis can be chosen. zeta does not depend on the choice; zeta~
does, and bounds for every one. Here it is I_p (x) U.
"""

from __future__ import annotations

import numpy as np

from sdfast.theory.linear import Array, LinearModel


def paper_bound(model: LinearModel, t: int, time: float) -> float:
    """The paper's zeta(t) of this instance: the root of the right side of inequality (6). No bound on ||w_{t,T}||."""
    pulled, kept = _parts(model, t, time)
    return float(np.sqrt((pulled**2).sum() + (kept**2).sum() + _null(model, t)))


def repaired_bound(model: LinearModel, t: int, time: float) -> float:
    """zeta~(t): the same with the cross term at its largest; an upper bound on ||w_{t,T}|| for every instance."""
    pulled, kept = _parts(model, t, time)
    return float(np.sqrt(((pulled + kept) ** 2).sum() + _null(model, t)))


def paper_drops(model: LinearModel, rounds: int, time: float) -> list[float]:
    """zeta(t)^2 - zeta(t+1)^2 for t = 0 .. rounds - 1, summed from its parts so that a small one is not lost."""
    return _drops(model, rounds, time, cross=False)


def repaired_drops(model: LinearModel, rounds: int, time: float) -> list[float]:
    """zeta~(t)^2 - zeta~(t+1)^2 for t = 0 .. rounds - 1."""
    return _drops(model, rounds, time, cross=True)


def _drops(model: LinearModel, rounds: int, time: float, cross: bool) -> list[float]:
    # b_t^2 - b_{t+1}^2 = b_t^2 (1 - r)(1 + r), and with the cross term 2 |a| (b_t - b_{t+1}) = 2 |a| b_t (1 - r)
    ratio = len(model.scales) * model.ridge / model.scales**2
    lost = ratio / (1 + ratio)  # 1 - r
    drops = []
    for t in range(rounds):
        pulled, kept = _parts(model, t, time)
        each = kept**2 * lost * (1 + model.shrink)
        if cross:
            each = each + 2 * pulled * kept * lost
        drops.append(float(each.sum()) + _null(model, t))
    return drops


def _parts(model: LinearModel, t: int, time: float) -> tuple[Array, Array]:
    """|a| and |b|, [p, n] each."""
    exponent = -(model.scales**2) * time
    return np.abs(model.solution) * -np.expm1(exponent), np.abs(model.distilled_range(t)) * np.exp(exponent)


def _null(model: LinearModel, t: int) -> float:
    """1{t=0} B."""
    return float((model.distilled_null(t) ** 2).sum())
