"""The paper's tables and figures, and the comparison on one's own data, as grids."""

from __future__ import annotations

from string import digits

from sdfast.errors import UserError, nearest
from sdfast.studies.grid import Arm, Axis, Study

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
_SIZES = (1000, 2500, 5000, 10_000, 20_000, 30_000, 40_000, 50_000)
_SHARES = (0, 0.5, 1, 1.5, 2, 2.5, 3)  # 0 to 60,000 of 20,000 steps
_MORE = ("score", "test_loss", "train_loss", "generalisation_gap", "distance")
_LOSSES, _GAPS = ("log_train_loss", "test_loss"), ("generalisation_gap", "distance")
_SD = DISTILLED.title

STUDIES = {
    study.name: study
    for study in (
        Study("table1", "Methods on images", METHODS, _SD, modality="images"),
        Study("table2", "Methods on texts", METHODS, _SD, modality="texts"),
        Study("table3", "Ablations of self-distillation", _ABLATIONS, _FULL.title),
        Study("table4", "Training and test loss", (FURTHER, DISTILLED), _SD, _LOSSES, _LOSSES),
        Study("table5", "Supervised contrastive training", (_SUPCON, FINE_TUNING, FURTHER, DISTILLED), _SD),
        Study("table6", "Weight of the masked auto-encoding loss", _WEIGHTS, _WEIGHTS[0].title),
        Study(
            "figure1",
            "Accuracy against steps of further pre-training",
            (DISTILLED,),
            _SD,
            figure="lines",
            axis=Axis("steps", "steps of further pre-training", _SHARES),
        ),
        Study(
            "figure3",
            "Low resources",
            (FINE_TUNING, FURTHER, DISTILLED),
            _SD,
            figure="lines",
            axis=Axis("limit", "training {rows}", _SIZES),
        ),
        Study(
            "figure4",
            "Rounds of self-distillation",
            (),
            "t = 1",
            figure="lines",
            axis=Axis("rounds", "round of self-distillation, t", (0, 1, 2, 3, 4)),
        ),
        Study(
            "figure5",
            "Generalisation gap and distance from the start",
            (),
            "t = 1",
            (*_GAPS, "score"),
            _GAPS,
            figure="gaps",
            axis=Axis("rounds", "round of self-distillation, t", (0, 1, 2, 3, 4)),
        ),
        Study("compare", "All methods on one's own data", METHODS, FINE_TUNING.title, _MORE, seeds=3),
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
