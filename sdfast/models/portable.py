"""A model as one function of padded tensors, as files for other programs hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Portable:
    """What is traced, and what it is compared with.

    Attributes:
        module: of the inputs, makes a tuple of the outputs; on the CPU, in evaluation mode.
        axes: by the name of each input the names of its sizes that may differ from call to call, by number.
        outputs: their names. The last is what the model is asked for: `logits` of a classifier, `features` otherwise.
        own: makes that last output of the inputs as sdfast computes it everywhere else.
        given: makes inputs of rows [B] int64 of a split, or, where that is None, as many of random numbers.
        longest: greatest value of a size called `length`; None without such.
        about: what a user has to know to make the inputs; JSON.
    """

    module: nn.Module
    axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    own: Callable[..., Tensor]
    given: Callable[[Any, Tensor], Tensors]
    longest: int | None = None
    about: dict[str, Any] = field(default_factory=dict)


def outputs_of(classifies: bool) -> tuple[str, ...]:
    """The names of what a module gives."""
    return ("logits",) if classifies else ("last_hidden_state", "features")


def spread(count: int, wanted: int) -> Tensor:
    """[wanted] int64: rows of `count`, far from each other; some come again where there are fewer."""
    return torch.linspace(0, count - 1, wanted).round().to(torch.int64)
