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
        packed: the masked and the clean view go through the encoder together, which changes no FLOP.
        cls_tail: the last block of the clean view computes for the first token, where only that is needed, nothing but
            keys and values for the others. (A live teacher always does so.)
        masked_tail: the last block of the masked view does so for the masked tokens, and the language-model head is
            computed for those alone.
        mlm: whether the masked-token loss has a weight.
        distill: whether the representation loss has a weight.
        match: what of the teacher `distill` matches.
        compared: tokens whose predictions are matched, with `match="predictions"`.
        classes: outputs of the classifier.
        passes: of `finetune`, how often an embedded text goes through the encoder (R3F: twice).
        projection: outputs of the contrastive projection; 0 without it. With it there are two views of a text.
    """

    shape: TextShape
    stage: Literal["head", "pretrain", "distill", "finetune"]
    tokens: Literal["cls", "all"] = "cls"
    layer: int | None = None
    teacher: Literal["bank", "live"] = "bank"
    packed: bool = True
    cls_tail: bool = True
    masked_tail: bool = True
    mlm: bool = True
    distill: bool = True
    match: Literal["features", "predictions", "weights"] = "features"
    compared: Literal["all", "masked"] = "all"
    classes: int = 0
    passes: int = 1
    projection: int = 0

    @property
    def matched(self) -> Literal["features", "predictions", "weights"] | None:
        """What of the teacher has a weight in the loss."""
        return self.match if self.stage == "distill" and self.distill else None

    @property
    def masked_words(self) -> bool:
        """Whether masked words are predicted, and counted in the loss."""
        return self.stage in ("head", "pretrain") or (self.stage == "distill" and self.mlm)

    @property
    def masked_view(self) -> bool:
        """Whether the encoder sees the masked texts."""
        return self.masked_words or self.matched == "predictions"

    @property
    def clean_view(self) -> bool:
        """Whether the encoder sees the texts as they are."""
        return self.stage == "finetune" or self.matched == "features"

    @property
    def all_predicted(self) -> bool:
        """Whether the words of all tokens are predicted, to be matched."""
        return self.matched == "predictions" and self.compared == "all"

    @property
    def first_only(self) -> bool:
        """Whether the last block of the clean view has queries for the first tokens only."""
        return self.cls_tail and (self.stage == "finetune" or self.tokens == "cls")

    @property
    def live_teacher(self) -> bool:
        """Whether a teacher sees the texts too."""
        return self.matched == "features" and self.teacher == "live"

    @property
    def banked(self) -> bool:
        """Whether the teacher's features are read from a bank."""
        return self.matched == "features" and self.teacher == "bank"


def text_step_flops(step: TextStepSpec, lengths: Sequence[int], masked: Sequence[int] = ()) -> StepFlops:
    """The FLOPs of one batch's training step.

    Args:
        step: what is computed.
        lengths: tokens of each text.
        masked: masked tokens of each text; not for `finetune`.
    """
    shape, width = step.shape, step.shape.encoder.width
    first, matched = [1] * len(lengths), step.matched
    forward: dict[Part, int] = {}
    asking = masked if step.masked_tail and not step.all_predicted else lengths
    predictions = sum(asking) if matched == "predictions" else 0
    if step.masked_view:
        forward["masked encoder"] = _encoder(shape, None, lengths, asking)
        of_masked = sum(masked if step.masked_tail else lengths) if step.masked_words else 0
        words = (of_masked + predictions) * shape.vocabulary
        forward["language-model head"] = 2 * width * (sum(asking) * width + words)
    if step.clean_view:
        layer = step.layer if step.stage == "distill" else None
        forward["clean encoder"] = _encoder(shape, layer, lengths, first if step.first_only else lengths)
    if step.stage == "finetune":
        passes = 2 if step.projection else step.passes
        forward["clean encoder"] *= passes
        forward["classifier"] = 2 * passes * len(lengths) * width * (width + step.classes)
        if step.projection:
            forward["projection"] = 2 * passes * len(lengths) * width * (width + step.projection)
    backward = {part: 2 * count for part, count in forward.items()}
    if step.stage == "head":  # its layer has no gradient to its input, the frozen word embeddings none
        backward = {"language-model head": forward["language-model head"]}
    if step.projection and step.stage == "finetune":  # the classifier's first layer has no gradient to its input
        backward["classifier"] -= 2 * 2 * len(lengths) * width * width
    if step.live_teacher:
        forward["teacher"] = _encoder(shape, step.layer, lengths, first if step.tokens == "cls" else lengths)
    if matched == "predictions":
        head = 2 * width * predictions * (width + shape.vocabulary)
        forward["teacher"] = _encoder(shape, None, lengths, asking) + head
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
