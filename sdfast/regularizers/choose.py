"""The table of regularizers: from the configuration to what acts on the optimiser, on the loss and on the head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sdfast.config import FinetuneConfig
from sdfast.errors import UserError
from sdfast.models.base import Classifier
from sdfast.regularizers.mars import Constraint, Mars
from sdfast.regularizers.r3f import R3F
from sdfast.regularizers.recadam import Annealing, Pull


@dataclass(frozen=True)
class Regularizer:
    """One value of `finetune.regularizer`.

    Attributes:
        acts: what it makes of a classifier as it is now to act on the optimiser, if anything.
        noise: whether R3F's noise acts on the loss.
        spectral: whether the head's weight is divided by its largest singular value.
        whole_weights: whether it needs every weight whole in every process.
    """

    acts: Callable[[FinetuneConfig, Classifier], Pull | Mars | None] = lambda config, module: None
    noise: bool = False
    spectral: bool = False
    whole_weights: bool = False


def _recadam(config: FinetuneConfig, module: Classifier) -> Pull:
    """Pulls the whole encoder (biases, LayerNorms, CLS and all embeddings too) and leaves the new head alone."""
    given = config.recadam
    annealing = Annealing(given.anneal, given.k, given.t0, given.w)
    anchors = {f"encoder.{name}": value.detach().clone() for name, value in module.encoder.named_parameters()}
    return Pull(anchors, annealing, given.gamma)


def _mars(config: FinetuneConfig, module: Classifier) -> Mars:
    """Keeps the encoder's linear layers and its patch embedding near their start, and the head near 0.

    Of texts both layers of the head. Biases, LayerNorms, CLS, positions and the embeddings of words and types are free.
    """
    layers = [layer.weight for layer in module.encoder.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    heads = [layer.weight for layer in module.children() if isinstance(layer, nn.Linear)]
    near_start = [Constraint(each, each.detach().clone(), config.mars.radius) for each in layers]
    return Mars([*near_start, *(Constraint(each, torch.zeros_like(each), config.mars.head_radius) for each in heads)])


REGULARIZERS: Mapping[str, Regularizer] = {
    "none": Regularizer(),
    "recadam": Regularizer(_recadam, whole_weights=True),
    "mars": Regularizer(_mars, whole_weights=True),
    "r3f": Regularizer(noise=True),
    "r4f": Regularizer(noise=True, spectral=True, whole_weights=True),
}


def on_optimizer(config: FinetuneConfig, module: Classifier) -> Pull | Mars | None:
    """What holds the weights near where they are now: the start, before any checkpoint is read."""
    return REGULARIZERS[config.regularizer].acts(config, module)


def on_loss(config: FinetuneConfig) -> R3F | None:
    """The noise of R3F and R4F; None where it has no weight, which spares the second pass."""
    if not REGULARIZERS[config.regularizer].noise or not config.r3f.weight:
        return None
    return R3F(config.r3f.weight, config.r3f.eps, config.r3f.noise)


def check_unspread(config: FinetuneConfig, zero: int) -> None:
    """What needs every weight whole in every process.

    Args:
        config: of fine-tuning.
        zero: the ZeRO stage.

    Raises:
        UserError: the regularizer does.
    """
    if zero and REGULARIZERS[config.regularizer].whole_weights:
        raise UserError(
            f"finetune.regularizer={config.regularizer} needs every weight whole: run the stage with --zero 0"
            " (in one process or several), or take r3f or none."
        )


def advice(config: FinetuneConfig) -> list[str]:
    """Sentences about settings that will not do what is hoped for."""
    said = []
    if config.class_weights == config.sampling == "balanced":
        said.append(
            "finetune.class_weights=balanced and finetune.sampling=balanced each make up for the classes' sizes, and"
            " together twice; take one of them"
        )
    if config.regularizer != "recadam" or config.recadam.anneal == "constant":
        return said
    given = config.recadam
    pull = config.lr * given.gamma * given.w
    if pull >= 1:
        what = "diverges" if pull >= 2 else "overshoots the start"
        said.append(
            f"finetune.lr * finetune.recadam.gamma is {pull:.3g}: from 1 on the pull {what};"
            " lower finetune.recadam.gamma or finetune.lr"
        )
    if given.t0 > config.steps / 2:
        when = "not reached" if given.t0 >= config.steps else "late"
        said.append(
            f"finetune.recadam.t0={given.t0} is {when} in {config.steps} steps, so that the task hardly counts;"
            " lower finetune.recadam.t0"
        )
    return said
