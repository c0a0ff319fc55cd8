"""Memory of a device under each of DeepSpeed's ZeRO stages: what version 0.19.8 holds, read from its source.

Sizes are in bytes, of tensors; `docs/plan.md` has the formulae. It is arithmetic, as nobody has 1,024 devices to
measure; what a device computes is measured (`sdfast.costs.measure`). Largest is one of these moments: one of the
forward or backward pass (activations, gradients so far), the end of the backward pass (gradients are reduced), the
step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sdfast.costs.workload import Workload
from sdfast.engine.deepspeed_options import zero_sizes

Offload = Literal["none", "cpu", "nvme"]
Precision = Literal["fp32", "tf32", "bf16", "bf16-weights"]
FLOAT = 4  # bytes
_FLAT = 500_000_000  # numbers that stage 0 copies together to reduce them


@dataclass(frozen=True)
class Setup:
    """How a stage is trained.

    Attributes:
        devices: N, over which the batch is split.
        zero: 0 to 3.
        offload: where optimiser states go, and with stage 3 parameters.
        precision: `bf16` is autocast over float32 weights; `bf16-weights` is DeepSpeed's bf16 mode, with float32
            masters of bfloat16 weights.
        checkpointing: of the blocks' activations.
        accumulate: micro-batches of an optimiser step.
        cuda: whether the devices are GPUs.
    """

    devices: int = 1
    zero: int = 0
    offload: Offload = "none"
    precision: Precision = "fp32"
    checkpointing: bool = False
    accumulate: int = 1
    cuda: bool = True

    @property
    def weight(self) -> int:
        """Bytes of a weight and of its gradient."""
        return 2 if self.precision == "bf16-weights" else FLOAT

    def share(self, numbers: int) -> int:
        """A device's part of what all of them hold together."""
        return -(-numbers // self.devices)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes at the worst moment.

    Attributes:
        parameters: weights, those of a live teacher included.
        gradients: of the weights.
        optimizer: AdamW's moments, and float32 masters or DeepSpeed's own copy of the weights.
        activations: what layers keep and work with, and the batch.
        buffers: in which gradients are reduced, and parameters that stage 3 has gathered.
        bank: of the teacher's features.
        pack: of the training examples.
        host: in the host's memory (`offload`), not on the device.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    bank: int = 0
    pack: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """All bytes on the device at the worst moment."""
        states = self.parameters + self.gradients + self.optimizer
        return states + self.activations + self.buffers + self.bank + self.pack


def device_memory(work: Workload, setup: Setup, batch: int, bank: int = 0, pack: int = 0) -> DeviceMemory:
    """The memory of one device.

    Args:
        work: the step.
        setup: how it is trained.
        batch: examples per device and optimiser step.
        bank: bytes of the teacher's bank on the device.
        pack: bytes of the examples on the device.
    """
    standing = _standing(work, setup)
    micro = -(-batch // setup.accumulate)
    alive = work.moments(micro, setup.precision in ("bf16", "bf16-weights"), setup.cuda, setup.checkpointing)
    moments = [_with_gradients(work, setup, activations, made) for activations, made in alive]
    moments += _afterwards(work, setup)
    worst = max(moments, key=lambda moment: moment.total)
    return replace(
        standing,
        gradients=standing.gradients + worst.gradients,
        activations=batch * work.example + worst.activations,
        buffers=standing.buffers + worst.buffers,
        bank=bank,
        pack=pack,
        host=_host(work, setup),
    )


@dataclass(frozen=True)
class _Moment:
    activations: int
    gradients: int
    buffers: int

    @property
    def total(self) -> int:
        return self.activations + self.gradients + self.buffers


def _standing(work: Workload, setup: Setup) -> DeviceMemory:
    """What is there at every moment."""
    share, weight = setup.share(work.trained), setup.weight
    parameters, gradients, buffers = weight * work.module, 0, 0
    optimizer = 12 * share  # a flat copy of the partition is made of float32 weights too
    if setup.zero == 0:
        optimizer = (8 if weight == FLOAT else 12) * work.trained
    elif setup.zero < 3:
        buffers = weight * work.largest if setup.offload != "none" else 0
    else:
        parameters, gradients = weight * setup.share(work.module), weight * share
        buffers = weight * _bucket(work)
        if setup.offload != "none":
            parameters = gradients = 0
    if setup.offload != "none":
        optimizer = 0
    return DeviceMemory(parameters + FLOAT * work.teacher, gradients, optimizer, 0, buffers)


def _bucket(work: Workload) -> int:
    return zero_sizes(work.trained, work.module)["reduce_bucket_size"]


def _with_gradients(work: Workload, setup: Setup, activations: int, made: int) -> _Moment:
    """A moment of the forward and backward pass, with what the stage holds of the gradients made so far.

    After an earlier micro-batch all gradients are there; a new one counts as an activation until it is added.
    """
    weight, bucket = setup.weight, setup.weight * _bucket(work)
    made = (FLOAT * work.trained if setup.accumulate > 1 else made) * weight // FLOAT
    fresh = min(made, weight * work.largest)  # until it is copied into the bucket
    if setup.zero < 2:
        return _Moment(activations, made, bucket if made and setup.zero else 0)
    if setup.zero == 2:
        held = weight * setup.share(work.trained) if made > bucket and setup.offload == "none" else 0
        held *= 2 if setup.accumulate > 1 else 1
        return _Moment(activations, held + fresh, bucket if made else 0)
    gathered = weight * min(work.module, zero_sizes(work.trained, work.module)["stage3_max_live_parameters"])
    return _Moment(activations, fresh, gathered + (bucket if made else 0))  # copied to be scattered


def _afterwards(work: Workload, setup: Setup) -> list[_Moment]:
    """The reduction at the end of the backward pass, where there is one, and the optimiser's step."""
    trained, share, weight = work.trained, setup.share(work.trained), setup.weight
    bucket, apart = weight * _bucket(work), setup.offload != "none"
    if setup.zero == 0:
        reduced = [_Moment(0, weight * trained, weight * min(trained, _FLAT))] if setup.devices > 1 else []
        return [*reduced, _Moment(0, weight * trained + (FLOAT * trained if weight != FLOAT else 0), 0)]
    if setup.zero == 3:  # its gradients stand, and are made flat once more
        return [_Moment(0, 0 if apart else (8 - weight) * share, 0)]
    step = _Moment(0, 0 if apart else 8 * share, 0)  # the partition's gradients, and those made flat
    if setup.zero == 1:
        partition = 0 if apart else weight * share
        return [_Moment(0, max(weight * trained, weight * trained - bucket + partition), bucket), step]
    return [_Moment(0, 0 if apart else weight * share, bucket), step]


def _host(work: Workload, setup: Setup) -> int:
    """Masters, moments and gradients of the partition; what `nvme` leaves there are gradients on their way."""
    if setup.offload == "none":
        return 0
    share, weight = setup.share(work.trained), setup.weight
    if setup.offload == "nvme":
        return (FLOAT + weight) * share
    if setup.zero == 3:
        return (weight + FLOAT + 8 + FLOAT + weight) * share
    return (FLOAT + 8 + FLOAT + weight) * share + weight * work.largest
