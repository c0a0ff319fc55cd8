"""Whether a stage fits on some devices, and what its step is expected to take: `sdfast plan`; see docs/plan.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from sdfast.config import Config
from sdfast.costs.task import Task
from sdfast.costs.workload import Workload, workload
from sdfast.costs.zero_memory import DeviceMemory, Setup, device_memory
from sdfast.engine.machine import resolve_precision
from sdfast.errors import UserError
from sdfast.portable import memory_bytes

USABLE = 0.9  # of a device's memory: the rest is for its context, libraries and what the allocator cannot use
_BANK_SHARE, _PACK_SHARE = 0.5, 0.25  # of the memory, that they may take to be kept there
_LARGEST = 1 << 20  # batch that is looked for


@dataclass(frozen=True)
class Machine:
    """What one device is and is connected by.

    Attributes:
        memory: bytes.
        flops: FLOP/s of a matrix product in the run's precision.
        share: of them that a step reaches, 0 to 1.
        link: bytes/s that a device sends to the others and takes from them; None when it is not known.
    """

    memory: int
    flops: float
    share: float
    link: float | None = None


@dataclass(frozen=True)
class Plan:
    """One way to train a stage.

    Attributes:
        setup: the way.
        batch: examples per device and step.
        memory: of one device.
        fits: whether `USABLE` of the device's memory holds it.
        largest: the largest batch per device that fits, 0 when none does.
        sent: bytes that a device sends in a step.
        compute: seconds of a step's arithmetic.
        exposed: seconds of communication that arithmetic does not hide; None without a link.
    """

    setup: Setup
    batch: int
    memory: DeviceMemory
    fits: bool
    largest: int
    sent: int
    compute: float
    exposed: float | None

    @property
    def seconds(self) -> float | None:
        """Seconds of a step; None without a link."""
        return None if self.exposed is None else self.compute + self.exposed

    @property
    def rate(self) -> float | None:
        """Examples a second, on all devices."""
        return None if self.seconds is None else self.setup.devices * self.batch / self.seconds


def make_plan(work: Workload, setup: Setup, machine: Machine, batch: int, bank: int = 0, pack: int = 0) -> Plan:
    """Plan a stage.

    Args:
        work: its step.
        setup: how it is trained.
        machine: on what.
        batch: examples per step, on all devices together.
        bank: bytes of the teacher's bank.
        pack: bytes of the training examples.

    Raises:
        UserError: fewer examples than devices, or an offload that DeepSpeed does not have.
    """
    check_offload(setup)
    if batch < setup.devices:
        raise UserError(
            f"a batch of {batch} cannot be shared by {setup.devices} devices; give --batch {setup.devices} or more."
        )
    own = -(-batch // setup.devices)
    setup = replace(setup, accumulate=min(setup.accumulate, own))
    bank = bank if bank <= _BANK_SHARE * machine.memory else 0
    pack = pack if setup.cuda and pack <= _PACK_SHARE * machine.memory else 0
    memory = device_memory(work, setup, own, bank, pack)
    room = int(USABLE * machine.memory)
    compute = own * (work.flops + setup.checkpointing * work.again) / (machine.flops * machine.share)
    sent, exposed = communication(work, setup), 0.0
    seconds = None if machine.link is None else sent / machine.link
    if seconds is not None:  # by DeepSpeed's defaults only stage 3 sends while it computes
        exposed = max(0.0, seconds - compute) if setup.zero == 3 else seconds
    known = seconds is not None or not sent
    largest = largest_batch(work, setup, room, bank, pack)
    return Plan(setup, own, memory, memory.total <= room, largest, sent, compute, exposed if known else None)


def check_offload(setup: Setup) -> None:
    """Whether DeepSpeed has that offload at that stage."""
    if setup.offload == "nvme" and setup.zero != 3:
        raise UserError(f"--offload nvme needs --zero 3, not {setup.zero}: DeepSpeed has it there only.")
    if setup.offload == "cpu" and setup.zero == 0:
        raise UserError("--offload cpu needs --zero 1, 2 or 3: without ZeRO, DeepSpeed offloads nothing.")


def communication(work: Workload, setup: Setup) -> int:
    """Bytes that a device sends (and takes) in a step, with the ring algorithms' (N - 1) / N of a buffer.

    Gradients are reduced in one all-reduce (2 buffers) by stages 0, 1 and 2: DeepSpeed's default there
    (`use_multi_rank_bucket_allreduce`), where the paper has a reduce-scatter (1 buffer), as stage 3 does. Stages 1 and
    2 gather the new weights (1), stage 3 gathers weights in the forward and in the backward pass (2).
    """
    gradients, weights = setup.weight * work.trained, setup.weight * work.module
    micro = setup.accumulate
    buffers = {
        0: 2 * gradients,
        1: 2 * gradients + gradients,
        2: 2 * gradients * micro + gradients,
        3: (gradients + 2 * weights) * micro,
    }[setup.zero]
    return buffers * (setup.devices - 1) // setup.devices


def largest_batch(work: Workload, setup: Setup, room: int, bank: int = 0, pack: int = 0) -> int:
    """The largest batch per device whose step takes no more than `room` bytes; 0 when one example does not fit."""
    setup = replace(setup, accumulate=1)

    def fits(batch: int) -> bool:
        return device_memory(work, setup, batch, bank, pack).total <= room

    if not fits(1):
        return 0
    low, high = 1, 2
    while high < _LARGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def setup_of(task: Task, device: torch.device, processes: int) -> Setup:
    """How a run trains a stage over so many processes, each on a device like this one."""
    engine, zero = task.config.engine, task.config.zero
    precision: Any = resolve_precision(engine.precision, device)
    return Setup(
        processes,
        zero=zero.stage,
        offload=zero.offload,
        precision="bf16" if precision == "fp16" else precision,
        checkpointing=engine.activation_checkpointing,
        accumulate=engine.accumulate,
        cuda=device.type == "cuda",
    )


def worth_of_zero(task: Task, device: torch.device, processes: int) -> str:
    """What the run's ZeRO stage saves, or does not, in one sentence."""
    work, setup = workload(task), setup_of(task, device, processes)
    batch = -(-task.section.batch_size // processes)
    zero, plain = (
        device_memory(work, each, batch).total / 1e6 for each in (setup, replace(setup, zero=0, offload="none"))
    )
    many = f"{processes} processes" if processes > 1 else "1 process"
    verdict = "" if zero < plain else ": --zero 0 takes no more and is faster"
    return (
        f"{task.stage}: ZeRO {setup.zero} over {many} is expected to hold {zero:.0f} MB in each, where ZeRO 0 would"
        f" hold {plain:.0f} MB{verdict} (sdfast plan, docs/zero.md)"
    )


def bank_bytes(work: Workload, config: Config, examples: int) -> int:
    """Bytes of a bank of the teacher's features of so many examples, each view of them; 0 where there is none."""
    itemsize = getattr(torch, config.teacher.dtype).itemsize
    return work.features * itemsize * examples * max(config.teacher.views, 1)


def device_bytes(device: torch.device) -> int:
    """Memory that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_bytes()


def rows_of(plan: Plan, machine: Machine) -> dict[str, Any]:
    """A plan's numbers by what a person calls them: bytes as GB, seconds as ms."""
    memory = plan.memory
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "activations": memory.activations,
        "buffers": memory.buffers,
        "bank": memory.bank,
        "pack": memory.pack,
        "in all, GB a device": memory.total,
    }
    rows: dict[str, Any] = {name: size / 1e9 for name, size in parts.items()}
    rows[f"fits {machine.memory / 1e9:.3g} GB"] = "yes" if plan.fits else "no"
    rows["largest batch a device"] = plan.largest
    if plan.setup.offload != "none":
        rows["host, GB a device"] = memory.host / 1e9
    rows["sent, GB a step"] = plan.sent / 1e9
    rows["arithmetic, ms"] = 1000 * plan.compute
    rows["waiting for others, ms"] = None if plan.exposed is None else 1000 * plan.exposed
    rows["step, ms"] = None if plan.seconds is None else 1000 * plan.seconds
    rows["examples/s"] = plan.rate
    return rows
