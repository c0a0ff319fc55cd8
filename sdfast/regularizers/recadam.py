"""RecAdam (Chen et al., EMNLP 2020): Adam whose loss grows in while a pull to the pre-trained weights fades out.

The objective is lambda(t) L_task + (w - lambda(t)) (gamma / 2) ||theta - theta*||^2, with the quadratic term outside
Adam's moments. One step of a pulled parameter, t counted from 1 and eta the learning rate of the step:

    m, v as in Adam, of the gradient of L_task
    theta -= lambda(t) eta sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
    theta -= eta (w - lambda(t)) gamma (theta - theta*)
    theta -= eta weight_decay theta

Parameters without an anchor (a new head) take the step with lambda = 1 and no pull. Unlike AdamW's, epsilon is not
divided by the root of the bias correction, and the decay comes last. With constant annealing the pull vanishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_SETTLED = 1e9  # steps after which Adam's bias corrections are 1; one more is the same float32


@dataclass(frozen=True)
class Annealing:
    """lambda(t), from 0 to w: `sigmoid` w / (1 + exp(-k (t - t0))), `linear` w min(1, t / t0), or `constant` w."""

    kind: Literal["sigmoid", "linear", "constant"] = "sigmoid"
    k: float = 0.1
    t0: int = 1000
    w: float = 1.0

    def at(self, step: Tensor) -> Tensor:
        """lambda of a step, both 0-D float64."""
        if self.kind == "constant":
            return torch.full_like(step, self.w)
        if self.kind == "linear":
            return self.w * torch.clamp(step / self.t0, max=1.0) if self.t0 else torch.full_like(step, self.w)
        return self.w * torch.sigmoid(self.k * (step - self.t0))


@dataclass(frozen=True)
class Pull:
    """What RecAdam is built with.

    Attributes:
        anchors: theta* by the name of the parameter; those without one are not pulled.
        annealing: lambda(t).
        gamma: strength of the pull.
    """

    anchors: Mapping[str, Tensor]
    annealing: Annealing
    gamma: float


class RecAdam(torch.optim.Optimizer):
    """The optimiser; its parameters are stepped together, and each must have a gradient."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float | Tensor,
        betas: tuple[float, float],
        eps: float,
        gamma: float,
        annealing: Annealing,
    ) -> None:
        """Set up.

        Args:
            groups: of parameters, each with its `weight_decay`, and its `anchors` in the order of its `params` or None.
            lr: learning rate; a 0-D tensor on the parameters' device where a captured step shall read it.
            betas: of the moments.
            eps: added to sqrt(v).
            gamma: strength of the pull.
            annealing: lambda(t).
        """
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "anchors": None})
        self.gamma, self.annealing = gamma, annealing

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; without a host synchronisation where the parameters are on a GPU."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["params"]:
                self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params, anchors, decay = group["params"], group["anchors"], group["weight_decay"]
        grads = [parameter.grad for parameter in params]
        if any(grad is None for grad in grads):
            raise RuntimeError("RecAdam steps all its parameters together, and one of them has no gradient")
        states = [self._state_of(parameter) for parameter in params]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        adam, pull, kept = self._rates(group, steps[0])
        settled = list(torch.full((len(params),), _SETTLED, device=steps[0].device).unbind())
        adamw(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            settled,
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=adam,
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        if anchors is not None:  # theta + pull (theta* - theta); a tensor's value is taken for every parameter
            torch._foreach_lerp_(params, anchors, [pull] * len(params) if isinstance(pull, Tensor) else pull)
        if decay:
            torch._foreach_mul_(params, kept)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def _rates(self, group: dict[str, Any], step: Tensor) -> list[Any]:
        """What multiplies m / (sqrt(v) + eps), theta* - theta, and at last theta: numbers on a CPU, else tensors."""
        pulled = group["anchors"] is not None
        step, rate, (beta1, beta2) = step.double(), group["lr"], group["betas"]
        share = self.annealing.at(step) if pulled else torch.ones_like(step)
        adam = rate * share * (1 - beta2**step).sqrt() / (1 - beta1**step)
        pull = rate * (self.annealing.w - share) * self.gamma
        kept = 1 - rate * group["weight_decay"] * torch.ones_like(step)
        if step.device.type == "cpu":
            return [float(value) for value in (adam, pull, kept)]
        return [value.to(group["params"][0].dtype) for value in (adam, pull, kept)]
