"""The layers of a text model's training step: the same blocks, ids looked up before them, a vocabulary head after."""

from __future__ import annotations

from dataclasses import dataclass

from sdfast.models.flops import StepSpec, blocks_flops
from sdfast.models.layer_memory import FLOAT, INT64, Layer, Layers
from sdfast.models.named import TextShape
from sdfast.models.parameters import block_parameters
from sdfast.models.vit import ViTShape

_MASKED = 0.15  # of the positions, where the head predicts


@dataclass(frozen=True)
class TextLayers(Layers):
    """`Layers` of sequences: both views have all tokens, the masked one other ids at some.

    Attributes:
        vocabulary: rows of the embedding.
        positions: rows of the position embedding.
    """

    vocabulary: int = 0
    positions: int = 0

    def given(self) -> tuple[int, int]:
        """The ids."""
        ids = INT64 * self.images * self.step.all_tokens
        return ids, ids

    def embedding(self, patches: int, passes: int = 1) -> Layer:
        """Ids, and the sum of the embeddings before and after its norm; the gradient is dense. More passes as there."""
        width, rows = self.step.shape.encoder.width, self.images * self.step.all_tokens
        kept = INT64 * rows + FLOAT * passes * rows * (width + 2) + self.mask(passes * rows, width, FLOAT)
        work, noise = 2 * FLOAT * passes * rows * width, (passes - 1) * FLOAT * rows * width
        return Layer(kept, work, ("embedding", FLOAT * (self.vocabulary + self.positions) * width), held=noise)

    def gather(self) -> Layer:
        """The masked view embeds ids of its own."""
        return self.embedding(self.step.visible)

    def decoder(self) -> list[Layer]:
        """The head at the masked positions: a linear layer, GELU, a norm, and the logits with their softmax."""
        width, rows = self.step.shape.encoder.width, self.images * self.step.masked
        inside = rows * width * (2 * self.product + 2 * FLOAT) + self.copies(width * width)
        logits = rows * self.vocabulary
        kept = logits * FLOAT + self.product * rows * width + self.copies(self.vocabulary * width)
        return [
            Layer(inside, 2 * FLOAT * rows * width, self.weights("head", width * (width + 3))),
            Layer(kept, logits * (FLOAT + self.product), self.weights("embedding", self.vocabulary * width)),
        ]


def text_step(shape: TextShape, step: StepSpec) -> StepSpec:
    """The step of an image model with as many tokens: CLS and the others, of which the masked view shows all.

    Args:
        shape: of the text model.
        step: of any image model, for the stage and its switches.
    """
    others = shape.tokens - 1
    stack = ViTShape((1, others), 1, 1, shape.encoder)
    return StepSpec(
        stack,
        step.stage,
        visible=others,
        masked=round(_MASKED * shape.tokens),
        tokens=step.tokens,
        layer=step.layer,
        teacher=step.teacher,
        packed=True,
        cls_tail=step.cls_tail,
        mae=step.mae,
        distill=step.distill,
        classes=step.classes,
    )


def text_flops(shape: TextShape, step: StepSpec) -> tuple[int, int]:
    """FLOPs of a sequence's step, and of the blocks' forward pass in it; see `sdfast.models.flops`."""
    encoder, tokens = shape.encoder, shape.tokens
    blocks = blocks_flops(encoder, tokens, tokens) if step.masked_view else 0
    if step.clean_view:
        blocks += blocks_flops(encoder, tokens, step.clean_queries)
    head = 2 * step.masked * encoder.width * (encoder.width + shape.vocabulary) if step.masked_view else 0
    head += 2 * encoder.width * step.classes if step.stage == "finetune" else 0
    teacher = blocks_flops(encoder, tokens, 1 if step.tokens == "cls" else tokens) if step.live_teacher else 0
    return 3 * (blocks + head) + teacher, blocks


def text_parameters(shape: TextShape, step: StepSpec) -> tuple[int, int]:
    """Numbers that the step trains (all of the model's), and of a live teacher."""
    width = shape.encoder.width
    encoder = width * (shape.vocabulary + shape.positions + 1 + 2)  # token type and norm
    encoder += shape.encoder.depth * block_parameters(shape.encoder, True)
    head = width * (width + 3) + shape.vocabulary if step.masked_view else 0
    head += (width + 1) * step.classes if step.stage == "finetune" else 0
    return encoder + head, encoder if step.live_teacher else 0
