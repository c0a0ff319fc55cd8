"""k nearest neighbours on an encoder's features, as DINO evaluates them (Caron et al., 2021): nothing is trained."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sdfast.durable import load_json, save_tensors, write_json
from sdfast.errors import UserError, said
from sdfast.models.base import Classifier, MaskedModel

FILE, _SETTINGS = "neighbours.safetensors", "neighbours.json"
_LEAST = 1e-6  # probability of a class for which nobody votes, so that a loss is finite


class Neighbours(nn.Module):
    """Rows with labels, of which those nearest to a feature vote.

    A vote counts exp(cosine similarity / temperature); a class's probability is its share of the votes.

    Attributes:
        features: [n, D] float32, of length 1.
        labels: [n] int64.
        out_features: classes.
        left_out: whether the nearest is left out, which for a row that is among them is itself.
    """

    features: Tensor
    labels: Tensor
    left_out = False

    def __init__(self, features: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> None:
        """features: [n, D], of any length; labels: [n] int64; k: how many vote."""
        super().__init__()
        self.register_buffer("features", F.normalize(features.float(), dim=1))
        self.register_buffer("labels", labels)
        self.out_features, self.k, self.temperature = classes, k, temperature

    def forward(self, states: Tensor) -> Tensor:
        """[B, D] -> [B, classes]: the logarithms of the classes' probabilities."""
        similar, first = F.normalize(states.float(), dim=1) @ self.features.t(), int(self.left_out)
        near = similar.topk(min(self.k + first, len(self.labels)), dim=1)
        shares = (near.values[:, first:] / self.temperature).softmax(dim=1)
        votes = shares.new_zeros(states.shape[0], self.out_features)
        return votes.scatter_add(1, self.labels[near.indices[:, first:]], shares).clamp(min=_LEAST).log()


@contextlib.contextmanager
def left_out(head: nn.Module) -> Iterator[None]:
    """Inside, neighbours do without the nearest: what rows that are among them say of each other."""
    if not isinstance(head, Neighbours):
        yield
        return
    head.left_out = True
    try:
        yield
    finally:
        head.left_out = False


class FeatureClassifier(Classifier):
    """An encoder, and what is made of its features: CLS, or the first token of a text.

    Attributes:
        classifier: of [B, D]; its `out_features` is the width of what it gives.
    """

    classifier: Any

    def __init__(self, start: MaskedModel, classifier: Any) -> None:
        """start: whose encoder it has, a copy."""
        super().__init__()
        self.shape, self.encoder, self.classifier = start.shape, copy.deepcopy(start.encoder), classifier

    def forward(self, inputs: Any) -> Tensor:
        """What the encoder takes -> [B, classes]."""
        return self.classifier(self.encoder.features(inputs, "cls"))


class Features(nn.Identity):
    """In place of a classifier: the features themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_features = width


def save_neighbours(neighbours: Neighbours, names: Sequence[str], folder: Path) -> None:
    """Write what votes, and the names of its classes, beside the model whose features they are."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in neighbours.state_dict().items()}
    save_tensors(folder / FILE, tensors)
    write_json(folder / _SETTINGS, {"k": neighbours.k, "temperature": neighbours.temperature, "classes": list(names)})


def has_neighbours(folder: Path) -> bool:
    """Whether a model's folder was written with `save_neighbours`."""
    return (folder / FILE).is_file()


def load_neighbours(folder: Path) -> tuple[Neighbours, list[str]]:
    """Read what `save_neighbours` wrote.

    Raises:
        UserError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors, given = load_file(folder / FILE), load_json(folder / _SETTINGS)
        names = [str(name) for name in given["classes"]]
        return Neighbours(tensors["features"], tensors["labels"], len(names), given["k"], given["temperature"]), names
    except OSError as error:
        raise UserError(f"the neighbours in {folder} cannot be read: {said(error)}.") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / FILE} or {_SETTINGS} is damaged ({error}): run the stage again.") from error
