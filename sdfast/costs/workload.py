"""What a stage's step asks of a machine: everything that the arithmetic of ZeRO and of a plan starts from."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sdfast.costs.measure import moments, size
from sdfast.costs.task import Task


@dataclass(frozen=True)
class Workload:
    """One example's training step.

    Attributes:
        task: what is computed.
        trained: numbers that are trained.
        module: numbers of the trained module, fixed ones included.
        teacher: numbers of a live teacher, or of one whose weights are compared.
        largest: numbers of the largest matrix.
        flops: of an example's step, forward and backward.
        again: FLOPs of what activation checkpointing computes a second time.
        example: bytes of an example in the pack, and in a batch.
        features: numbers of an example in the teacher's bank; 0 without one.
        tokens: of a text; 0 for images.
    """

    task: Task
    trained: int
    module: int
    teacher: int
    largest: int
    flops: int
    again: int
    example: int
    features: int
    tokens: int = 0

    def moments(self, examples: int, bf16: bool, cuda: bool, checkpointing: bool) -> list[tuple[int, int]]:
        """Bytes of activations and of finished gradients at the moments of a micro-batch: see `Moments`."""
        found = moments(self.task, bf16=bf16, cuda=cuda, checkpointing=checkpointing)
        return found.at(examples * (self.tokens or 1))


def workload(task: Task) -> Workload:
    """What a stage needs for an example; texts have the greatest length that is allowed, masked at the run's rate."""
    flops = task.flops(checkpointing=True)
    return Workload(
        task,
        **asdict(size(task)),
        flops=round(flops.step),
        again=round(flops.again),
        example=task.example,
        features=task.features * task.shape.encoder.width if task.banked else 0,
        tokens=task.tokens,
    )
