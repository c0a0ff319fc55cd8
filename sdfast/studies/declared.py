"""The paper's tables and figures, and the comparison on one's own data, as studies.

A study is made of arms, each some configuration keys, and perhaps of an axis along which they are repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import digits
from typing import TYPE_CHECKING, Literal

from sdfast.config import Config, ModalityName
from sdfast.errors import UserError, nearest

if TYPE_CHECKING:
    from sdfast.stages.graph import Start  # which imports torch


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
        kind: `limit` repeats every arm with so many training rows, `labels` with so many labelled ones for fine-tuning
            alone, `lengths` those that pre-train with so many steps of it; `rounds` and `steps` are points of one arm.
        label: of the axis.
        points: the paper's; for `steps` and `lengths` shares of `pretrain.steps`.
        same: what arms have in common that are compared with each other, such as a size; empty where one arm is the
            reference of all.
    """

    kind: Literal["limit", "labels", "rounds", "steps", "lengths"]
    label: str
    points: tuple[float, ...]
    same: str = ""


@dataclass(frozen=True)
class Study:
    """A table or a figure of the paper, or a comparison of one's own.

    Attributes:
        name: on the command line.
        title: one line.
        arms: in the order of the table.
        reference: title of the arm that the others are compared with.
        columns: metrics of the table: keys of `result.json`, `score` for that of the data set, `log_train_loss`.
        figure: how it is drawn; `lengths` has a panel for each tested column.
        tested: columns whose differences are tested in the table; the JSON has all.
        modality: of the data, where it matters.
        axis: see `Axis`.
        seeds: how many where nothing is said.
        more: arms that it has where they are named.
        raw: whether it says what a linear classifier on the raw input of the same rows scores.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    reference: str
    columns: tuple[str, ...] = ("score",)
    tested: tuple[str, ...] = ("score",)
    figure: Literal["dots", "lines", "gaps", "lengths"] = "dots"
    modality: ModalityName | None = None
    axis: Axis | None = None
    seeds: int = 5
    more: tuple[Arm, ...] = ()
    raw: bool = False

    @property
    def of_sizes(self) -> bool:
        """Whether its arms are repeated with several numbers of training rows."""
        return self.axis is not None and self.axis.kind in _SIZE_KEYS

    @property
    def same(self) -> str:
        """What an arm has in common with its reference: see `Axis`."""
        return "" if self.axis is None else self.axis.same

    def size(self, rows: int) -> str:
        """The override by which its arms have so many training rows."""
        assert self.axis is not None
        return f"{_SIZE_KEYS[self.axis.kind]}={rows}"


FINE_TUNING = Arm("fine-tuning", "init")
FURTHER = Arm("further pre-training", "pretrain")
DISTILLED = Arm("self-distillation", "distill")
METHODS = (
    FINE_TUNING,
    Arm("RecAdam", "init", ("finetune.regularizer=recadam",)),
    Arm("MARS", "init", ("finetune.regularizer=mars",)),
    Arm("R3F", "init", ("finetune.regularizer=r3f",)),
    FURTHER,
    DISTILLED,
)
ADAPTERS = (
    Arm("LoRA", "init", ("finetune.method=lora",)),
    Arm("linear probe", "init", ("finetune.method=linear_probe",)),
    Arm("kNN", "init", ("finetune.method=knn",)),
)
_EXPLORA = Arm(  # after ExPLoRA (Khanna et al., 2025), with a rank and norms of our choice
    "LoRA pre-training",
    "pretrain",
    (
        "pretrain.method=lora",
        *(f"pretrain.lora.{each}" for each in ("rank=64", "alpha=64", "norms=true", "full_blocks=1")),
    ),
)
_ALL_TOKENS = Arm("self-distillation (all tokens)", "distill", ("distill.tokens=all",))
_FASTER = ("finetune.method=lora", "finetune.method=linear_probe")
_LR_FACTOR = 10  # of their learning rate
_FULL = Arm("full model", "distill")
_ABLATIONS = (
    _FULL,
    Arm("without L_MAE", "distill", ("distill.mae_weight=0",)),
    Arm("without L_distill", "pretrain"),
    Arm("further pre-train x2", "pretrain", longer=2),
    Arm("prediction matching", "distill", ("distill.match=predictions",)),
    Arm("weight matching (l2)", "distill", ("distill.match=weights-l2",)),
    Arm("weight matching (MARS)", "distill", ("distill.match=weights-mars",)),
)
_SUPCON = Arm("supervised contrastive", "init", ("finetune.objective=supcon",))
_WEIGHTS = tuple(Arm(f"weight {w}", "distill", (f"distill.mae_weight={w}",), x=w) for w in (1.0, 0.5, 0.3, 0.1))
_SIZES = Axis("limit", "training {rows}", (1000, 2500, 5000, 10_000, 20_000, 30_000, 40_000, 50_000), "size")
_LABELS = Axis("labels", "labelled training {rows}", (20, 50, 100, 200, 500, 1000, 2000, 5000), "size")
_SIZE_KEYS = {"limit": "data.limit", "labels": "data.labelled_limit"}
_STEPS = Axis("steps", "steps of further pre-training", (0, 0.5, 1, 1.5, 2, 2.5, 3))  # 0 to 60,000 of 20,000 steps
_LENGTHS = Axis("lengths", "length of pre-training, steps", (1 / 8, 1 / 4, 1 / 2, 1, 2), "length")
_ROUNDS = Axis("rounds", "round of self-distillation, t", (0, 1, 2, 3, 4))
_MORE = ("score", "test_loss", "train_loss", "generalisation_gap", "distance")
_LOSSES, _GAPS = ("log_train_loss", "test_loss"), ("generalisation_gap", "distance")
_SD = DISTILLED.title

STUDIES = {
    study.name: study
    for study in (
        Study("table1", "Methods on images", METHODS, _SD, modality="images", raw=True),
        Study("table2", "Methods on texts", METHODS, _SD, modality="texts", raw=True),
        Study("table3", "Ablations of self-distillation", _ABLATIONS, _FULL.title),
        Study("table4", "Training and test loss", (FURTHER, DISTILLED), _SD, _LOSSES, _LOSSES),
        Study("table5", "Supervised contrastive training", (_SUPCON, FINE_TUNING, FURTHER, DISTILLED), _SD),
        Study("table6", "Weight of the masked auto-encoding loss", _WEIGHTS, _WEIGHTS[0].title),
        Study(
            "figure1", "Accuracy against steps of further pre-training", (DISTILLED,), _SD, figure="lines", axis=_STEPS
        ),
        Study(
            "figure3",
            "Low resources",
            (FINE_TUNING, FURTHER, DISTILLED),
            _SD,
            figure="lines",
            axis=_SIZES,
            raw=True,
        ),
        Study("figure4", "Rounds of self-distillation", (), "t = 1", figure="lines", axis=_ROUNDS),
        Study(
            "figure5",
            "Generalisation gap and distance from the start",
            (),
            "t = 1",
            (*_GAPS, "score"),
            _GAPS,
            figure="gaps",
            axis=_ROUNDS,
        ),
        Study(
            "lengths",
            "Pre-training of several lengths",
            (FINE_TUNING, FURTHER, DISTILLED),
            FURTHER.title,
            _MORE,
            ("score", "test_loss", "distance"),
            figure="lengths",
            axis=_LENGTHS,
            raw=True,
        ),
        Study(
            "labels",
            "Few labels, all rows",
            (FINE_TUNING, FURTHER, DISTILLED),
            _SD,
            figure="lines",
            axis=_LABELS,
            more=(*ADAPTERS, _EXPLORA),
            raw=True,
        ),
        Study(
            "compare",
            "All methods on one's own data",
            (*METHODS[:4], *ADAPTERS, *METHODS[4:]),
            FINE_TUNING.title,
            _MORE,
            seeds=3,
            more=(_ALL_TOKENS, _EXPLORA),
            raw=True,
        ),
    )
}
COST = Study("cost", "What each stage takes", (DISTILLED,), DISTILLED.title, seeds=1)


def study_named(name: str) -> Study:
    """The study of a name.

    Raises:
        UserError: there is none.
    """
    known = {**STUDIES, COST.name: COST}
    if name not in known:
        choose = f"choose {', '.join(known)}"
        kinds = {each.rstrip(digits) for each in known}  # of another number nobody can say which was meant
        hint = f"{choose}." if name.rstrip(digits) in kinds else nearest(name, [*known], choose)
        raise UserError(f"there is no study '{name}'; {hint}")
    return known[name]


def expand(study: Study, config: Config, rows: int, points: Sequence[int] = ()) -> tuple[list[Arm], list[str]]:
    """The arms at all points of the axis, and sentences about points that were left out.

    Args:
        study: which.
        config: of the run, resolved for the data.
        rows: of training, before any limit; for the axis `labels` those that fine-tuning may see.
        points: instead of the axis's own, where there are any; of `steps` and `lengths`, in steps.

    Raises:
        UserError: there are points and no axis, or none that the data set has.
    """
    axis = study.axis
    if axis is None:
        if points:
            raise UserError(f"study {study.name} has no points to choose; leave --points away.")
        return list(study.arms), []
    unit = config.pretrain.steps if axis.kind in ("steps", "lengths") else 1
    wanted = sorted(set(points or (round(point * unit) for point in axis.points)))
    if axis.kind == "steps":
        longer = [
            _point(f"{n:,} steps", FURTHER if n else FINE_TUNING, f"pretrain.steps={n}", n, FURTHER) for n in wanted
        ]
        return [*longer, *study.arms], []
    if axis.kind == "lengths":
        if points and wanted[0] < 1:
            raise UserError(
                f"--points {wanted[0]} is no length of pre-training: give numbers of steps from 1 on. What 0 steps give"
                " is fine-tuning, which the study has without."
            )
        levels = [arm for arm in study.arms if arm.start == "init"]
        return levels + [_of_length(arm, n, config) for n in wanted if n for arm in study.arms if arm not in levels], []
    if axis.kind == "rounds":  # 0 is the further pre-trained model, 1 the reference
        return [
            _point(f"t = {n}", DISTILLED if n else FURTHER, f"distill.rounds={n}", n, DISTILLED)
            for n in sorted({0, 1, *wanted})
        ], []
    kept, kind = [n for n in wanted if 1 <= n <= rows], "labelled training" if axis.kind == "labels" else "training"
    if not kept:
        raise UserError(
            f"none of the sizes {', '.join(map(str, wanted))} is within the {rows} {kind} rows; give some with"
            " --points."
        )
    left_out = []
    if points and len(kept) < len(wanted):
        more = ", ".join(str(n) for n in wanted if n not in kept)
        left_out = [f"Left out, because there are {rows} {kind} rows: {more}."]
    return [_point(f"{arm.title}, n = {n}", arm, study.size(n), n, arm) for n in kept for arm in study.arms], left_out


def _point(title: str, arm: Arm, override: str, x: int, series: Arm) -> Arm:
    """An arm at a point of an axis; at 0 there is nothing to set."""
    overrides = (*arm.overrides, override) if x else arm.overrides
    return replace(arm, title=title, overrides=overrides, x=x, series=series.title)


def _of_length(arm: Arm, steps: int, config: Config) -> Arm:
    """An arm that pre-trains so many steps, and distils as many more or fewer than that as the configuration does.

    Steps, where they are given, take the place of epochs.
    """
    keys = [f"pretrain.steps={steps}"]
    if arm.start == "distill":
        keys.append(f"distill.steps={max(1, round(steps * config.distill.steps / config.pretrain.steps))}")
    title = f"{arm.title} of {steps:,} step{'s' * (steps > 1)}"
    return replace(arm, title=title, overrides=(*arm.overrides, *keys), x=steps, series=arm.title)


def length_note(study: Study, config: Config, epoch: int) -> list[str]:
    """A sentence about what a length is, where the study has several.

    Args:
        study: which.
        config: of the run, resolved for the data.
        epoch: steps of `pretrain` in a pass over its rows.
    """
    if study.axis is None or study.axis.kind != "lengths":
        return []
    share = config.distill.steps / config.pretrain.steps
    own = "as many steps" if share == 1 else f"{share:.3g} times as many steps"
    return [
        f"Lengths are steps of pretrain, {epoch:,} an epoch. Self-distillation of a length has a teacher of that length"
        f" and distils {own}."
    ]


def configured(config: Config, arm: Arm) -> Config:
    """The configuration of an arm.

    Raises:
        UserError: a key or value does not fit.
    """
    overrides = list(arm.overrides)
    if arm.longer != 1:
        length = "steps" if config.pretrain.epochs is None else "epochs"
        overrides.append(f"pretrain.{length}={arm.longer * getattr(config.pretrain, length)}")
    if trains_faster(arm):
        overrides.append(f"finetune.lr={_LR_FACTOR * config.finetune.lr}")
    if "finetune.regularizer=recadam" in overrides:
        overrides += _recadam_in_proportion(config)
    return config.changed(overrides)


def trains_faster(arm: Arm) -> bool:
    """Whether an arm fine-tunes so few weights that they get a higher learning rate than all would."""
    return any(override in _FASTER for override in arm.overrides)


def rate_note(config: Config, arms: Sequence[Arm]) -> list[str]:
    """A sentence about arms whose learning rate is not the run's, where there are any."""
    titles = list(dict.fromkeys(arm.series or arm.title for arm in arms if trains_faster(arm)))
    if not titles:
        return []
    rate = f"{_LR_FACTOR * config.finetune.lr:g}, {_LR_FACTOR} times finetune.lr, as few weights are trained"
    return [f"Learning rate of {' and '.join(titles)}: {rate}."]


_PUBLISHED = {"t0": (1000, 250), "k": (0.1, 0.5), "gamma": (5000.0,)}  # of RecAdam; the defaults and paper-roberta's


def _recadam_in_proportion(config: Config) -> list[str]:
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
