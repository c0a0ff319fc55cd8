"""Ablations of what self-distillation matches: the teacher's predictions, or its weights (Table 3; fidelity 6).

Both distances of weights, the squared l2 distance and MARS's penalty (fidelity 5.1), are one node of autograd over all
of them. A sum over rows has no foreach form; everything else has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.models.base import MaskedModel
from sdfast.models.blocks import Attention
from sdfast.objectives.masked import MaskedTraining, MaskedViews

WeightNorm = Literal["l2", "mars"]


class PredictionMatching(MaskedTraining):
    """Minimise `mae_weight * L_MAE + weight * d(g_phi(f_theta(x^)), g_phi0(f_theta0(x^)))`.

    Student and teacher predict the pixels or the words of the same masked input x^. Of pixels d is the squared
    difference, summed over patches and their values; of words the divergence KL(p_teacher || p_student), summed over
    the vocabulary and the text's tokens; both are a mean over the batch. Targets depend on the mask, so the teacher
    runs at every step; dropout acts in the student alone.
    """

    def __init__(
        self,
        module: MaskedModel,
        views: MaskedViews,
        seed: int,
        matched: MaskedModel,
        weight: float = 1.0,
        compared: Literal["all", "masked"] = "all",
        reduction: Literal["sum", "mean"] = "sum",
        **more: Any,
    ) -> None:
        """Set up the objective.

        Args:
            module, views, seed: see `MaskedTraining`.
            matched: the teacher, encoder and head, on the module's device; put into evaluation mode.
            weight: of the predictions' distance.
            compared: which patches or tokens are.
            reduction: `mean` is over the compared values or tokens of the batch.
            more: of `MaskedTraining`, but for its teacher.
        """
        super().__init__(module, views, seed, weight=weight, **more)
        self.matched, self.compared, self.reduction = matched.requires_grad_(False).eval(), compared, reduction

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Encoder and head: both predict, whatever L_MAE's weight."""
        yield from self.module.named_parameters()

    def loss(self, inputs: Any, batch: Batch, drawn: Any, part: slice) -> dict[str, Tensor]:
        """The rows' share of the batch's loss; the parts are those of `MaskedTraining.loss`."""
        if not self.weight:
            return super().loss(inputs, batch, drawn, part)
        rows, tail = self._rows(inputs, batch, drawn, part), self.shortcuts.masked_tail
        taken = replace(self.shortcuts, masked_tail=tail and self.compared == "masked")
        predicted, _ = self.views.encode(self.module, rows, True, None, taken)
        with torch.no_grad():
            target, _ = self.views.encode(self.matched, rows, True, None, taken)
        modules, weights = (self.module, self.matched), (self.mae_weight, self.weight)
        how = self.compared, self.reduction
        loss, masked, distance = self.views.distances(modules, (predicted, target), rows, *how, weights, tail)
        parts = {"loss": loss, "loss_distill": distance}
        return parts if masked is None else {**parts, self.views.part: masked}


class WeightMatching(MaskedTraining):
    """Minimise `mae_weight * L_MAE + weight * d(theta, theta_0)`: the encoder's weights are drawn to the teacher's.

    d is an `EncoderDistance`. Fixed position embeddings are the same in both.
    """

    def __init__(
        self,
        module: MaskedModel,
        views: MaskedViews,
        seed: int,
        matched: MaskedModel,
        norm: WeightNorm,
        weight: float = 1.0,
        **more: Any,
    ) -> None:
        """Set up the objective.

        Args:
            module, views, seed: see `MaskedTraining`.
            matched: the teacher, of which the encoder matters, on the module's device.
            norm: of the difference.
            weight: of the distance.
            more: of `MaskedTraining`, but for its teacher; `mae_weight` is above 0.
        """
        super().__init__(module, views, seed, weight=weight, **more)
        self.distance = EncoderDistance(module.encoder, matched.encoder, norm)

    def loss(self, inputs: Any, batch: Batch, drawn: Any, part: slice) -> dict[str, Tensor]:
        """The rows' share of the batch's loss; `loss_distill` is the distance's share, without its weight."""
        parts = super().loss(inputs, batch, drawn, part)
        if not self.weight:
            return parts
        distance = self.distance() * (len(inputs) / batch.count)
        return {**parts, "loss": parts["loss"] + self.weight * distance, "loss_distill": distance.detach()}


Parts = int | tuple[int, ...]  # layers in one matrix: so many of as many rows, or the rows of each


class EncoderDistance:
    """How far an encoder's weights are from another's, d(theta, theta_0).

    `l2`: the sum of squared differences over all that is trained, of texts the embeddings too. `mars`: the sum over
    linear layers and the patch embedding of the largest l1 norm of a row; query, key and value are layers of their own.
    """

    def __init__(self, encoder: nn.Module, other: nn.Module, norm: WeightNorm) -> None:
        """other: of the same shape, on the same device."""
        theirs, layers = dict(other.named_parameters()), dict(_layers(encoder))
        named = [(n, p) for n, p in encoder.named_parameters() if p.requires_grad and (norm == "l2" or n in layers)]
        self.norm = norm
        self._weights = [(parameter, layers.get(name, 1)) for name, parameter in named]
        self._anchors = [theirs[name].detach() for name, _ in named]

    def __call__(self) -> Tensor:
        """The distance of the weights as they are now: 0-D, with gradient."""
        if self.norm == "mars":
            return mars_distance(self._weights, self._anchors)
        return squared_distance([weight for weight, _ in self._weights], self._anchors)


def _layers(encoder: nn.Module) -> Iterator[tuple[str, Parts]]:
    """The names of the weights of linear layers and of the patch embedding, and which layers each is."""
    for name, layer in encoder.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield f"{name}.weight", 1
    for name, layer in encoder.named_modules():
        if isinstance(layer, Attention):
            keys = layer.kv_heads * layer.dim
            yield f"{name}.qkv.weight", 3 if layer.kv_heads == layer.heads else (layer.heads * layer.dim, keys, keys)


def squared_distance(weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
    """sum ||W - W0||^2 over all weights.

    Args:
        weights: of any shapes.
        anchors: of the same ones, on the same device; they get no gradient.

    Returns:
        0-D, in the anchors' dtype.
    """
    return _SquaredDistance.apply(list(anchors), *weights)


def mars_distance(layers: Sequence[tuple[Tensor, Parts]], anchors: Sequence[Tensor]) -> Tensor:
    """sum over layers of max_j sum_i |W_ji - W0_ji|, a row j being what feeds one output.

    The subgradient of the largest row is taken (the first of several), sign(W_j - W0_j), which is 0 at the anchor.

    Args:
        layers: weights [out, ...], and how many layers each is, which share `out` evenly, or the rows of each of them.
        anchors: of the same shapes, on the same device; they get no gradient.

    Returns:
        0-D, in the anchors' dtype.
    """
    return _MarsDistance.apply(list(anchors), [count for _, count in layers], *(weight for weight, _ in layers))


class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.anchors = anchors
        ctx.save_for_backward(*weights)
        norms = torch._foreach_norm(torch._foreach_sub(weights, anchors))
        return torch.stack(norms).square().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        differences = torch._foreach_sub(ctx.saved_tensors, ctx.anchors)
        torch._foreach_mul_(differences, 2 * grad)
        return None, *differences


class _MarsDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: list[Tensor], counts: list[Parts], *weights: Tensor) -> Tensor:
        ctx.anchors = anchors
        largest, rows = [], []
        for weight, anchor, count in zip(weights, anchors, counts, strict=True):
            difference = (weight - anchor).flatten(1)
            norms = torch.linalg.vector_norm(difference, 1, dim=1)
            if isinstance(count, int):
                norm, row = norms.view(count, -1).max(dim=1)
                first = torch.arange(count, device=row.device) * (len(weight) // count)
            else:
                found = [part.max(dim=0) for part in norms.split(count)]
                norm, row = (torch.stack(each) for each in zip(*found, strict=True))
                first = torch.tensor([0, *count[:-1]]).cumsum(0).to(row.device)
            largest.append(norm.sum())
            rows.append(row + first)
        ctx.save_for_backward(*weights, *rows)
        return torch.stack(largest).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, number = ctx.saved_tensors, len(ctx.anchors)
        grads = [torch.zeros_like(anchor) for anchor in ctx.anchors]
        for weight, rows, anchor, found in zip(kept[:number], kept[number:], ctx.anchors, grads, strict=True):
            found.index_copy_(0, rows, (weight[rows] - anchor[rows]).sign() * grad)
        return None, None, *grads
