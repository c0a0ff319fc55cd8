"""The engine of several processes: DeepSpeed's ZeRO over data-parallel ranks (Rajbhandari et al., SC 2020).

Each process computes its rows of a batch; DeepSpeed averages the gradients, and what a ZeRO stage spreads is spread by
it. The loss is normalised over the whole batch by the objective, so each contribution is scaled by the number of
processes, and N of them equal one.
"""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdfast.config import EngineConfig, OptimisationConfig, ZeroConfig
from sdfast.data.order import Batch
from sdfast.engine.deepspeed_options import deepspeed_options
from sdfast.engine.machine import autocast, resolve_precision
from sdfast.engine.optim import build_optimizer, set_learning_rate
from sdfast.engine.single import Engine, ReadTensor, SingleEngine, State, add_parts
from sdfast.errors import UserError
from sdfast.launch import name_local_rank
from sdfast.objectives.base import Objective
from sdfast.ranks import Ranks

OLDEST_DEEPSPEED = "0.19.8"  # the first to wait for every parameter that it gathers (DeepSpeed#8539)
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Sharing:
    """How a job is spread over processes.

    Attributes:
        ranks: the processes.
        zero: the ZeRO stage, and where its states lie.
        deepspeed: further options of DeepSpeed.
    """

    ranks: Ranks = field(default_factory=Ranks)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)


def make_engine(
    objective: Objective,
    stage: str,
    config: OptimisationConfig,
    engine: EngineConfig,
    device: torch.device,
    sharing: Sharing,
) -> Engine:
    """The engine that a run's settings ask for; the objective's module is on the device.

    Raises:
        UserError: DeepSpeed is needed and not installed, its settings contradict ours, or something acts on the
            optimiser that needs every weight whole.
    """
    if sharing.ranks.world == 1 and not sharing.zero.stage:
        return SingleEngine(objective, config, engine, device)
    if objective.regularizer is not None and sharing.zero.stage:
        raise UserError(f"{stage}: RecAdam and MARS need every weight whole; use --zero 0.")
    return ZeroEngine(objective, stage, config, engine, device, sharing)


class ZeroEngine(Engine):
    """DeepSpeed's engine around an objective's loss; its state is read and written as that of one process."""

    def __init__(
        self,
        objective: Objective,
        stage: str,
        config: OptimisationConfig,
        engine: EngineConfig,
        device: torch.device,
        sharing: Sharing,
    ) -> None:
        """Set up DeepSpeed.

        Raises:
            UserError: DeepSpeed is not installed, does not take an option, or cannot use the disk.
        """
        deepspeed = import_deepspeed(device)
        super().__init__(objective, engine, device)
        self.ranks, self.zero = sharing.ranks, sharing.zero.stage
        if sharing.zero.offload == "nvme":
            _check_disk_access()
        named = dict(objective.module.named_parameters())
        self._requiring = {name for name, parameter in named.items() if parameter.requires_grad}
        trained = {id(parameter) for parameter in self.parameters.values()}
        for parameter in named.values():  # no reduction waits for a gradient that never comes
            parameter.requires_grad_(id(parameter) in trained)
        precision = resolve_precision(engine.precision, device)
        options = deepspeed_options(
            stage,
            config,
            sharing.zero,
            sharing.deepspeed,
            world=self.ranks.world,
            accumulate=engine.accumulate,
            trained=sum(parameter.numel() for parameter in self.parameters.values()),
            module=sum(parameter.numel() for parameter in named.values()),
            precision=precision,
        )
        rule, regularizer = objective.decay_rule, objective.regularizer
        optimizer = build_optimizer(self.parameters.items(), config, rule, regularizer=regularizer)
        self._named = name_local_rank(device)
        # DeepSpeed autocasts by itself in fp16
        loss = _Loss(objective, partial(autocast, "fp32" if precision == "fp16" else engine.precision, device))
        try:
            self._deepspeed = deepspeed.initialize(model=loss, optimizer=optimizer, config=options)[0]
        except (ValueError, AssertionError, TypeError, NotImplementedError) as error:
            raise UserError(f"DeepSpeed does not take these options: {' '.join(str(error).split())[:300]}.") from error
        self.optimizer = self._deepspeed.optimizer
        if self.zero in (1, 2):
            # by itself it would link all parameters when the first group's state alone is made
            self._make_optimizer_state()

    def step(self, inputs: Any, batch: Batch, drawn: Any, rate: float) -> dict[str, Tensor]:
        """One optimiser step; DeepSpeed averages the gradients of all processes."""
        set_learning_rate(self.optimizer, rate)
        total: dict[str, Tensor] = {}
        parts = self._micro_batches(batch)
        for number, (part, counts) in enumerate(parts, 1):
            self._deepspeed.set_gradient_accumulation_boundary(number == len(parts))
            losses = self._deepspeed(inputs[part], batch, drawn, part)
            if not counts:
                losses = {name: 0 * value for name, value in losses.items()}
            self._deepspeed.backward(losses["loss"] * self.ranks.world, scale_wrt_gas=False)
            add_parts(total, losses)
        self._deepspeed.step()
        return total

    def _micro_batches(self, batch: Batch) -> list[tuple[slice, bool]]:
        """Parts of this process's rows, and whether each counts: as many in every process, for all exchange at each."""
        parts = list(batch.micro_batches or ())
        if not parts:
            mine, largest = len(batch.rows), -(-batch.count // self.ranks.world)
            number = min(self.engine.accumulate, largest)
            bounds = [mine * index // number for index in range(number + 1)]
            parts = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        return [(part, not batch.idle) if part.stop > part.start else (slice(0, 1), False) for part in parts]

    def state(self) -> State:
        """The state's names, and what reads each; a tensor that ZeRO spreads is put together from all processes."""
        if not self.zero:
            yield from super().state()
            return
        from deepspeed.utils import safe_get_full_optimizer_state

        for name, value in self._module_tensors():
            yield f"module/{name}", partial(self._whole, value)
        steps = self._steps_done()
        for name, parameter in self.parameters.items():
            if steps is None:
                return
            yield f"optimizer/{name}/step", lambda: torch.tensor(float(steps))
            for key in _MOMENTS:
                yield f"optimizer/{name}/{key}", partial(safe_get_full_optimizer_state, parameter, key)

    def load(self, read: ReadTensor, names: set[str]) -> None:
        """Take over the optimiser's state: of each tensor what this process keeps."""
        first = next(iter(self.parameters), "")
        if f"optimizer/{first}/step" not in names:
            return
        if not self.zero:
            super().load(read, names)
            return
        if self.zero == 3:
            self._make_optimizer_state()
        for partition in self._partitions():
            self.optimizer.optimizer.state[partition]["step"].fill_(read(f"optimizer/{first}/step"))
        for name, parameter in self.parameters.items():
            for key in _MOMENTS:
                self._set_moment(parameter, key, read(f"optimizer/{name}/{key}").float())

    def release(self) -> None:
        """Take the module back from DeepSpeed: whole, in float32, and without its hooks."""
        values = {name: self._whole(value).to(self.device, copy=True) for name, value in self._module_tensors()}
        self._deepspeed.destroy()
        if self._named:
            del os.environ["LOCAL_RANK"]
        for prefix, owner in self.objective.module.named_modules():
            for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
                getattr(owner, hooks).clear()
            named = dict(owner._parameters.items())
            owner._parameters = dict.fromkeys(named)
            for name in (name for name, old in named.items() if old is not None):
                full = f"{prefix}.{name}" if prefix else name
                owner._parameters[name] = nn.Parameter(values[full], requires_grad=full in self._requiring)
        del self._deepspeed, self.optimizer

    # Where DeepSpeed keeps things.

    def _module_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The module's parameters and persistent buffers, as they are here (ZeRO-3 keeps a part)."""
        yield from self.objective.module.named_parameters()
        kept = self.objective.module.state_dict()
        yield from ((name, value) for name, value in self.objective.module.named_buffers() if name in kept)

    def _whole(self, value: Tensor) -> Tensor:
        """A parameter's values in float32, from all processes' parts."""
        from deepspeed.utils import safe_get_full_fp32_param

        if self.zero and value.requires_grad:
            return safe_get_full_fp32_param(value)
        if hasattr(value, "ds_id"):  # of ZeRO-3, and not trained
            import deepspeed

            with deepspeed.zero.GatheredParameters([value]):
                return value.detach().clone().float()
        return value.detach()

    def _partitions(self) -> list[Tensor]:
        """This process's flat parts of the float32 parameters, which the optimiser's state belongs to."""
        groups = "fp32_partitioned_groups_flat" if self.zero == 3 else "single_partition_of_fp32_groups"
        return getattr(self.optimizer, groups)

    def _steps_done(self) -> float | None:
        """Steps that the optimiser has done; None before the first."""
        for partition in self._partitions():
            state = self.optimizer.optimizer.state.get(partition, {})
            if "step" in state:
                return float(state["step"])
        return None

    def _make_optimizer_state(self) -> None:
        """What AdamW makes in its first step; DeepSpeed links parameters to it, and a resumed run fills it."""
        for partition in self._partitions():
            moments = {key: torch.zeros_like(partition) for key in _MOMENTS}
            self.optimizer.optimizer.state[partition] = {"step": torch.zeros((), device=partition.device), **moments}
        if self.zero < 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.zero < 3:
            safe_set_full_optimizer_state(parameter, value.to(self.device), key)
            return
        size = cast(Any, parameter).ds_tensor.numel()  # of each process's part; the last is filled up
        start = size * self.ranks.rank
        part = value.flatten()[start : start + size]
        part = torch.cat((part, part.new_zeros(size - part.numel())))
        safe_set_local_optimizer_state(parameter, part.to(self.device), key)


class _Loss(nn.Module):
    """What DeepSpeed trains: a module whose forward pass is the loss.

    It autocasts inside, for DeepSpeed switches off what it finds on a GPU outside of its own forward pass.
    """

    def __init__(self, objective: Objective, autocast: Callable[[], AbstractContextManager[object]]) -> None:
        super().__init__()
        self.module = objective.module
        self._loss, self._autocast = objective.loss, autocast

    def forward(self, inputs: Any, batch: Batch, drawn: Any, part: slice) -> dict[str, Tensor]:
        with self._autocast():
            return self._loss(inputs, batch, drawn, part)


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, for the kind of device, and quiet.

    Raises:
        UserError: it is not installed, or too old.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            "--zero and several processes need the package deepspeed: pip install 'sdfast[deepspeed]' (or deepspeed),"
            " or train in one process with --zero 0."
        ) from error
    from deepspeed.utils import logger
    from packaging.version import Version  # which DeepSpeed asks for

    if Version(deepspeed.__version__).release < Version(OLDEST_DEEPSPEED).release:
        raise UserError(
            f"DeepSpeed {deepspeed.__version__} is too old: before {OLDEST_DEEPSPEED} --zero 3 may compute with"
            " parameters that have not arrived yet; pip install -U deepspeed."
        )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # waits for ever for a process that has died
    warnings.filterwarnings("ignore", r"`torch.distributed.\w+` is deprecated", FutureWarning)  # what DeepSpeed calls
    logger.setLevel(logging.ERROR)
    return deepspeed


def _check_disk_access() -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            "zero.offload=nvme needs DeepSpeed's asynchronous disk access, which this machine does not have (on Debian"
            " and Ubuntu: apt install libaio-dev); use zero.offload=cpu."
        )
