"""What torch's counter of FLOPs does not know of the operators that a step meets, by the convention of this package.

A multiply-add is 2 FLOPs; counted are matrix products, convolutions and both products of attention, whose backward
pass is twice its forward pass (what a fused kernel computes again is not counted). Norms, softmax, GELU and the losses
on pixels and features are not counted. Importing torch's counter imports Triton, so this is done when somebody counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from sdfast.ops import native
from sdfast.ops.registry import Formula, all_rows


def flop_counter() -> FlopCounterMode:
    """A counter that also knows the operators of all rows, and counts torch's own attentions by the convention.

    The compiled attention is counted by the values of its bounds, which fake tensors do not have: there another
    backend counts (`reference`, whose products torch knows), with the same result.
    """
    native.available()
    known: dict[Any, Formula] = {}
    for row in all_rows().values():
        for name, formula in row.flops.items():
            operator = _operator(name)
            if operator is None:
                continue
            if not name.startswith("sdfast::"):  # torch's, whose counter is left as it is for others
                formula.__dict__["_get_raw"] = True  # it takes tensors, not their shapes
                known[operator] = formula
            elif operator not in flop_registry:
                register_flop_formula(operator, get_raw=True)(formula)
    return FlopCounterMode(display=False, custom_mapping=known)


def _operator(name: str) -> Any:
    """The operator of the name "library::operator"; None where this torch has none."""
    library, operator = name.split("::")
    return getattr(getattr(torch.ops, library), operator, None)
