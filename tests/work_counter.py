"""What a computation makes torch do, counted: two of them can be compared without a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Work(TorchDispatchMode):
    """Counts the bytes that operators read and write, and those operators that go over a whole operand of the loss."""

    large: int
    passes: int = 0
    moved: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and function.overloadpacket._qualified_op_name not in (
            "aten::detach",
            "aten::_unsafe_view",
        ):
            tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
            self.moved += sum(each.numel() * each.element_size() for each in tensors)
            self.passes += any(each.numel() >= self.large for each in tensors)
        return result


def work_of(loss: Callable[[], Tensor], *leaves: Tensor) -> Work:
    with Work(large=min(leaf.numel() for leaf in leaves)) as work:
        torch.autograd.grad(loss(), leaves)
    return work
