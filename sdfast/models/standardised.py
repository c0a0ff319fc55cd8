"""Standardised features before a head, as MAE's linear probing has them (He et al., 2022, appendix A.1).

There a BatchNorm without affine stands before the layer, and estimates mean and variance from batch to batch. Those of
frozen features can be known: they are taken once, over all training rows. In the end they are folded into the head's
first layer, so that the model that is kept is a plain one.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn

from sdfast.models.base import Classifier

_LAYERS = ("dense", "head.dense", "classifier")  # of heads; the first that is there is given the features
_ROUNDING = 1e-5  # of a feature's size: what varies less in float32 does not vary


class Moments(nn.Module):
    """In place of `Classifier.standard`: leaves features as they are, and adds up their sum and that of their squares.

    Attributes:
        count: rows so far.
        sums: [2, D] float64 on the CPU.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.count, self.sums = 0, torch.zeros(2, width, dtype=torch.float64)

    def forward(self, features: Tensor) -> Tensor:
        """[..., D] -> the same."""
        exact = features.detach().flatten(0, -2).double()
        self.count += len(exact)
        self.sums += torch.stack((exact.sum(dim=0), exact.square().sum(dim=0))).cpu()
        return features


def mean_and_deviation(count: int, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Those of `Moments`, [D] float64: the population's deviation, and 1 where nothing varies but by rounding."""
    mean, square = sums / count
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return mean, torch.where(deviation > _ROUNDING * square.sqrt(), deviation, 1.0)


class Standard(nn.Module):
    """Takes the mean off features and divides them by their deviation.

    Attributes:
        mean, deviation: [D], not trained.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        """mean, deviation: [D], in the type of the head's weights."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, features: Tensor) -> Tensor:
        """[..., D] -> [..., D], in the wider of the two types."""
        return (features - self.mean) / self.deviation


def first_layer(module: Classifier) -> nn.Linear:
    """The layer of a head that is given the features."""
    layer = module.get_submodule(_first_of(dict(module.named_parameters())))
    assert isinstance(layer, nn.Linear)
    return layer


def fold_standardised(module: Classifier) -> None:
    """Have a head do by its own weights what is done to its features; a module without is left as it is.

    The weights are new tensors: what shares the ones before is left as it is.
    """
    if isinstance(module.standard, Standard):
        plain = unstandardised_state(module.state_dict())
        name, layer = _first_of(plain), first_layer(module)
        layer.weight, layer.bias = (nn.Parameter(plain[f"{name}.{each}"]) for each in ("weight", "bias"))
        module.standard = nn.Identity()


def unstandardised_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `fold_standardised` makes of a classifier's tensors."""
    plain = dict(state)
    if "standard.mean" not in plain:
        return plain
    mean, deviation = (plain.pop(f"standard.{each}").double() for each in ("mean", "deviation"))
    name = _first_of(plain)
    weight, bias = (plain[f"{name}.{each}"] for each in ("weight", "bias"))
    plain[f"{name}.weight"] = folded = (weight.double() / deviation).to(weight.dtype)
    # Of the matrix as it is kept: its rounding then acts on what differs from the mean alone.
    plain[f"{name}.bias"] = (bias.double() - folded.double() @ mean).to(bias.dtype)
    return plain


def _first_of(names: Container[str]) -> str:
    return next(each for each in _LAYERS if f"{each}.weight" in names)
