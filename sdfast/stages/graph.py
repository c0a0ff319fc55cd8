"""Stages as data: which there are, and what each needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdfast.context import Context, Kind

Start = Literal["distill", "pretrain", "init"]


@dataclass(frozen=True, eq=False)
class Stage:
    """One training, and those whose results it needs; it is equal to itself alone.

    Attributes:
        kind: what is done.
        folder: its name in a run directory.
        start: the stage whose weights it starts from; the model as given when None.
        teacher: of distill, the stage whose model is matched.
        round: of distill, from 1; 0 hands the teacher on as it is.
        seed: of finetune; of the others it is the run's.
    """

    kind: Kind
    folder: str
    start: Stage | None = None
    teacher: Stage | None = None
    round: int | None = None
    seed: int | None = None

    @property
    def needs(self) -> list[Stage]:
        """Those whose models it is made from."""
        return [stage for stage in (self.start, self.teacher) if stage is not None]

    def chain(self) -> list[Stage]:
        """All that it needs, each once and after what it needs itself; it is the last."""
        found: dict[Stage, None] = {}
        ahead = [self]
        while ahead:  # a thousand rounds are deeper than Python calls itself
            missing = [need for need in ahead[-1].needs if need not in found]
            if missing:
                ahead += reversed(missing)
            else:
                found[ahead.pop()] = None
        return list(found)


def head(context: Context) -> Stage | None:
    """The training of a newly made decoder or language-model head; None where there is none."""
    return Stage("head", "head") if context.modality.head_steps(context.config, context.model) else None


def pretraining(context: Context) -> Stage:
    """Further pre-training: theta_init -> theta_0, the teacher."""
    return Stage("pretrain", "pretrain", head(context))


def distillation(context: Context, rounds: int | None = None) -> Stage:
    """Self-distillation: each round starts again from theta_init and matches the previous model (Algorithm 1).

    Args:
        context: of the run.
        rounds: after which the model is wanted, the further pre-trained one after 0; all of the configuration when
            None, where one without any hands the further pre-trained model on.
    """
    last, stage = context.config.distill.rounds, pretraining(context)
    if rounds is None and last == 0:
        return Stage("distill", "distill", teacher=stage, round=0)
    for number in range(1, (last if rounds is None else rounds) + 1):
        folder = "distill" if number == last else f"distill/round-{number}"
        stage = Stage("distill", folder, stage.start, stage, number)
    return stage


def finetuning(
    context: Context, start: Start | None = None, seed: int | None = None, folder: str = "finetune"
) -> Stage:
    """Training of the classifier.

    Args:
        context: of the run.
        start: what it starts from; the configuration's `finetune.start` when None.
        seed: of this fine-tuning alone; the run's when None.
        folder: in a run directory.
    """
    before = {"init": lambda _: None, "pretrain": pretraining, "distill": distillation}
    seed = context.config.seed if seed is None else seed
    return Stage("finetune", folder, before[start or context.config.finetune.start](context), seed=seed)
