"""How much arithmetic a training step on texts is: exact matrix-multiplication FLOPs of one batch, by part.

The convention is that of `sdfast.models.flops`. Embeddings are looked up, which is no arithmetic. As texts differ in
length, and their masks in number, a batch is counted and not a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sdfast.models.flops import Part, StepFlops
from sdfast.models.text import TextShape


@dataclass(frozen=True)
class TextStepSpec:
    """What decides the arithmetic of a training step on texts.

    Attributes:
        shape: of the model.
        stage: its name; `head` trains the language-model head alone.
        tokens: of the clean view, those matched by `distill`.
        layer: blocks before the matched features; None for all.
        teacher: `live` runs beside the student, `bank` is read.
        cls_tail: the last block of the clean view computes for the first token, where only that is needed, nothing but
            keys and values for the others. (A live teacher always does so.)
        masked_tail: the last block of the masked view does so for the masked tokens, and the language-model head is
            computed for those alone.
        mlm: whether the masked-token loss has a weight.
        distill: whether the representation loss has a weight.
        classes: outputs of the classifier.
    """

    shape: TextShape
    stage: Literal["head", "pretrain", "distill", "finetune"]
    tokens: Literal["cls", "all"] = "cls"
    layer: int | None = None
    teacher: Literal["bank", "live"] = "bank"
    cls_tail: bool = True
    masked_tail: bool = True
    mlm: bool = True
    distill: bool = True
    classes: int = 0


def text_step_flops(step: TextStepSpec, lengths: Sequence[int], masked: Sequence[int] = ()) -> StepFlops:
    """The FLOPs of one batch's training step.

    Args:
        step: what is computed.
        lengths: tokens of each text.
        masked: masked tokens of each text; not for `finetune`.
    """
    shape, width = step.shape, step.shape.encoder.width
    first = [1] * len(lengths)
    forward: dict[Part, int] = {}
    if step.stage in ("head", "pretrain") or (step.stage == "distill" and step.mlm):
        asking = masked if step.masked_tail else lengths
        forward["masked encoder"] = _encoder(shape, None, lengths, asking)
        forward["language-model head"] = 2 * sum(asking) * width * (width + shape.vocabulary)
    if step.stage == "finetune" or (step.stage == "distill" and step.distill):
        only_first = step.cls_tail and (step.stage == "finetune" or step.tokens == "cls")
        layer = step.layer if step.stage == "distill" else None
        forward["clean encoder"] = _encoder(shape, layer, lengths, first if only_first else lengths)
    if step.stage == "finetune":
        forward["classifier"] = 2 * len(lengths) * width * (width + step.classes)
    backward = {part: 2 * count for part, count in forward.items()}
    if (
        step.stage == "head"
    ):  # its linear layer needs no gradient of the input, the frozen word embeddings none of weights
        backward = {"language-model head": forward["language-model head"]}
    if step.stage == "distill" and step.distill and step.teacher == "live":
        forward["teacher"] = _encoder(shape, step.layer, lengths, first if step.tokens == "cls" else lengths)
    return StepFlops(forward, backward)


def _encoder(shape: TextShape, layer: int | None, lengths: Sequence[int], asking: Sequence[int]) -> int:
    """All blocks, or so many; the last one for so many tokens of each text."""
    depth = shape.encoder.depth if layer is None else layer
    return (depth - 1) * _block(shape, lengths, lengths) + _block(shape, lengths, asking)


def _block(shape: TextShape, lengths: Sequence[int], asking: Sequence[int]) -> int:
    """A block whose keys and values are of all tokens, and whose queries are of some."""
    width, tokens, queries = shape.encoder.width, sum(lengths), sum(asking)
    keys_and_values = 2 * tokens * width * 2 * width
    products = 2 * 2 * width * sum(some * length for some, length in zip(asking, lengths, strict=True))
    query_projection_mlp = 2 * queries * width * 2 * (width + shape.encoder.mlp_width)
    return keys_and_values + products + query_projection_mlp
