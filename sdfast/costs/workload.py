"""What a stage's step asks of a machine: everything that the arithmetic of ZeRO and of a plan starts from."""

from __future__ import annotations

from dataclasses import dataclass

from sdfast.costs.measure import Size, moments, size
from sdfast.costs.task import Task


@dataclass(frozen=True)
class Workload(Size):
    """One example's training step; texts have the greatest length that is allowed, masked at the run's rate.

    Attributes:
        task: what is computed.
        flops: of an example's step, forward and backward.
        again: FLOPs of what activation checkpointing computes a second time.
    """

    task: Task
    flops: int
    again: int

    @property
    def example(self) -> int:
        """Bytes of an example in the pack, and in a batch."""
        return self.task.example

    @property
    def features(self) -> int:
        """Numbers of an example in the teacher's bank; 0 without one."""
        return self.task.features * self.task.shape.encoder.width if self.task.banked else 0

    @property
    def tokens(self) -> int:
        """Tokens of a text; 0 for images."""
        return self.task.tokens

    def moments(self, examples: int, bf16: bool, cuda: bool, checkpointing: bool) -> list[tuple[int, int]]:
        """Bytes of activations and of finished gradients at the moments of a micro-batch: see `Moments`."""
        found = moments(self.task, bf16=bf16, cuda=cuda, checkpointing=checkpointing)
        return found.at(examples * (self.tokens or 1))


def workload(task: Task) -> Workload:
    """What a stage needs for an example."""
    flops = task.flops(checkpointing=True)
    return Workload(**vars(size(task)), task=task, flops=round(flops.step), again=round(flops.again))
