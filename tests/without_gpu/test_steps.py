"""A step of every stage on a GPU that is not there: nothing waits for it, nothing is copied, all products are bf16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_launches import CALLS, Recorder, launch
from pretended_steps import CLASSES, Step, take_step
from torch import Tensor

from sdfast.ops import registry

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by copies of teachers

# Places that copy from the CPU within a step, without waiting. A static step's inputs are moved before it.
BEFORE = {"engine.graph.<lambda>"}
MASK = {"modalities.images.masking.seen_on", "modalities.images.objectives._predict"}
PADDED = {"ops.attention.sdpa._places", "ops.attention.sdpa._padded"}
RAGGED = {"ops.attention.groups._offsets"}
WORDS = {"modalities.texts.model.embed"}  # places of the tokens
MASKED_WORDS = WORDS | {"modalities.texts.batch.to", "modalities.texts.objectives._labels"}
TAIL = {"modalities.texts.model.rows"}  # the tokens that ask
WEIGHED = [f"finetune.class_weights={[1 + each % 7 for each in range(CLASSES)]}", "finetune.label_smoothing=0.1"]
BANK = {"teacher.targets.targets"}

IMAGES: dict[str, tuple[str, list[str], set[str]]] = {
    "new decoder": ("head", [], BEFORE),
    "pretrain": ("pretrain", [], BEFORE),
    "pretrain, sdpa": ("pretrain", ["engine.attention=sdpa"], BEFORE),
    "pretrain, Bernoulli masks": ("pretrain", ["pretrain.mask=bernoulli"], MASK),
    "pretrain, crops": ("pretrain", ["pretrain.augment=crop"], MASK | {"modalities.images.augment.<genexpr>"}),
    "distill with a bank": ("distill", [], BEFORE),
    "distill with a live teacher": ("distill", ["teacher.mode=live"], BEFORE),
    "distill, patches": ("distill", ["distill.tokens=patch"], BEFORE),
    "distill, all tokens, int8 bank": ("distill", ["distill.tokens=all", "teacher.dtype=int8"], BEFORE),
    "distill, CLS inside a longer row": ("distill", ["engine.cls_tail=false"], BEFORE),
    "distill, all patches predicted": ("distill", ["engine.masked_tail=false"], BEFORE),
    "distill, two passes": ("distill", ["engine.packed=false"], BEFORE),
    "distill, checkpointed": ("distill", ["engine.activation_checkpointing=true"], BEFORE),
    "distill, micro-batches": ("distill", ["engine.accumulate=2"], MASK | BANK),
    "distill, predictions": ("distill", ["distill.match=predictions"], BEFORE),
    "distill, weights": ("distill", ["distill.match=weights-l2"], BEFORE),
    "distill, rows of weights": ("distill", ["distill.match=weights-mars"], BEFORE),
    "finetune": ("finetune", [], BEFORE),
    "finetune, weights of classes": ("finetune", WEIGHED, BEFORE),
    "finetune, R3F": ("finetune", ["finetune.regularizer=r3f"], BEFORE),
    "finetune, R4F": ("finetune", ["finetune.regularizer=r4f"], BEFORE),
    "finetune, RecAdam": ("finetune", ["finetune.regularizer=recadam"], BEFORE),
    "finetune, MARS": ("finetune", ["finetune.regularizer=mars"], BEFORE),
    "finetune, contrastive": ("finetune", ["finetune.objective=supcon"], BEFORE),
}
LIVE_TEXT, ONLY_VARLEN = "teacher.mode=live", "engine.attention=varlen"
TEXTS: dict[str, tuple[str, list[str], set[str]]] = {
    "new head": ("head", [], PADDED | MASKED_WORDS | TAIL),
    "pretrain": ("pretrain", [], PADDED | MASKED_WORDS | TAIL),
    "pretrain, varlen": ("pretrain", [ONLY_VARLEN], RAGGED | MASKED_WORDS | TAIL),
    "pretrain, all words": ("pretrain", ["engine.masked_tail=false"], PADDED | MASKED_WORDS),
    "distill with a bank": ("distill", [], PADDED | MASKED_WORDS | TAIL | BANK),
    "distill, two passes": ("distill", ["engine.packed=false"], PADDED | MASKED_WORDS | TAIL | BANK),
    "distill, live, varlen": ("distill", [LIVE_TEXT, ONLY_VARLEN], RAGGED | MASKED_WORDS | TAIL),
    "distill, live, all tokens": ("distill", [LIVE_TEXT, "distill.tokens=all"], PADDED | MASKED_WORDS | TAIL),
    "distill, predictions": (
        "distill",
        ["distill.match=predictions"],
        PADDED | MASKED_WORDS | {"modalities.texts.objectives.distances"},
    ),
    "distill, weights": ("distill", ["distill.match=weights-l2"], PADDED | MASKED_WORDS | TAIL),
    "finetune": ("finetune", [], PADDED | WORDS | TAIL | {"objectives.classification._seen"}),
    "finetune, weights of classes": (
        "finetune",
        WEIGHED,
        PADDED | WORDS | TAIL | {"objectives.classification._seen", "objectives.classification._divisor"},
    ),
    "finetune, R3F": (
        "finetune",
        ["finetune.regularizer=r3f"],
        PADDED | WORDS | TAIL | {"objectives.classification._seen"},
    ),
    "finetune, contrastive": (
        "finetune",
        ["finetune.objective=supcon"],
        PADDED | WORDS | TAIL | {"objectives.classification._seen"},
    ),
}


def check(step: Step, moved: set[str], contrastive: bool = False) -> None:
    gpu = step.gpu
    assert gpu.faults == []
    assert set(gpu.moved) == moved
    # The contrastive loss compares 128 views by their projections, on purpose in float32.
    assert gpu.wide == ([("mm", (128, 128), (128, 128))] * 3 if contrastive else [])
    assert gpu.narrow > 10
    for value in step.parts.values():
        assert value.shape == () and value.dtype == torch.float32 and value.device.type == "cuda"


def check_launch(step: Step, call: str) -> None:
    """The loss's kernel is launched as it is compiled in tests/ops/test_mae_distill_triton_hopper.py."""
    if registry.why_not("mae_distill", "triton", "cuda") is not None:
        return
    compiled_for = Recorder()
    launch(Recorder(), compiled_for, **CALLS[call].operands)
    assert launches_of(step.loss) == launches_of(compiled_for)


def launches_of(recorder: Recorder) -> list[Any]:
    """Grids and operands; of tensors what a kernel is compiled for, and their sizes."""

    def described(operand: Any) -> Any:
        return (operand.dtype, operand.shape, operand.stride()) if isinstance(operand, Tensor) else operand

    return [(grid, {name: described(each) for name, each in named.items()}) for grid, _, named in recorder.launches]


@pytest.mark.parametrize("name", IMAGES)
def test_a_step_on_images(name: str) -> None:
    stage, overrides, moved = IMAGES[name]
    step = take_step("images", stage, ["engine.attention=varlen", *overrides])
    check(step, moved, contrastive="contrastive" in name)
    if name in CALLS:
        check_launch(step, name)


@pytest.mark.parametrize("name", TEXTS)
def test_a_step_on_texts(name: str) -> None:
    stage, overrides, moved = TEXTS[name]
    step = take_step("texts", stage, ["engine.attention=sdpa", *overrides])
    check(step, moved, contrastive="contrastive" in name)
    if name == "distill with a bank":
        check_launch(step, "distill of texts")
