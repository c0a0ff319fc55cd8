"""AdamW parameter groups by the two weight-decay rules of the released code, and its linear schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sdfast.config import OptimisationConfig
from sdfast.objectives.base import DecayRule
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull, RecAdam

_FINETUNE_NO_DECAY = ("bias", "position_embeddings", "cls_token")


def is_decayed(name: str, parameter: nn.Parameter, rule: DecayRule) -> bool:
    """Whether weight decay acts on a parameter.

    `pretrain` (timm 0.5.4's rule, fidelity 1.1): not on 1-D tensors and biases, so LayerNorms are spared and the CLS
    and mask tokens are decayed. `finetune` (fidelity 1.3): not where the name contains "bias", "position_embeddings"
    or "cls_token", so LayerNorm weights are decayed.
    """
    if rule == "pretrain":
        return parameter.ndim > 1 and not name.endswith(".bias")
    return not any(part in name for part in _FINETUNE_NO_DECAY)


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimisationConfig,
    rule: DecayRule,
    rate_on: torch.device | None = None,
    regularizer: Pull | Mars | None = None,
) -> torch.optim.Optimizer:
    """AdamW (fused) over the parameters that require gradients, in two groups; or RecAdam, in four.

    Args:
        named_parameters: what is trained.
        config: rates and the like.
        rule: which of the parameters weight decay acts on.
        rate_on: keep the learning rate in a tensor on this device, from where a captured step reads it.
        regularizer: RecAdam's pull takes AdamW's place; MARS projects after every step.
    """
    pull = regularizer if isinstance(regularizer, Pull) else None
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}

    def group(pulled: bool, decayed: bool) -> dict[str, Any]:
        new: dict[str, Any] = {"params": [], "weight_decay": config.weight_decay if decayed else 0.0}
        if pull is not None:
            new["anchors"] = [] if pulled else None
        return groups.setdefault((pulled, decayed), new)

    for decayed in (True, False) if pull is None else ():
        group(False, decayed)
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        anchor = None if pull is None else pull.anchors.get(name)
        held = group(anchor is not None, is_decayed(name, parameter, rule))
        held["params"].append(parameter)
        if anchor is not None:
            held["anchors"].append(anchor)
    lr = config.lr if rate_on is None else torch.tensor(config.lr, device=rate_on)
    if pull is not None:
        return RecAdam(list(groups.values()), lr, config.betas, config.eps, pull.gamma, pull.annealing)
    given: dict[str, Any] = {"lr": lr, "betas": config.betas, "eps": config.eps, "fused": True}
    # torch refuses to capture an optimiser that does not say `capturable`, and warns of one that warms up.
    optimizer = torch.optim.AdamW(list(groups.values()), capturable=rate_on is not None, **given)
    if rate_on is not None:
        optimizer._warned_capturable_if_run_uncaptured = True
    if isinstance(regularizer, Mars):
        optimizer.register_step_post_hook(lambda *_: regularizer.project())
    return optimizer


def learning_rate(config: OptimisationConfig, step: int) -> float:
    """The rate of a step (from 0): linear from 0 to `lr` over the warm-up, then linear to 0 after the last step."""
    warmup_steps = round(config.warmup * config.steps)
    if step < warmup_steps:
        return config.lr * step / warmup_steps
    return config.lr * (config.steps - step) / (config.steps - warmup_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all groups, where it is kept."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
