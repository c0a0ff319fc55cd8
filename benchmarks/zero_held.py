"""What a rank really holds between the backward pass and the optimiser's step, counted tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sdfast.engine.loop import Trainer

# Of DeepSpeed's ZeRO optimisers (stages 1 and 2, then 3): where each kind of tensor is found.
_FLAT = ("bit16_groups_flat", "fp16_partitioned_groups_flat", "param_groups_fp16_flat_cpu_memory")
_COPIES = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
_GRADIENTS = (
    "averaged_gradients",
    "all_grad_tensors",
    "accumulated_grads_in_cpu",
    "temp_grad_buffer_for_cpu_offload",
    "temp_grad_buffer_for_gpu_offload",
    "grad_partitions_flat_buffer",
)
KINDS = ("moments", "parameters", "copies", "gradients", "buckets")


def held(trainer: Trainer) -> dict[str, int]:
    """Bytes of this process by kind; memory that two kinds share is the first's.

    `moments` are AdamW's two; `copies` the second float32 values that ZeRO's optimiser works on; `buckets` what is
    exchanged at a time.
    """
    engine: Any = trainer.engine
    optimizer = engine._deepspeed.optimizer if hasattr(engine, "_deepspeed") else engine.optimizer
    parameters: list[Any] = list(trainer.objective.module.parameters())
    copies = [getattr(optimizer, name, ()) for name in _COPIES]
    groups: dict[str, Any] = {
        "moments": [list(state.values()) for state in getattr(optimizer, "optimizer", optimizer).state.values()],
        "parameters": [[p.data, getattr(p, "ds_tensor", None)] for p in parameters]
        + [getattr(optimizer, name, ()) for name in _FLAT],
        "copies": copies,
        "gradients": [each.grad for each in [*parameters, *tensors(copies)]]
        + [getattr(optimizer, name, ()) for name in _GRADIENTS],
        "buckets": [vars(bucket) for bucket in getattr(optimizer, "ipg_buckets", {}).values()],
    }
    seen: set[int] = set()
    found = dict.fromkeys(KINDS, 0)
    for kind in KINDS:
        for tensor in tensors(groups[kind]):
            storage = tensor.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                found[kind] += storage.nbytes()
    return found


def tensors(value: Any) -> Iterator[Tensor]:
    """All in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)


def count_before_steps(trainer: Trainer) -> dict[str, int]:
    """A dictionary that is filled, at every step from now on, with what `held` finds before the optimiser's."""
    engine: Any = trainer.engine
    owner, found = getattr(engine, "_deepspeed", None) or engine.optimizer, {}
    step = owner.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.update(held(trainer))
        return step(*args, **kwargs)

    owner.step = counted
    return found
