"""A linear classifier, solved exactly: on frozen features, or on the raw input."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, ProblemType

_ITERATIONS = 500


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, problem: ProblemType, classes: int) -> Tensor:
    """What a linear classifier on frozen features, standardised by the train rows, says of test rows.

    It is logistic regression as scikit-learn does it with C=1; see `linear_classifier`.

    Args:
        train: [n, D].
        labels: of them, as `sdfast.data.problem` says.
        test: [m, D].
        problem: what labels are.
        classes: or numbers.

    Returns:
        [m, classes] float32 on the CPU.
    """
    return linear_classifier(train, labels, problem, classes)(test)


def linear_classifier(
    train: Tensor,
    labels: Tensor,
    problem: ProblemType,
    classes: int,
    strength: float = 1.0,
    standardised: bool = True,
) -> Callable[[Tensor], Tensor]:
    """A linear classifier of some rows.

    Weights W and bias minimise the mean loss of the rows (cross-entropy, of several classes the binary one summed over
    them, of standardised numbers half the squared error) plus ||W||^2 / (2 n C). It is solved by L-BFGS, in float64.
    Of more features than rows it is solved in the span of the rows, in which W lies.

    Args:
        train: [n, D].
        labels: of them, as `sdfast.data.problem` says.
        problem: what labels are.
        classes: or numbers.
        strength: C of scikit-learn's LogisticRegression: the larger, the less W is held back.
        standardised: whether features are, by their mean and deviation over the rows.

    Returns:
        features [m, D] -> [m, classes] float32 on the CPU.
    """
    seen = _prepared(train, standardised)
    rows = seen(train)
    wanted = labels.to(rows.device) if problem == SINGLE else labels.to(rows)
    centre, spread = torch.zeros(()).to(rows), torch.ones(()).to(rows)
    if problem == REGRESSION:
        centre, spread = wanted.mean(dim=0), wanted.std(dim=0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        wanted = (wanted - centre) / spread
    weight = torch.zeros(rows.shape[1], classes, dtype=torch.float64, device=rows.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=rows.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, tolerance_grad=1e-6, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        outputs = rows @ weight + bias
        if problem == SINGLE:
            each = F.cross_entropy(outputs, wanted)
        elif problem == SEVERAL:
            each = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="sum") / len(wanted)
        else:
            each = (outputs - wanted).square().sum() / (2 * len(wanted))
        whole = each + weight.square().sum() / (2 * len(wanted) * strength)
        whole.backward()
        return whole

    with torch.enable_grad():
        solver.step(loss)
    solution = weight.detach(), bias.detach()
    return lambda features: ((seen(features) @ solution[0] + solution[1]) * spread + centre).float().cpu()


def _prepared(train: Tensor, standardised: bool) -> Callable[[Tensor], Tensor]:
    """Features [m, D] -> [m, min(n, D)] float64, in which the rows of train differ as they did."""
    rows = train.double()
    mean, std = torch.zeros(rows.shape[1]).to(rows), torch.ones(rows.shape[1]).to(rows)
    if standardised:
        mean, std = rows.mean(dim=0), rows.std(dim=0, correction=0)
        std = torch.where(std > 0, std, 1.0)
    basis = torch.linalg.qr(((rows - mean) / std).T).Q if rows.shape[1] > len(rows) else None  # [D, n]

    def seen(features: Tensor) -> Tensor:
        scaled = (features.double() - mean) / std
        return scaled if basis is None else scaled @ basis

    return seen
