"""The FLOPs of a step on texts are those that torch counts, and those of RoBERTa-base by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_flops import ONEDNN
from torch.utils.flop_counter import FlopCounterMode

from sdfast.data.masking import TokenMasking
from sdfast.data.order import Batch
from sdfast.data.text_batch import TokenBatch
from sdfast.models.blocks import TransformerShape, use_attention
from sdfast.models.text import TextClassifier, TextShape
from sdfast.models.text_checkpoint import fresh_mlm
from sdfast.models.text_flops import TextStepSpec, text_step_flops
from sdfast.objectives.base import Shortcuts
from sdfast.objectives.classification import Classification
from sdfast.objectives.contrastive import SupervisedContrastive, add_projection
from sdfast.objectives.masked import MaskedTraining
from sdfast.objectives.matching import PredictionMatching, WeightMatching
from sdfast.objectives.texts import LabelledTexts, MaskedTexts
from sdfast.regularizers.r3f import R3F
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank

SHAPE = TextShape("roberta", 50, 40, 1, 1, TransformerShape(12, 3, 2, 20))
LENGTHS = torch.tensor([9, 30, 2, 17])
IDS = torch.randint(5, 50, (58,), generator=torch.Generator().manual_seed(0))
TEXTS = TokenBatch(IDS, LENGTHS)
MASKING = TokenMasking(4, 50, (0, 1, 2, 4), rate=0.4)


def objective_of(step: TextStepSpec, shortcuts: Shortcuts) -> Any:
    if step.stage == "finetune":
        classifier, labels = TextClassifier(SHAPE, step.classes), torch.arange(4) % 5
        if step.projection:
            add_projection(classifier, step.projection, 0)
            return SupervisedContrastive(classifier, LabelledTexts(), labels, 0.1, shortcuts)
        return Classification(classifier, LabelledTexts(), labels, shortcuts, R3F() if step.passes == 2 else None)
    module = fresh_mlm(SHAPE, 0)
    layer: Any = step.layer or "last"
    teacher: Any = None
    masked = MaskedTexts(lambda rows: (IDS, LENGTHS), MASKING)
    if step.matched in ("predictions", "weights"):
        mine = (module, masked, 3)
        mlm: Any = {"mae_weight": float(step.mlm), "shortcuts": shortcuts}
        if step.match == "weights":
            return WeightMatching(*mine, fresh_mlm(SHAPE, 1), "l2", **mlm)
        teacher = fresh_mlm(SHAPE, 1)
        use_attention(teacher, "reference")
        return PredictionMatching(*mine, teacher, compared=step.compared, **mlm)
    if step.stage == "distill":
        rows = len(IDS) if step.tokens == "all" else len(LENGTHS)
        teacher = ResidentBank(torch.zeros(rows, 12), None, torch.arange(rows)[None])
        teacher.targets = lambda inputs, rows, epoch: type(teacher).targets(
            teacher, inputs, torch.arange(len(teacher.features)), epoch
        )
        if step.teacher == "live":
            teacher = LiveTeacher(module.encoder, step.tokens, layer)
            use_attention(teacher, "reference")
    weights = {"mae_weight": float(step.mlm), "weight": float(step.distill)}
    return MaskedTraining(
        module,
        masked,
        3,
        teacher,
        step.tokens,
        layer,
        head_only=step.stage == "head",
        shortcuts=shortcuts,
        **weights,
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
    step = TextStepSpec(SHAPE, stage, cls_tail=on, masked_tail=on, **more)
    objective = objective_of(step, Shortcuts(packed=on, cls_tail=on, masked_tail=on))
    use_attention(objective.module, "reference")
    batch = Batch(0, torch.arange(4))
    drawn = objective.draw(batch)
    masked = [] if drawn is None else drawn.counts.tolist()
    flops = text_step_flops(step, LENGTHS.tolist(), masked)
    with FlopCounterMode(display=False, custom_mapping=NOT_COUNTED) as counted:
        objective.loss(TEXTS, batch, drawn, slice(0, 4))["loss"].backward()
    # of the contrastive loss, which is not counted: all products of projections, forward and twice backward
    compared = 3 * 2 * 8**2 * step.projection
    assert flops.total == counted.get_total_flops() - compared
    assert flops.total == sum(flops.of(part) for part in flops.forward)
    assert min(flops.forward.values()) > 0


def test_roberta_base() -> None:
    """GFLOP of a text of 128 tokens, by the published number of weights: 85.05 million in the blocks' matrices."""
    shape = TextShape("roberta", 50265, 514, 1, 1, TransformerShape(768, 12, 12, 3072), 1e-5)
    weights, products = 12 * 12 * 768 * 768, 12 * 2 * 128 * 768
    dense = text_step_flops(TextStepSpec(shape, "pretrain", masked_tail=False), [128], [19])
    assert dense.forward["masked encoder"] == 2 * 128 * (weights + products)
    assert dense.forward["language-model head"] == 2 * 128 * (768 * 768 + 768 * 50265)
    sparse = text_step_flops(TextStepSpec(shape, "pretrain"), [128], [19])
    assert sparse.forward["language-model head"] * 128 == dense.forward["language-model head"] * 19
    left_out = 2 * 109 * (10 * 768 * 768 + 2 * 128 * 768)
    assert dense.forward["masked encoder"] - sparse.forward["masked encoder"] == left_out
    assert sparse.backward == {part: 2 * count for part, count in sparse.forward.items()}
