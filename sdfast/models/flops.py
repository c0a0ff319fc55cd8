"""How much arithmetic a training step is: exact matrix-multiplication FLOPs of one image, by part.

The convention: a multiply-add is 2 FLOPs; linear layers, the patch embedding and both products of attention are
counted; norms, softmax, GELU, biases, the loss and the optimiser are not. The backward pass is twice the forward pass,
except that the patch embedding has no gradient with respect to the pixels (once its forward). A live teacher has no
backward pass. Counted is what is computed: rows that a shortcut leaves out are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sdfast.models.vit import TransformerShape, ViTShape

Part = Literal[
    "patch embedding",
    "masked encoder",
    "clean encoder",
    "teacher",
    "decoder",
    "pixel head",
    "classifier",
    "language-model head",
]


@dataclass(frozen=True)
class StepSpec:
    """What decides the arithmetic (and the memory) of one image's training step.

    Attributes:
        shape: of the model.
        stage: `pretrain`, `distill` or `finetune`.
        visible: patches that the masked view shows (padding included).
        masked: patches that are hidden (padding included).
        tokens: of the clean view, those matched by `distill`.
        layer: blocks before the matched features; None for all.
        teacher: `live` runs beside the student, `bank` is read.
        packed: patches are embedded once for both views; else the masked view embeds its visible ones again.
        cls_tail: the last encoder block of the clean view has queries for the CLS token only, where only it is needed.
        masked_tail: the last decoder block has queries for the masked patches only, and so has the pixel head.
        mae: whether the masked auto-encoding loss has a weight.
        distill: whether the representation loss has a weight.
        classes: outputs of the classifier.
        passes: of `finetune`, how often an embedded image goes through the encoder (R3F: twice).
    """

    shape: ViTShape
    stage: Literal["pretrain", "distill", "finetune"]
    visible: int = 0
    masked: int = 0
    tokens: Literal["cls", "patch", "all"] = "cls"
    layer: int | None = None
    teacher: Literal["bank", "live"] = "bank"
    packed: bool = False
    cls_tail: bool = False
    masked_tail: bool = False
    mae: bool = True
    distill: bool = True
    classes: int = 0
    passes: int = 1

    @property
    def masked_view(self) -> bool:
        """Whether the encoder sees the visible patches, and the decoder fills in the others."""
        return self.stage == "pretrain" or (self.stage == "distill" and self.mae)

    @property
    def clean_view(self) -> bool:
        """Whether the encoder sees the whole image."""
        return self.stage == "finetune" or (self.stage == "distill" and self.distill)

    @property
    def live_teacher(self) -> bool:
        """Whether a teacher sees the whole image too."""
        return self.stage == "distill" and self.distill and self.teacher == "live"

    @property
    def embedded(self) -> tuple[int, ...]:
        """Patches embedded with a gradient, by pass of the patch embedding."""
        patches = self.shape.patches
        if self.packed and self.clean_view:
            return (patches,)
        return (self.visible,) * self.masked_view + (patches,) * self.clean_view

    @property
    def all_tokens(self) -> int:
        """CLS and all patches."""
        return 1 + self.shape.patches

    @property
    def clean_queries(self) -> int:
        """Tokens that the last encoder block of the clean view has queries for."""
        needed = self.stage == "finetune" or self.tokens == "cls"
        return 1 if self.cls_tail and needed else self.all_tokens

    @property
    def predicted(self) -> int:
        """Tokens that the last decoder block has queries for, and the pixel head predicts."""
        return self.masked if self.masked_tail else self.all_tokens


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one image's training step, by part; a part that the step does not have is absent."""

    forward: dict[Part, int]
    backward: dict[Part, int]

    @property
    def total(self) -> int:
        """Forward and backward."""
        return sum(self.forward.values()) + sum(self.backward.values())

    def of(self, part: Part) -> int:
        """Forward and backward of one part; 0 for one that is absent."""
        return self.forward.get(part, 0) + self.backward.get(part, 0)


def step_flops(step: StepSpec) -> StepFlops:
    """The FLOPs of one image's training step."""
    shape, encoder, decoder = step.shape, step.shape.encoder, step.shape.decoder
    forward: dict[Part, int] = {"patch embedding": sum(_embedding(shape, patches) for patches in step.embedded)}
    if step.masked_view:
        assert decoder is not None
        seen = 1 + step.visible
        forward["masked encoder"] = blocks_flops(encoder, seen, seen)
        forward["decoder"] = 2 * seen * encoder.width * decoder.width
        forward["decoder"] += blocks_flops(decoder, step.all_tokens, step.predicted)
        forward["pixel head"] = 2 * step.predicted * decoder.width * shape.patch_values
    if step.clean_view:
        forward["clean encoder"] = blocks_flops(_as_deep(encoder, step.layer), step.all_tokens, step.clean_queries)
    if step.stage == "finetune":
        forward["classifier"] = 2 * encoder.width * step.classes * step.passes
        forward["clean encoder"] *= step.passes
    backward = {part: count if part == "patch embedding" else 2 * count for part, count in forward.items()}
    if step.live_teacher:
        queries = 1 if step.tokens == "cls" else step.all_tokens
        blocks = blocks_flops(_as_deep(encoder, step.layer), step.all_tokens, queries)
        forward["teacher"] = _embedding(shape, shape.patches) + blocks
    return StepFlops(forward, backward)


def encoder_flops(shape: ViTShape) -> int:
    """Forward FLOPs of the encoder, patch embedding included, on one whole image."""
    tokens = 1 + shape.patches
    return _embedding(shape, shape.patches) + blocks_flops(shape.encoder, tokens, tokens)


def _as_deep(shape: TransformerShape, layer: int | None) -> TransformerShape:
    return shape if layer is None else replace(shape, depth=layer)


def _embedding(shape: ViTShape, patches: int) -> int:
    return 2 * patches * shape.patch_values * shape.encoder.width


def blocks_flops(shape: TransformerShape, tokens: int, last_queries: int) -> int:
    """A stack of blocks over some tokens, the last one with queries for `last_queries` of them."""
    if not shape.depth:
        return 0
    last = _first_query(shape, tokens) if last_queries == 1 < tokens else _block(shape, tokens, last_queries)
    return (shape.depth - 1) * _block(shape, tokens, tokens) + last


def _block(shape: TransformerShape, tokens: int, queries: int) -> int:
    """A block with queries for some of its tokens."""
    keys_and_values = 2 * tokens * shape.width * 2 * shape.width
    products = 2 * 2 * queries * tokens * shape.width
    return keys_and_values + products + _query_projection_mlp(shape, queries)


def _first_query(shape: TransformerShape, tokens: int) -> int:
    """A block with a query for one token, without keys and values: see `sdfast.models.vit.Attention.first_query`."""
    through_weights = 2 * 2 * shape.width * shape.width  # W_k^T q, and W_v of the weighted sum
    products = 2 * 2 * shape.heads * tokens * shape.width
    return through_weights + products + _query_projection_mlp(shape, 1)


def _query_projection_mlp(shape: TransformerShape, queries: int) -> int:
    return 2 * queries * shape.width * 2 * (shape.width + shape.mlp_width)
