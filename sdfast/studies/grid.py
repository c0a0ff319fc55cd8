"""What a study is made of: arms, each some configuration keys, and perhaps an axis along which they are repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sdfast.config import Config, ModalityName
from sdfast.errors import UserError
from sdfast.stages.graph import Start


@dataclass(frozen=True)
class Arm:
    """One way to train a classifier.

    Attributes:
        title: in tables and figures.
        start: what is fine-tuned.
        overrides: configuration keys, as `key=value`.
        longer: factor of the length of `pretrain` (its epochs where they decide, else its steps).
        x: where on the study's axis.
        series: the line of a figure that it is a point of.
    """

    title: str
    start: Start = "distill"
    overrides: tuple[str, ...] = ()
    longer: int = 1
    x: float | None = None
    series: str | None = None


@dataclass(frozen=True)
class Axis:
    """What changes from point to point.

    Attributes:
        kind: `limit` repeats every arm with so many training rows; `rounds` and `steps` are points of one arm.
        label: of the axis.
        points: the paper's; for `steps` shares of `pretrain.steps`.
    """

    kind: Literal["limit", "rounds", "steps"]
    label: str
    points: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """A table or a figure of the paper, or a comparison of one's own.

    Attributes:
        name: on the command line.
        title: one line.
        arms: in the order of the table.
        reference: title of the arm that the others are compared with.
        columns: metrics of the table: keys of `result.json`, `score` for that of the data set, `log_train_loss`.
        figure: how it is drawn.
        tested: columns whose differences are tested in the table; the JSON has all.
        modality: of the data, where it matters.
        axis: see `Axis`.
        seeds: how many where nothing is said.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    reference: str
    columns: tuple[str, ...] = ("score",)
    tested: tuple[str, ...] = ("score",)
    figure: Literal["dots", "lines", "gaps"] = "dots"
    modality: ModalityName | None = None
    axis: Axis | None = None
    seeds: int = 5


def expand(study: Study, config: Config, rows: int, points: Sequence[int] | None) -> tuple[list[Arm], list[str]]:
    """The arms at all points of the axis, and sentences about points that were left out.

    Args:
        study: which.
        config: of the run, resolved for the data.
        rows: of training, before any limit.
        points: instead of the axis's own; of `steps`, in steps.

    Raises:
        UserError: there are points and no axis, or none that the data set has.
    """
    if study.axis is None:
        if points:
            raise UserError(f"study {study.name} has no points to choose; leave --points away.")
        return list(study.arms), []
    kind, left_out = study.axis.kind, []
    if kind == "limit":
        wanted = sorted(set(points or map(int, study.axis.points)))
        kept = [n for n in wanted if 1 <= n <= rows]
        if not kept:
            raise UserError(
                f"none of the sizes {', '.join(map(str, wanted))} is within the {rows} training rows; give some with"
                " --points."
            )
        if points and len(kept) < len(wanted):
            more = ", ".join(str(n) for n in wanted if n not in kept)
            left_out = [f"Left out, because there are {rows} training rows: {more}."]
        return [_at_size(arm, n) for n in kept for arm in study.arms], left_out
    if kind == "rounds":
        rounds = sorted(set(points or map(int, study.axis.points)) | {0, 1})  # 1 is the reference
        return [_after_rounds(number) for number in rounds], []
    steps = sorted(set(points or (round(share * config.pretrain.steps) for share in study.axis.points)))
    return [*(_after_steps(number) for number in steps), *study.arms], []


def _at_size(arm: Arm, n: int) -> Arm:
    return replace(
        arm, title=f"{arm.title}, n = {n}", series=arm.title, x=n, overrides=(*arm.overrides, f"data.limit={n}")
    )


def _after_rounds(number: int) -> Arm:
    series = "self-distillation"
    if number == 0:  # the further pre-trained model
        return Arm("t = 0", "pretrain", x=0, series=series)
    return Arm(f"t = {number}", "distill", (f"distill.rounds={number}",), x=number, series=series)


def _after_steps(number: int) -> Arm:
    title, series = f"{number:,} steps", "further pre-training"
    if number == 0:  # plain fine-tuning
        return Arm(title, "init", x=0, series=series)
    return Arm(title, "pretrain", (f"pretrain.steps={number}",), x=number, series=series)


def configured(config: Config, arm: Arm) -> Config:
    """The configuration of an arm.

    Raises:
        UserError: a key or value does not fit.
    """
    overrides = list(arm.overrides)
    if arm.longer != 1:
        length = "steps" if config.pretrain.epochs is None else "epochs"
        overrides.append(f"pretrain.{length}={arm.longer * getattr(config.pretrain, length)}")
    if "finetune.regularizer=recadam" in overrides:
        overrides += recadam_in_proportion(config)
    return config.changed(overrides)


_PUBLISHED = {"t0": (1000, 250), "k": (0.1, 0.5), "gamma": (5000.0,)}  # of RecAdam; the defaults and paper-roberta's


def recadam_in_proportion(config: Config) -> list[str]:
    """RecAdam's schedule in the proportions that its defaults have to 10,000 steps and a rate of 1e-4.

    paper-roberta's are meant for one length of a run, too, and make way likewise.

    Its settings are per step and per rate: left as they are, the task's loss would never count in a short run, and
    the pull would diverge at a high rate. What differs from the default stays.
    """
    given, finetune = config.finetune.recadam, config.finetune
    fitting = {
        "t0": finetune.steps // 10,
        "k": 1000 / finetune.steps,
        "gamma": min(5000.0, 0.5 / finetune.lr) if finetune.lr else 5000.0,
    }
    return [
        f"finetune.recadam.{name}={value}"
        for name, value in fitting.items()
        if getattr(given, name) in _PUBLISHED[name]
    ]
