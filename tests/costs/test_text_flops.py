"""The FLOPs of a step on texts are those that torch counts, and those of RoBERTa-base by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from steps import ONEDNN
from torch.utils.flop_counter import FlopCounterMode

from sdfast.config import Config
from sdfast.costs.ledger import Products
from sdfast.data.order import Batch
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import fresh_mlm
from sdfast.modalities.texts.costs import TextTask, text_flops, text_step
from sdfast.modalities.texts.masking import TokenMasking
from sdfast.modalities.texts.model import TextClassifier, TextShape
from sdfast.modalities.texts.objectives import LabelledTexts, MaskedTexts
from sdfast.models.blocks import TransformerShape, use_attention
from sdfast.objectives.base import Shortcuts
from sdfast.objectives.classification import Classification
from sdfast.objectives.contrastive import SupervisedContrastive, add_projection
from sdfast.objectives.masked import MaskedTraining
from sdfast.objectives.matching import PredictionMatching, WeightMatching
from sdfast.regularizers.r3f import R3F
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank

SHAPE = TextShape("roberta", 50, 40, 1, 1, TransformerShape(12, 3, 2, 20))
SHAPES = [SHAPE, replace(SHAPE, kind="distilbert", types=0), replace(SHAPE, kind="electra", embedding=10)]
LENGTHS = torch.tensor([9, 30, 2, 17])
IDS = torch.randint(5, 50, (58,), generator=torch.Generator().manual_seed(0))
TEXTS = TokenBatch(IDS, LENGTHS)
MASKING = TokenMasking(4, 50, (0, 1, 2, 4), rate=0.4)


def config_of(on: bool, **more: Any) -> Config:
    """The settings of a step."""
    distill = {name: more[name] for name in ("tokens", "layer") if name in more}
    distill |= {"mae_weight": float(more.get("mlm", True)), "weight": float(more.get("distill", True))}
    distill["match"] = {"weights": "weights-l2"}.get(more.get("match", "features"), more.get("match", "features"))
    distill["predictions"] = {"patches": more.get("compared", "all")}
    finetune: dict[str, Any] = {"regularizer": "r3f"} if more.get("passes") == 2 else {}
    if "projection" in more:
        finetune = {"objective": "supcon", "supcon": {"projection": more["projection"]}}
    engine = dict.fromkeys(("packed", "cls_tail", "masked_tail"), on)
    teacher = {"mode": more.get("teacher", "bank")}
    return Config.model_validate({"distill": distill, "finetune": finetune, "teacher": teacher, "engine": engine})


def objective_of(stage: Any, shortcuts: Shortcuts, more: dict[str, Any]) -> Any:
    """Made by hand, to compare with."""
    if stage == "finetune":
        classifier, labels = TextClassifier(SHAPE, more["classes"]), torch.arange(4) % 5
        if "projection" in more:
            add_projection(classifier, more["projection"], 0)
            return SupervisedContrastive(classifier, LabelledTexts(), labels, 0.1, shortcuts)
        return Classification(
            classifier, LabelledTexts(), labels, shortcuts, R3F() if more.get("passes") == 2 else None
        )
    module = fresh_mlm(SHAPE, 0)
    layer: Any = more.get("layer", "last")
    tokens: Any = more.get("tokens", "cls")
    teacher: Any = None
    mlm, distil = float(more.get("mlm", True)), float(more.get("distill", True))
    match = more.get("match", "features") if stage == "distill" and distil else "features"
    masked = MaskedTexts(lambda rows: (IDS, LENGTHS), MASKING)
    if match in ("predictions", "weights"):
        mine = (module, masked, 3)
        own: Any = {"mae_weight": mlm, "shortcuts": shortcuts}
        if match == "weights":
            return WeightMatching(*mine, fresh_mlm(SHAPE, 1), "l2", **own)
        teacher = fresh_mlm(SHAPE, 1)
        use_attention(teacher, "reference")
        return PredictionMatching(*mine, teacher, compared=more.get("compared", "all"), **own)
    if stage == "distill":
        rows = len(IDS) if tokens == "all" else len(LENGTHS)
        teacher = ResidentBank(torch.zeros(rows, 12), None, torch.arange(rows)[None])
        teacher.targets = lambda inputs, rows, epoch: type(teacher).targets(
            teacher, inputs, torch.arange(len(teacher.features)), epoch
        )
        if more.get("teacher") == "live":
            teacher = LiveTeacher(module.encoder, tokens, layer)
            use_attention(teacher, "reference")
    return MaskedTraining(
        module,
        masked,
        3,
        teacher,
        tokens,
        layer,
        head_only=stage == "head",
        shortcuts=shortcuts,
        mae_weight=mlm,
        weight=distil,
    )


def in_place_flops(into: Any, x: Any, y: Any, out_shape: Any = None, **more: Any) -> int:
    """Of a product that is added in place, which torch does not count: x [rows, inner], y [inner, columns]."""
    return 2 * x[0] * x[1] * y[1]


NOT_COUNTED = {**ONEDNN, torch.ops.aten.addmm_: in_place_flops}
CASES: list[tuple[Any, dict[str, Any]]] = [
    ("head", {}),
    ("pretrain", {}),
    ("distill", {}),
    ("distill", {"teacher": "live"}),
    ("distill", {"tokens": "all"}),
    ("distill", {"tokens": "all", "teacher": "live"}),
    ("distill", {"mlm": False}),
    ("distill", {"layer": 1, "teacher": "live"}),
    ("distill", {"distill": False, "teacher": "live"}),
    ("distill", {"match": "predictions"}),
    ("distill", {"match": "predictions", "compared": "masked"}),
    ("distill", {"match": "predictions", "mlm": False}),
    ("distill", {"match": "predictions", "compared": "masked", "mlm": False}),
    ("distill", {"match": "predictions", "distill": False}),
    ("distill", {"match": "weights"}),
    ("finetune", {"classes": 5}),
    ("finetune", {"classes": 5, "passes": 2}),
    ("finetune", {"classes": 5, "projection": 7}),
]


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize(("stage", "more"), CASES)
def test_the_step_is_what_torch_counts(stage: Any, more: dict[str, Any], on: bool) -> None:
    task = TextTask(stage, config_of(on, **more), SHAPE, more.get("classes", 0))
    objective = objective_of(stage, Shortcuts(packed=on, cls_tail=on, masked_tail=on), more)
    use_attention(objective.module, "reference")
    batch = Batch(0, torch.arange(4))
    drawn = objective.draw(batch)
    masked = [] if drawn is None else drawn.counts.tolist()
    with FlopCounterMode(display=False, custom_mapping=NOT_COUNTED) as counted:
        objective.loss(TEXTS, batch, drawn, slice(0, 4))["loss"].backward()
    # of the contrastive loss, which is not counted: all products of projections, forward and twice backward
    compared = 3 * 2 * 8**2 * more.get("projection", 0)
    assert text_flops(task, LENGTHS.tolist(), masked).step == counted.get_total_flops() - compared


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_the_polynomial_is_that_of_every_length(shape: TextShape) -> None:
    """What two to four tokens say of a text is what is counted of long ones."""
    for stage, more in CASES:
        if "projection" in more:  # whose loss is not counted
            continue
        task = TextTask(stage, config_of(True, **more), shape, 5)
        step = text_step(task, [9, 30, 17], [2, 7, 3] if stage != "finetune" else [])
        with Products() as products:
            use_attention(step.objective.module, "reference")
            if step.teacher is not None:
                use_attention(step.teacher, "reference")
            step.loss().backward()
        assert text_flops(task, [9, 30, 17], [2, 7, 3]).step == products.flops


def test_narrow_embeddings() -> None:
    """ELECTRA's words have a width of their own: a layer more before the blocks, a narrower head behind them."""

    def of(shape: TextShape) -> float:
        return text_flops(TextTask("pretrain", Config(), shape), [30], [7]).step

    electra = SHAPES[-1]
    wide, narrow = 7 * (12 * 12 + 12 * 50), 7 * (12 * 10 + 10 * 50) + 30 * 10 * 12
    assert of(electra) - of(SHAPE) == 3 * 2 * (narrow - wide)


def test_roberta_base() -> None:
    """GFLOP of a text of 128 tokens, by the published number of weights: 85.05 million in the blocks' matrices."""
    shape = TextShape("roberta", 50265, 514, 1, 1, TransformerShape(768, 12, 12, 3072), 1e-5)
    weights, products = 12 * 12 * 768 * 768, 12 * 2 * 128 * 768

    def of(masked_tail: bool) -> float:
        config = Config.model_validate({"engine": {"masked_tail": masked_tail}})
        return text_flops(TextTask("pretrain", config, shape), [128], [19]).step

    head = 2 * 128 * (768 * 768 + 768 * 50265)
    assert of(False) == 3 * (2 * 128 * (weights + products) + head)
    left_out = 2 * 109 * (10 * 768 * 768 + 2 * 128 * 768)
    assert of(False) - of(True) == 3 * (left_out + head - head * 19 // 128)
