"""From what a step shows to a cause, and to what helps: the first of a few questions that is answered with yes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdfast.engine.machine import resolve_precision
from sdfast.replay.again import Way, largest_of
from sdfast.replay.watch import Seen, Step, all_finite, described, first_not_finite, losses, observed

_GROWN = 10.0  # times as large as at the start, from which on weights are said to explode
_PROBED = 8  # rows that are computed alone to see whether all are alike
_NAMED = 16  # rows that are named at most
_LOWER, _HIGHEST = 10, 1e-3  # by which a learning rate is divided, and above which none is proposed


@dataclass
class Finding:
    """What was wrong.

    Attributes:
        cause: one word: `inputs`, `labels`, `teacher`, `rows`, `weights`, `checkpoint`, `precision`, `rate`, `gradient`
            or `loss`; None where the step is finite now.
        tensor: what was not finite first, by name.
        sentence: for a person.
        tried: what was looked at, and what came of it.
        remedies: settings (`key=value`) or whole commands; what helps most comes first.
        rows: those of the split to blame, where it is some of the batch.
        seen: what the step showed.
    """

    cause: str | None = None
    tensor: str | None = None
    sentence: str = ""
    tried: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    seen: Seen | None = None


def diagnose(way: Way, start: nn.Module, section: str, names: list[str]) -> Finding:
    """What is wrong with the step that a trainer would take next; it is taken only where all before it is finite.

    Args:
        way: how the trainer came there; its weights are finite.
        start: the module whose weights the stage started from.
        section: of the configuration, of the stage.
        names: of the batch's rows.
    """
    trainer = way.trainer
    step, found = Step.next_of(trainer), Finding()
    precision = resolve_precision(trainer.settings.precision, trainer.device)
    for ask in (_inputs, _labels, _teacher):
        if ask(trainer, step, names, found):
            return found
    seen = found.seen = observed(trainer, step, precision)
    found.tried.append(f"the step in {precision}, observed: {_shown(seen)}")
    if seen.finite:
        return _update(way, start, section, found)
    found.tensor = f"the gradient of {seen.gradient}" if seen.gradient else seen.module or seen.operator
    if precision != "fp32":
        again = observed(trainer, step, "fp32")
        found.tried.append(f"the same step in fp32: {_shown(again)}")
        if again.finite:
            found.cause = "precision"
            found.sentence = f"{_what(seen)} overflows in {precision}; in float32 the same step is finite."
            found.remedies = [*(["engine.precision=bf16"] if precision == "fp16" else []), "engine.precision=fp32"]
            return found
    if _exploded(way, start, section, found):
        found.sentence = f"{_what(seen)} is not finite, as {found.sentence}"
        return found
    if seen.gradient is None and _rows(trainer, step, names, precision, found):
        return found
    found.cause = "loss" if seen.gradient is None else "gradient"
    found.sentence = f"{_what(seen)} is not finite, of finite weights and inputs."
    found.remedies = _slower(trainer, section)
    return found


def _inputs(trainer: Any, step: Step, names: list[str], found: Finding) -> bool:
    """Whether rows are not finite before anything is computed."""
    if not isinstance(step.inputs, Tensor) or all_finite(step.inputs):
        found.tried.append("inputs: finite")
        return False
    bad = _bad_rows(step.inputs)
    found.cause, found.tensor, found.rows = "inputs", "inputs", step.batch.rows[bad].tolist()
    found.sentence = f"the pixels of {_called(bad, names)} are not finite ({described(step.inputs)})."
    found.remedies = ["mend or remove these files, and run the same command again"]
    return True


def _labels(trainer: Any, step: Step, names: list[str], found: Finding) -> bool:
    """Whether labels that are numbers are not finite."""
    labels = getattr(trainer.objective, "labels", None)
    if labels is None or not labels.is_floating_point():
        return False
    mine = labels[step.batch.rows.to(labels.device)]
    found.tried.append(f"labels: {described(mine)}")
    if all_finite(mine):
        return False
    bad = _bad_rows(mine)
    found.cause, found.tensor, found.rows = "labels", "labels", step.batch.rows[bad].tolist()
    found.sentence = f"the labels of {_called(bad, names)} are not finite."
    found.remedies = ["mend these labels in the source, and run the same command again"]
    return True


def _teacher(trainer: Any, step: Step, names: list[str], found: Finding) -> bool:
    """Whether a bank gives features that are not finite; a teacher that runs beside is observed as it runs."""
    teacher = getattr(trainer.objective, "teacher", None)
    if teacher is None or isinstance(teacher, nn.Module):
        return False
    teacher.announce(step.batch.rows, step.batch.epoch)
    targets = teacher.targets(step.inputs, step.batch.rows, step.batch.epoch)
    scale = torch.ones(()) if targets.scale is None else targets.scale
    features, scale = (
        each if targets.rows is None or not each.dim() else each[targets.rows] for each in (targets.teacher, scale)
    )
    whole = features.float() * (scale[..., None] if scale.dim() else scale)
    found.tried.append(f"the teacher's features of the batch: {described(whole)}")
    if all_finite(whole):
        return False
    bad = _bad_rows(whole)
    found.cause, found.tensor, found.rows = "teacher", "teacher bank", step.batch.rows[bad].tolist()
    found.sentence = f"the teacher bank's features of {_called(bad, names)} are not finite."
    found.remedies = ["sdfast cache verify --out {out}", "sdfast cache build --rebuild --out {out}"]
    return True


def _rows(trainer: Any, step: Step, names: list[str], precision: str, found: Finding) -> bool:
    """Whether it is the fault of some of the rows: each of the others is finite alone."""
    count = len(step.batch.rows)

    @torch.no_grad()
    def finite(first: int, last: int) -> bool:
        loss = losses(trainer, step, precision, slice(first, last))[1]
        return bool(torch.isfinite(loss))

    try:
        probes = sorted({index * (count - 1) // max(_PROBED - 1, 1) for index in range(_PROBED)})
        if count < 2 or not any(finite(each, each + 1) for each in probes):
            found.tried.append(f"{len(probes)} rows, each alone: none is finite")
            return False
        bad: list[int] = []
        ahead = [(0, count)]
        while ahead and len(bad) < _NAMED:
            first, last = ahead.pop()
            if finite(first, last):
                continue
            if last - first == 1:
                bad.append(first)
            else:
                middle = (first + last) // 2
                ahead += [(middle, last), (first, middle)]
    except (RuntimeError, ValueError, IndexError):  # an objective that needs the whole batch
        return False
    if not bad:
        return False
    chosen = torch.tensor(bad)
    found.cause, found.rows = "rows", step.batch.rows[chosen].tolist()
    most = "at least " if len(bad) == _NAMED else ""
    found.tried.append(f"rows alone: {most}{len(bad)} of {count} are not finite")
    labels, more = getattr(trainer.objective, "labels", None), ""
    if labels is not None and labels.is_floating_point():
        values = labels[step.batch.rows.to(labels.device)][chosen[0]].flatten().tolist()
        found.tensor, more = "labels", f" (the label of the first is {', '.join(f'{each:.3g}' for each in values)})"
    found.sentence = f"{_what(found.seen)} is not finite for {_called(chosen, names)} alone{more}."
    found.remedies = ["mend or remove these rows, and run the same command again", *_clip(trainer, "{section}")]
    return True


def _update(way: Way, start: nn.Module, section: str, found: Finding) -> Finding:
    """Loss and gradients are finite: whether the weights after the step are."""
    trainer = way.trainer
    loss = float(trainer.step()["loss"])
    broken = first_not_finite(trainer.objective.module)
    if broken is None and math.isfinite(loss):
        found.tried.append("the whole step: loss, gradients and weights are finite")
        found.sentence = "the step is finite now: the fault is not reproduced."
        return found
    found.cause = "rate"
    found.tensor = broken[0] if broken else "loss"
    found.sentence = f"the update of this step leaves {found.tensor} not finite, of finite gradients."
    found.remedies = _slower(trainer, section)
    return found


def _exploded(way: Way, start: nn.Module, section: str, found: Finding) -> bool:
    """Whether weights have grown far beyond those of the start."""
    module = way.trainer.objective.module
    name, now = max(
        ((name, largest_of([value.detach()])) for name, value in module.named_parameters()), key=lambda each: each[1]
    )
    before = largest_of([value.detach() for value in start.parameters()])
    norms = [each["gradient_norm"] for each in way.history]
    found.tried.append(f"largest weight: {now:.3g} in {name}; {before:.3g} at the start of the stage")
    if norms:
        found.tried.append("gradient norms of the steps before: " + ", ".join(f"{each:.3g}" for each in norms[-5:]))
    if now < _GROWN * max(before, 1e-3):
        return False
    found.cause, found.tensor = "rate", name
    found.sentence = f"weights have exploded: {name} has grown to {now:.3g}, from at most {before:.3g} at the start."
    found.remedies = _slower(way.trainer, section)
    return True


def _slower(trainer: Any, section: str) -> list[str]:
    """A lower rate, a warm-up, a clipped gradient."""
    config = trainer.config
    lower = f"{section}.lr={min(config.lr / _LOWER, _HIGHEST):g}"
    return [lower, *([] if config.warmup else [f"{lower} {section}.warmup=0.1"]), *_clip(trainer, section)]


def _clip(trainer: Any, section: str) -> list[str]:
    return [] if trainer.config.clip else [f"{section}.clip=1"]


def _bad_rows(values: Tensor) -> Tensor:
    return (~torch.isfinite(values.float().flatten(1))).any(dim=1).nonzero()[:, 0].cpu()


def _called(rows: Tensor, names: list[str]) -> str:
    """Rows of the batch by their names, the first few of them."""
    first = ", ".join(repr(names[row]) for row in rows[:3].tolist())
    return first + (f" and {len(rows) - 3} others" if len(rows) > 3 else "")


def _what(seen: Seen | None) -> str:
    """What was not finite first."""
    if seen is None or seen.finite:
        return "the loss"
    if seen.gradient is not None:
        by = f" (operator {seen.backward})" if seen.backward else ""
        return f"the gradient of {seen.gradient}{by}"
    by = f" (operator {seen.operator})" if seen.operator else ""
    return f"the output of {seen.module}{by}" if seen.module else f"the loss{by}"


def _shown(seen: Seen) -> str:
    if seen.finite:
        return "loss and gradients are finite"
    parts = ", ".join(f"{name} {value:.4g}" for name, value in seen.loss.items())
    more = f"; it was given {seen.inputs}" if seen.module else ""
    more += f", its weights: {seen.weights}" if seen.module and seen.weights else ""
    return f"{_what(seen)} is not finite ({parts}){more}"
