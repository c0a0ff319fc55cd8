"""What the two calls measure, in order, with each task's share of the time: the most valuable number comes first.

A card is at hand for minutes. Call 1 is first contact: that everything works, and the step that matters most. Call 2
comes after repairs, and measures everything else. A task may take longer than its share as long as the call's time
reaches; what one does not need, the later ones have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

WORK = {1: 225.0, 2: 390.0}  # seconds that a call's shares add up to at most
DEADLINES = {1: 280.0, 2: 410.0}  # seconds after its begin at which a call ends, whatever is left
START = 10.0  # seconds of a call until its first task: imports and the first model
MAIN, PRETRAIN, FINETUNE = ((stage, "ViT-B/16", 64) for stage in ("distill", "pretrain", "finetune"))
LARGE = [("distill", "ViT-B/16", 256), ("distill", "ViT-L/16", 64)]


@dataclass(frozen=True)
class Task:
    """A part, or some of its rows, in a process of its own.

    Attributes:
        part: the module of `gpu_parts`.
        share: seconds that it is expected to take.
        what: which rows; see the part.
        limit: seconds after which it is stopped; None is twice its share and ten.
        beside: tasks in a row with the same word run at the same time.
    """

    part: str
    share: float
    what: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None
    beside: str = ""

    @property
    def most(self) -> float:
        """Seconds after which it is stopped."""
        return 2 * self.share + 10 if self.limit is None else self.limit

    def __str__(self) -> str:
        return " ".join([self.part, *(str(value) for value in self.what.values())])


def step(where: tuple[str, str, int], arm: str, share: float, run: int = 1, limit: float | None = None) -> Task:
    """An arm of a step; see gpu_parts/arms.py."""
    stage, model, batch = where
    return Task("steps", share, {"stage": stage, "model": model, "batch": batch, "arm": arm, "run": run}, limit)


def ahead(where: tuple[str, str, int], arms: Iterable[str], group: str, share: float) -> list[Task]:
    """First steps of arms, side by side: what they compile is found by those that are timed later."""
    stage, model, batch = where
    what = [{"stage": stage, "model": model, "batch": batch, "arm": arm} for arm in arms]
    return [Task("compile", 0 if number else share, each, 70, group) for number, each in enumerate(what)]


def headline() -> list[Task]:
    """The step that matters most: twice in turn, each time in a new process."""
    return [step(MAIN, arm, 8, run) for run in (1, 2) for arm in ("sdfast", "honest compiled")]


def first_contact() -> list[Task]:
    """Call 1."""
    tiny = ("pretrain", "distill", "finetune", "text pretrain", "text distill", "text finetune")
    pair = ("sdfast", "honest compiled")
    return [
        Task("environment", 4),
        Task("library", 4, limit=75),  # where it has to be built: the later tasks give up their time for it
        *(Task("contact", 0, {"stage": stage}, 40, "first steps") for stage in tiny),
        *ahead(MAIN, pair, "first steps", 40),
        *ahead(PRETRAIN, pair, "first steps", 0),
        Task("tests", 30, limit=50),
        Task("ceilings", 7),
        *headline(),
        step(MAIN, "sdfast, no CUDA graph", 8),
        step(MAIN, "sdfast not compiled", 8),
        step(PRETRAIN, "sdfast", 8),
        step(PRETRAIN, "honest compiled", 8),
        step(PRETRAIN, "sdfast, no CUDA graph", 8),
        step(PRETRAIN, "sdfast not compiled", 8),
        Task("profile", 12, {"arm": "sdfast"}),
        *(Task("attention", 13, {"head_width": width}) for width in (64, 32)),
    ]


def after_repairs() -> list[Task]:
    """Call 2."""
    pair = ("sdfast", "honest compiled")
    variants = ("sdfast, sdpa", "sdfast, separate views", "sdfast, no shortcuts")
    return [
        Task("environment", 3),
        Task("library", 3, limit=75),
        *ahead(MAIN, (*pair, *variants), "distill", 36),
        Task("ceilings", 7),
        *headline(),
        step(MAIN, "naive", 8),
        step(MAIN, "sdfast, varlen", 8),
        *(step(MAIN, arm, 8) for arm in variants),
        step(MAIN, "sdfast live teacher", 9),
        *ahead(PRETRAIN, pair, "others", 24),
        *ahead(FINETUNE, pair, "others", 0),
        *(step(where, arm, 8) for where in (PRETRAIN, FINETUNE) for arm in pair),
        step(MAIN, "honest compiled whole", 36),
        *(step(where, arm, 15) for where in LARGE for arm in pair),
        Task("trajectories", 17),
        Task("losses", 19),
        Task("text", 14, {"arm": "sdfast", "dropout": 0.0}),
        Task("text", 5, {"arm": "honest", "dropout": 0.0}),
        Task("text", 5, {"arm": "sdfast", "dropout": 0.1}),
        Task("zero", 17, limit=60),
        Task("agreement", 4, limit=90),  # as far as the time reaches
    ]


def call(number: int, quick: bool = False) -> list[Task]:
    """A call's tasks; quick, of tiny models, each once."""
    tasks = first_contact() if number == 1 else after_repairs()
    return list(once(map(small, tasks))) if quick else tasks


def small(task: Task) -> Task:
    """The same on the tiny model."""
    if "model" not in task.what:
        return task
    return replace(task, what={**task.what, "model": "tiny", "batch": 4})


def once(tasks: Iterable[Task]) -> Iterable[Task]:
    """Without those that measure what an earlier one does; a second run of an arm stays."""
    seen: list[tuple[str, dict[str, Any]]] = []
    for task in tasks:
        if (task.part, task.what) not in seen:
            seen.append((task.part, task.what))
            yield task


def chosen(number: int | None, quick: bool, only: Iterable[str] | None) -> list[Task]:
    """The tasks of a call, or of both; with `only` those of the named parts (and what is measured on) alone."""
    tasks = [task for each in ([number] if number else (1, 2)) for task in call(each, quick)]
    if only is None:
        return tasks
    wanted = {"environment", *only}
    return [task for task in once(tasks) if task.part in wanted]


PARTS = tuple(dict.fromkeys(task.part for number in (1, 2) for task in call(number)))
