"""f(x, W) = W phi(x): rounds of self-distillation and then fine-tuning, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sdfast.errors import UserError

Array = NDArray[np.float64]

_SMALLEST_RATIO = 1e-6  # of the singular values: below, float64 cannot tell Phi from one of lower rank


@dataclass(frozen=True, eq=False)
class LinearModel:
    """n samples with d features, p outputs, and an over-parameterized linear model that starts at a teacher.

    The paper's w is vec(W^T) and its M is I_p (x) Phi; both are block diagonal in the rows of W, so that matrices of
    size d and n are enough. With Phi = U diag(s) V^T, component i of row k of a weight matrix W is (W U)_ki; the first
    n components reach the outputs, the other d - n (the null space) do not.

    Args:
        features: Phi, [d, n], d > n, of full rank.
        teacher: W_{0,0}, the further pre-trained weights, [p, d].
        targets: Y^T, the labels of fine-tuning, [p, n].
        ridge: lambda of L_t(W) = (1/n) ||W Phi - W_{t-1} Phi||^2 + lambda ||W||^2, at least 0. At 0 the minimum is not
            unique; the one of smallest norm is meant, which is the limit for lambda -> 0.

    Raises:
        UserError: shapes that do not fit, d <= n, a feature matrix without full rank, a number that is not finite, or a
            negative ridge.
    """

    features: Array
    teacher: Array
    targets: Array
    ridge: float

    def __post_init__(self) -> None:
        for name in ("features", "teacher", "targets"):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, value)
            if value.ndim != 2 or value.size == 0:
                raise UserError(f"{name} must be a matrix that is not empty (its shape is {value.shape}).")
            if not np.isfinite(value).all():
                raise UserError(f"{name} holds a number that is not finite.")
        d, n = self.features.shape
        p = self.teacher.shape[0]
        if d <= n:
            raise UserError(
                f"{d} features do not outnumber {n} samples; the model of section 4 needs more features than samples."
            )
        if self.teacher.shape != (p, d) or self.targets.shape != (p, n):
            raise UserError(
                f"the shapes do not fit: features {self.features.shape} ask for a teacher of ({p}, {d}) and targets of"
                f" ({p}, {n}), not {self.teacher.shape} and {self.targets.shape}."
            )
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise UserError(f"the ridge {self.ridge} must be a finite number, 0 or above.")
        if self.scales[-1] < _SMALLEST_RATIO * self.scales[0] or self.scales[0] == 0:
            raise UserError("the features are not of full rank; leave out samples that depend on others.")

    @cached_property
    def _svd(self) -> tuple[Array, Array, Array]:
        left, scales, right_t = np.linalg.svd(self.features, full_matrices=True)
        return left, scales, right_t.T

    @property
    def basis(self) -> Array:
        """U, [d, d]: the first n columns span the range of Phi, the others the null space of its transpose."""
        return self._svd[0]

    @property
    def scales(self) -> Array:
        """s, the n singular values, largest first."""
        return self._svd[1]

    @property
    def outputs_basis(self) -> Array:
        """V, [n, n]: the basis of the outputs."""
        return self._svd[2]

    @cached_property
    def shrink(self) -> Array:
        """1 / (1 + n lambda / s^2), [n]: what one round leaves of each component; in (0, 1]."""
        return 1 / (1 + len(self.scales) * self.ridge / self.scales**2)

    @cached_property
    def solution(self) -> Array:
        """q, [p, n]: the components of the smallest W that interpolates the targets."""
        return self.targets @ self.outputs_basis / self.scales

    @cached_property
    def teacher_outputs(self) -> Array:
        """y~, [p, n]: the teacher's outputs in the basis V."""
        return self.teacher @ self.features @ self.outputs_basis

    def distilled_range(self, t: int) -> Array:
        """c(t, 0), [p, n]: the components of the weights after t rounds that reach the outputs (Lemma 1)."""
        return self.teacher_outputs / self.scales * self.shrink**t

    def distilled_null(self, t: int) -> Array:
        """The other components, [p, d - n]: the teacher's own for t = 0, zero after the first round."""
        kept = self.teacher @ self.basis[:, len(self.scales) :]
        return kept if t == 0 else np.zeros_like(kept)

    def distilled(self, t: int) -> Array:
        """W_{t,0}, [p, d]: the weights after t rounds of self-distillation (Lemma 1)."""
        return self._weights(self.distilled_range(t), t)

    def finetuned(self, t: int, time: float) -> Array:
        """W_{t,T}, [p, d]: t rounds, then gradient flow on (1/2) ||W Phi - Y^T||^2 for `time` (equation 5)."""
        exponent = -(self.scales**2) * time
        return self._weights(self._toward_solution(t, np.exp(exponent), -np.expm1(exponent)), t)

    def finetuned_by_steps(self, t: int, rate: float, steps: int) -> Array:
        """W after t rounds and `steps` steps of gradient descent: (1 - rate s^2)^steps replaces exp(-s^2 T)."""
        left = (1 - rate * self.scales**2) ** steps
        return self._weights(self._toward_solution(t, left, 1 - left), t)

    def _toward_solution(self, t: int, left: Array, gone: Array) -> Array:
        return self.solution * gone + self.distilled_range(t) * left

    def _weights(self, in_range: Array, t: int) -> Array:
        return np.concatenate([in_range, self.distilled_null(t)], axis=1) @ self.basis.T
