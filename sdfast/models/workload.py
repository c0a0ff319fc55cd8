"""What a stage's step asks of a machine, for images and for text: numbers of parameters, FLOPs, bytes of its layers."""

from __future__ import annotations

from dataclasses import dataclass

from sdfast.models.flops import StepSpec, step_flops
from sdfast.models.layer_memory import Layers
from sdfast.models.named import TextShape
from sdfast.models.parameters import all_parameters, teacher_parameters, trained_parameters
from sdfast.models.text_layers import TextLayers, text_flops, text_parameters, text_step
from sdfast.models.vit import ViTShape

_TOKEN_BYTES = 4  # of an id in a pack


@dataclass(frozen=True)
class Workload:
    """One example's training step.

    Attributes:
        step: what is computed; of a text model, see `sdfast.models.text_layers.text_step`.
        text: the shape of a text model, else None.
        trained: numbers that are trained.
        module: numbers of the trained module, fixed ones included.
        teacher: numbers of a live teacher.
        largest: numbers of the largest matrix.
        flops: of an example's step, forward and backward.
        blocks: FLOPs of its blocks' forward pass, which activation checkpointing does again.
        example: bytes of an example in the pack, and in a batch.
        features: numbers of an example in the teacher's bank; 0 without one.
    """

    step: StepSpec
    text: TextShape | None
    trained: int
    module: int
    teacher: int
    largest: int
    flops: int
    blocks: int
    example: int
    features: int

    def layers(self, examples: int, bf16: bool, cuda: bool, dropout: bool, checkpointing: bool) -> Layers:
        """Those of a micro-batch; see `Layers` for the arguments."""
        if self.text is None:
            return Layers(bf16, cuda, dropout, checkpointing, self.step, examples)
        sizes = self.text.vocabulary, self.text.positions
        return TextLayers(bf16, cuda, dropout, checkpointing, self.step, examples, *sizes)


def image_workload(step: StepSpec) -> Workload:
    """Of a ViT."""
    shape, flops = step.shape, step_flops(step)
    teacher = teacher_parameters(step)
    forward = flops.forward
    stacks = [shape.encoder, *([shape.decoder] if shape.decoder and step.stage != "finetune" else [])]
    return Workload(
        step,
        None,
        trained=trained_parameters(step),
        module=all_parameters(step) - teacher,
        teacher=teacher,
        largest=max(stack.width * max(3 * stack.width, stack.mlp_width) for stack in stacks),
        flops=flops.total,
        blocks=sum(forward.get(part, 0) for part in ("masked encoder", "clean encoder", "decoder")),
        example=shape.channels * shape.image_size[0] * shape.image_size[1],
        features=_features(step),
    )


def text_workload(shape: TextShape, like: StepSpec) -> Workload:
    """Of a text model, with the stage and the switches of an image model's step."""
    step = text_step(shape, like)
    trained, teacher = text_parameters(shape, step)
    flops, blocks = text_flops(shape, step)
    return Workload(
        step,
        shape,
        trained=trained,
        module=trained,
        teacher=teacher,
        largest=shape.vocabulary * shape.encoder.width,
        flops=flops,
        blocks=blocks,
        example=_TOKEN_BYTES * shape.tokens,
        features=_features(step),
    )


def workload(shape: ViTShape | TextShape, step: StepSpec) -> Workload:
    """Of either; `step` is an image model's (of any shape, for a text model)."""
    return text_workload(shape, step) if isinstance(shape, TextShape) else image_workload(step)


def _features(step: StepSpec) -> int:
    if not step.banked:
        return 0
    tokens = {"cls": 1, "patch": step.shape.patches, "all": step.all_tokens}[step.tokens]
    return tokens * step.shape.encoder.width
