"""One step under observation: the first module, operator and gradient that are not finite."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdfast.data.order import Batch
from sdfast.engine.loop import Trainer
from sdfast.engine.machine import autocast, torch_fp32_matmul
from sdfast.engine.prepare import running_teacher
from sdfast.objectives.base import micro_slices
from sdfast.rng import derive_seed

# They make what others fill: memory as it is found, or minus infinity where a mask is.
_MAKERS = ("empty", "full", "fill", "scalar_tensor", "where", "masked_fill", "copy", "detach", "view", "alias")


@dataclass
class Seen:
    """What one step showed.

    Attributes:
        loss: and its parts.
        finite: whether loss and gradients were.
        module: the first module, in the order of computation, whose output was not finite.
        inputs, weights: what that module was given, and its parameters, in words.
        operator: the first operator that made something not finite of finite operands.
        gradient: the first parameter, in the order of the backward pass, whose gradient was not finite.
        backward: the first operator of the backward pass that gave NaN, as autograd's anomaly detection names it.
    """

    loss: dict[str, float] = field(default_factory=dict)
    finite: bool = True
    module: str | None = None
    inputs: str | None = None
    weights: str | None = None
    operator: str | None = None
    gradient: str | None = None
    backward: str | None = None


@dataclass(frozen=True)
class Step:
    """The step that a trainer would take next.

    Attributes:
        batch: its address.
        inputs: of it, on the device.
        drawn: what the objective drew.
        number: of the step, from 0.
    """

    batch: Batch
    inputs: Any
    drawn: Any
    number: int

    @classmethod
    def next_of(cls, trainer: Trainer) -> Step:
        """It is not taken."""
        batch = trainer.order.batch(trainer.steps_done)
        return cls(batch, trainer.read(batch.rows), trainer.objective.draw(batch), trainer.steps_done)


def observed(trainer: Trainer, step: Step, precision: str, backward: bool = True) -> Seen:
    """Compute a step's loss and gradients in a precision, under observation; no weight changes."""
    seen = Seen()
    with _watched(trainer, seen), _Operators(seen):
        parts, loss = losses(trainer, step, precision)
    seen.loss = parts
    seen.finite = bool(torch.isfinite(loss.detach()))
    if seen.finite and backward and loss.requires_grad:
        _look_back(trainer, step, precision, seen)
    trainer.engine.optimizer.zero_grad(set_to_none=True)
    return seen


def losses(trainer: Trainer, step: Step, precision: str, rows: slice | None = None) -> tuple[dict[str, float], Tensor]:
    """The parts of a step's loss, of some rows or of all, and the loss with its gradient, which fp16 does not scale."""
    objective, batch = trainer.objective, step.batch
    torch.manual_seed(derive_seed(trainer.order.seed, "dropout", step.number, 0))
    cut = batch.micro_batches or micro_slices(len(batch.rows), trainer.settings.accumulate)
    total: dict[str, float] = {}
    loss: Any = 0.0
    objective.announce(batch)
    with torch_fp32_matmul("high" if precision == "tf32" else "highest"):
        for part in cut if rows is None else [rows]:
            with autocast(precision, trainer.device):
                parts = objective.loss(step.inputs[part], batch, step.drawn, part)
            for name, value in parts.items():
                total[name] = total.get(name, 0.0) + float(value.detach())
            loss = loss + parts["loss"]
    return total, loss


def _look_back(trainer: Trainer, step: Step, precision: str, seen: Seen) -> None:
    """The first gradient that is not finite: of a parameter, and by which operator."""
    handles = []
    for name, parameter in trainer.engine.parameters.items():

        def look(gradient: Tensor, name: str = name) -> None:
            if seen.gradient is None and not bool(torch.isfinite(gradient).all()):
                seen.gradient = name

        handles.append(parameter.register_hook(look))
    try:
        losses(trainer, step, precision)[1].backward()
    finally:
        for handle in handles:
            handle.remove()
    seen.finite = seen.gradient is None
    if seen.finite:
        return
    trainer.engine.optimizer.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.autograd.set_detect_anomaly(True):
                losses(trainer, step, precision)[1].backward()
        except RuntimeError as error:
            found = re.search(r"Function '(\w+)'", str(error))
            seen.backward = found[1] if found else None


@contextlib.contextmanager
def _watched(trainer: Trainer, seen: Seen) -> Iterator[None]:
    """Hooks of every module, also of a teacher that runs beside: the innermost one ends first."""
    teacher = running_teacher(trainer.objective)
    named = dict(trainer.objective.module.named_modules())
    if teacher is not None:
        named |= {f"teacher.{name}".rstrip("."): module for name, module in teacher.named_modules()}
    handles = []
    for name, module in named.items():

        def look(module: nn.Module, given: Any, result: Any, name: str = name) -> None:
            if seen.module is None and not all_finite(result):
                seen.module = name or type(module).__name__
                seen.inputs = " and ".join(described(each) for each in _floating(given)) or "no numbers"
                own = dict(module.named_parameters(recurse=False)) or dict(module.named_parameters())
                seen.weights = "; ".join(f"{key} {described(value)}" for key, value in own.items()) or None

        handles.append(module.register_forward_hook(look))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Operators(TorchDispatchMode):
    """Finds the first operator that makes of finite operands what is not finite."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and look at what it gave."""
        result = function(*args, **(kwargs or {}))
        if self.seen.operator is None:
            name = function.overloadpacket._qualified_op_name
            operands = [args, kwargs] if not name.endswith("_") else [kwargs]  # of those in place one is the result
            if not any(part in name for part in _MAKERS) and not _sound(result, name) and all_finite(operands):
                self.seen.operator = name
        return result


def _sound(result: Any, operator: str) -> bool:
    """Whether what an operator gave is finite, or minus infinity where that is a mask."""
    masks = "log" not in operator
    return all(bool((torch.isfinite(each) | (masks & torch.isneginf(each))).all()) for each in _floating(result))


def all_finite(values: Any) -> bool:
    """Whether all floating-point tensors in nested values are."""
    return all(bool(torch.isfinite(each).all()) for each in _floating(values))


def first_not_finite(module: nn.Module) -> tuple[str, Tensor] | None:
    """The first parameter or buffer of a module that is not finite, by name."""
    for name, value in module.state_dict().items():
        if not all_finite(value):
            return name, value
    return None


def described(value: Tensor) -> str:
    """A tensor in words: shape, range, and how much of it is not finite."""
    flat = value.detach().float().flatten()
    good = flat[torch.isfinite(flat)]
    bad = flat.numel() - good.numel()
    size = "x".join(map(str, value.shape)) or "1"
    reach = f"[{size}] in [{float(good.min()):.3g}, {float(good.max()):.3g}]" if good.numel() else f"[{size}]"
    return f"{reach}, {bad} of {flat.numel()} not finite" if bad else reach


def _floating(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor) and each.is_floating_point()]
