"""How much memory a training step needs: peak bytes of one step, predicted layer by layer from sizes alone.

Counted are the tensors that torch's allocator holds at the worst moment: parameters, AdamW's two moments, the gradients
made so far, the batch, what the layers keep for the backward pass, and the working space of the layer at work. Not
counted: what the process holds besides (Python, libraries, cuBLAS) and what an allocator keeps in reserve. A step that
is compiled keeps less than is predicted here.

The walk is that of the step: forward through the layers, each leaving behind what it keeps (`Layer.kept`); backward
from the last to the first, each giving its own back and leaving gradients, with `Layer.work` on top while it computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdfast.models.flops import StepSpec
from sdfast.models.layer_memory import FLOAT, Layers
from sdfast.models.parameters import all_parameters, encoder_parameters, trained_parameters


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step.

    Attributes:
        parameters: of the model, and of a live teacher.
        optimizer: AdamW's moments.
        inputs: the uint8 images of the batch, and a bank in the device's memory.
        kept: what the layers keep for the backward pass, when the forward pass ends.
        peak: all of it at the worst moment, gradients and working space included.
    """

    parameters: int
    optimizer: int
    inputs: int
    kept: int
    peak: int


@dataclass(frozen=True)
class Moment:
    """Bytes at one moment of a step, besides parameters, moments and the batch.

    Attributes:
        activations: what layers keep and work with.
        gradients: made so far.
        added: a gradient beside the one that it is added to.
    """

    activations: int
    gradients: int = 0
    added: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.activations + self.gradients + self.added


def step_memory(
    step: StepSpec,
    batch: int,
    *,
    bf16: bool = False,
    dropout: bool = False,
    bank: int = 0,
    accumulate: int = 1,
    cuda: bool = False,
    checkpointing: bool = False,
) -> StepMemory:
    """Predict the memory of one training step after the first.

    Args:
        step: what is computed for an image.
        batch: images per optimiser step.
        bf16: autocast to bfloat16; parameters, residuals and norms stay float32.
        dropout: of `finetune`, whether there is any.
        bank: bytes of a teacher bank in the device's memory.
        accumulate: micro-batches of an optimiser step.
        cuda: whether on a GPU; the attention counted there is `sdpa`, and float32 on a CPU is the compiled core's.
        checkpointing: blocks keep only their input (`engine.activation_checkpointing`).
    """
    layers = Layers(bf16, cuda, dropout, checkpointing, step, -(-batch // accumulate))
    shape = step.shape
    trained, parameters = FLOAT * trained_parameters(step), FLOAT * all_parameters(step)
    inputs = batch * shape.channels * shape.image_size[0] * shape.image_size[1] + bank
    # the distance of an encoder's weights gives all of its gradients before the layers give theirs
    early = FLOAT * encoder_parameters(shape) if step.matched == "weights" else 0
    kept, moments = step_moments(layers, trained if accumulate > 1 else early)
    standing = parameters + 2 * trained + inputs
    return StepMemory(
        parameters, 2 * trained, inputs, kept, standing + max(trained, *(moment.total for moment in moments))
    )


def step_moments(layers: Layers, gradients: int = 0) -> tuple[int, list[Moment]]:
    """What the layers keep when the forward pass ends, and the moments of a micro-batch at which memory may be fullest.

    Args:
        layers: of the step.
        gradients: bytes of all gradients, when those of an earlier micro-batch are there; else 0.
    """
    held, prepared = layers.given()
    earlier = {"all": gradients} if gradients else {}
    moments, kept = [Moment(prepared, gradients)], 0
    walk = layers.of_the_step()
    for layer in walk:
        kept, held = kept + layer.kept - layer.late, held + layer.held
    moments.append(Moment(kept + held + layers.teacher(), gradients))
    whole, made = kept, dict(earlier)
    for layer in reversed(walk):
        kept += layer.remakes
        name, size = layer.weights
        added = size if name in made or earlier else 0  # made beside what it is added to
        if not earlier:
            made[name] = max(size, made.get(name, 0))
        moments.append(Moment(kept + layer.work, sum(made.values()), added))
        kept -= layer.kept
    return whole, moments
