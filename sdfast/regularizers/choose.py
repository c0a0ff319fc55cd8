"""From the configuration to what acts on the optimiser and on the loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sdfast.config import FinetuneConfig
from sdfast.errors import UserError
from sdfast.models.text import TextClassifier
from sdfast.models.vit import ViTClassifier
from sdfast.regularizers.mars import Constraint, Mars
from sdfast.regularizers.r3f import R3F
from sdfast.regularizers.recadam import Annealing, Pull


def on_optimizer(config: FinetuneConfig, module: ViTClassifier | TextClassifier) -> Pull | Mars | None:
    """What holds the weights near where they are now: the start, before any checkpoint is read.

    RecAdam pulls the whole encoder (biases, LayerNorms, CLS and all embeddings too) and leaves the new head alone. MARS
    keeps the encoder's linear layers and its patch embedding near their start and the head (of texts: both its layers)
    near 0; biases, LayerNorms, CLS, positions and the embeddings of words and types are free.
    """
    if config.regularizer == "recadam":
        given = config.recadam
        annealing = Annealing(given.anneal, given.k, given.t0, given.w)
        anchors = {f"encoder.{name}": value.detach().clone() for name, value in module.encoder.named_parameters()}
        return Pull(anchors, annealing, given.gamma)
    if config.regularizer == "mars":
        near_start = [Constraint(each, each.detach().clone(), config.mars.radius) for each in _weights(module.encoder)]
        heads = [layer.weight for layer in module.children() if isinstance(layer, nn.Linear)]
        near_0 = [Constraint(head, torch.zeros_like(head), config.mars.head_radius) for head in heads]
        return Mars([*near_start, *near_0])
    return None


def on_loss(config: FinetuneConfig) -> R3F | None:
    """The noise of R3F and R4F; None where it has no weight, which spares the second pass."""
    if config.regularizer not in ("r3f", "r4f") or not config.r3f.weight:
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
    if zero and config.regularizer in ("recadam", "mars", "r4f"):
        raise UserError(
            f"finetune.regularizer={config.regularizer} needs every weight whole: run the stage with --zero 0"
            " (in one process or several), or take r3f or none."
        )


def advice(config: FinetuneConfig) -> list[str]:
    """Sentences about settings that will not do what is hoped for."""
    if config.regularizer != "recadam" or config.recadam.anneal == "constant":
        return []
    said, given = [], config.recadam
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


def _weights(encoder: nn.Module) -> Iterator[Tensor]:
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield layer.weight
