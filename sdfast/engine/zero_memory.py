"""Memory of a device under each of DeepSpeed's ZeRO stages: what version 0.19.8 holds, read from its source.

Sizes are in bytes, of tensors; `docs/plan.md` has the formulae. Largest is one of these moments: a layer of the forward
or backward pass (activations, gradients so far), the end of the backward pass (gradients are reduced), the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sdfast.models.layer_memory import FLOAT
from sdfast.models.memory import Moment, step_moments
from sdfast.models.workload import Workload

Offload = Literal["none", "cpu", "nvme"]
Precision = Literal["fp32", "tf32", "bf16", "bf16-weights"]
_FLAT = 500_000_000  # numbers that stage 0 copies together to reduce them
_PERSISTENT = 100_000  # smaller parameters are never partitioned by stage 3
_BUCKET, _LIVE = 50_000_000, 100_000_000


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
        dropout: of `finetune`, whether there is any.
        cuda: whether the devices are GPUs.
    """

    devices: int = 1
    zero: int = 0
    offload: Offload = "none"
    precision: Precision = "fp32"
    checkpointing: bool = False
    accumulate: int = 1
    dropout: bool = False
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
        """On the device."""
        states = self.parameters + self.gradients + self.optimizer
        return states + self.activations + self.buffers + self.bank + self.pack


def zero_sizes(trained: int, module: int) -> dict[str, int]:
    """DeepSpeed's sizes in numbers of elements, fit to a model; its own suit models of billions and hold 2 GB each.

    Args:
        trained: numbers that are trained.
        module: numbers of the whole module.
    """
    bucket, live = min(_BUCKET, max(trained // 8, 1)), min(_LIVE, max(module // 4, 1))
    return {
        "reduce_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": live,
        "stage3_param_persistence_threshold": _PERSISTENT,
    }


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
    moments = [_with_gradients(work, setup, moment) for moment in _activations(work, setup, batch)]
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


def _activations(work: Workload, setup: Setup, batch: int) -> list[Moment]:
    micro = -(-batch // setup.accumulate)
    bf16 = setup.precision in ("bf16", "bf16-weights")
    layers = work.layers(micro, bf16, setup.cuda, setup.dropout, setup.checkpointing)
    return step_moments(layers, FLOAT * work.trained if setup.accumulate > 1 else 0)[1]


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


def _with_gradients(work: Workload, setup: Setup, moment: Moment) -> _Moment:
    """A moment of the forward and backward pass, with what the stage holds of the gradients made so far."""
    weight, bucket = setup.weight, setup.weight * _bucket(work)
    made, added = (size * weight // FLOAT for size in (moment.gradients, moment.added))
    fresh = min(made, weight * work.largest)  # until it is copied into the bucket
    if setup.zero == 0:
        return _Moment(moment.activations, made + added, 0)
    if setup.zero == 1:
        return _Moment(moment.activations, made + added, bucket if made else 0)
    if setup.zero == 2:
        held = weight * setup.share(work.trained) if made > bucket and setup.offload == "none" else 0
        held *= 2 if setup.accumulate > 1 else 1
        return _Moment(moment.activations, held + fresh + added, bucket if made else 0)
    gathered = weight * min(work.module, zero_sizes(work.trained, work.module)["stage3_max_live_parameters"])
    return _Moment(moment.activations, fresh + added, gathered + (bucket if made else 0))  # copied to be scattered


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
