"""What DeepSpeed is told: our settings, the user's further options, and no contradiction between the two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.config import OptimisationConfig, ZeroConfig, leaves
from sdfast.durable import load_json
from sdfast.errors import UserError, nearest

_PERSISTENT = 100_000  # smaller parameters are never partitioned by stage 3
_BUCKET, _LIVE = 50_000_000, 100_000_000

# Our keys by the DeepSpeed option that follows from them.
_OURS = {
    "train_batch_size": "{stage}.batch_size",
    "train_micro_batch_size_per_gpu": "{stage}.batch_size and engine.accumulate",
    "gradient_accumulation_steps": "engine.accumulate",
    "gradient_clipping": "{stage}.clip",
    "optimizer": "{stage}.lr, .betas, .eps and .weight_decay",
    "scheduler": "{stage}.lr and {stage}.warmup",
    "fp16": "engine.precision",
    "bf16": "engine.precision",
    "torch_autocast": "engine.precision",
    "zero_optimization.stage": "--zero",
    "zero_optimization.offload_optimizer.device": "zero.offload",
    "zero_optimization.offload_param.device": "zero.offload",
}


def deepspeed_options(
    stage: str,
    config: OptimisationConfig,
    zero: ZeroConfig,
    further: Mapping[str, Any],
    *,
    world: int,
    accumulate: int,
    trained: int,
    module: int,
    precision: str,
) -> dict[str, Any]:
    """The dictionary that `deepspeed.initialize` takes.

    Args:
        stage: `pretrain`, `distill` or `finetune`, for messages.
        config: its section.
        zero: the ZeRO stage, and where states lie.
        further: the user's options (`deepspeed.<key>=<value>`), which go before those of `zero.config`.
        world: processes.
        accumulate: micro-batches of an optimiser step.
        trained: numbers that are trained.
        module: numbers of the whole module.
        precision: `fp16` and `bf16-weights` are DeepSpeed's to see to, the others the loop's.

    Raises:
        UserError: an option that DeepSpeed does not have, or one that contradicts our own settings.
    """
    rows = -(-config.batch_size // (world * accumulate))
    optimization: dict[str, Any] = {"stage": zero.stage}
    for name in ("offload_optimizer", *(("offload_param",) if zero.stage == 3 else ())):
        if zero.offload != "none":
            path = {"nvme_path": zero.nvme_path} if zero.offload == "nvme" else {}
            optimization[name] = {"device": zero.offload, **path}
    ours: dict[str, Any] = {
        "train_batch_size": rows * world * accumulate,
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": config.clip,
        "zero_optimization": optimization,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as fast, and is the same in every engine
    }
    if precision == "fp16":
        ours["torch_autocast"] = {"enabled": True, "dtype": "float16", "lower_precision_safe_modules": []}
    if precision == "bf16-weights":
        ours["bf16"] = {"enabled": True}
    theirs = _merged(_merged({}, options_in(zero.config)), further)
    _check_names(theirs)
    _check_no_contradiction(theirs, ours, stage, zero.config)
    defaults = {"zero_optimization": zero_sizes(trained, module)}
    return _merged(_merged(defaults, theirs), ours)


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


def options_in(path: str | None) -> dict[str, Any]:
    """Those of `zero.config`; none without one.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    if path is None:
        return {}
    try:
        value = load_json(Path(path))
    except OSError as error:
        raise UserError(f"cannot read zero.config {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"zero.config {path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"zero.config {path} must hold a JSON object of DeepSpeed options.")
    return value


def _merged(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in layer.items():
        old = result.get(key)
        if value == "auto":  # as Hugging Face writes what follows from its own settings
            continue
        result[key] = _merged(old if isinstance(old, Mapping) else {}, value) if isinstance(value, Mapping) else value
    return result


def _check_names(options: Mapping[str, Any]) -> None:
    from deepspeed.runtime import constants
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {value for name, value in vars(constants).items() if name.isupper() and isinstance(value, str)}
    known |= {"zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"}
    fields = DeepSpeedZeroConfig.model_fields
    inner = set(fields) | {field.alias for field in fields.values() if field.alias}
    optimization = options.get("zero_optimization")
    within = optimization if isinstance(optimization, Mapping) else {}
    for prefix, given, choices in (("", options, known), ("zero_optimization.", within, inner)):
        if (name := next((each for each in given if each not in choices), None)) is not None:
            hint = nearest(name, sorted(choices), "see its documentation")
            raise UserError(f"DeepSpeed has no option '{prefix}{name}'; {hint}")


def _check_no_contradiction(theirs: Mapping[str, Any], ours: Mapping[str, Any], stage: str, file: str | None) -> None:
    set_here = dict(leaves(ours))
    for path, value in leaves(theirs):
        keys = [path.rsplit(".", depth)[0] for depth in range(path.count(".") + 1)]
        key = next((_OURS[each] for each in keys if each in _OURS), None)
        if key is None or (path in set_here and set_here[path] == value):
            continue
        key = key.format(stage=stage)
        stands = f"={set_here[path]}" if path in set_here else ""
        where = f"deepspeed.{path}" if file is None else f"DeepSpeed's {path}"
        raise UserError(f"{where}={value} contradicts {key}{stands}, which decides it; set {key} instead.")
