"""`sdfast plan`: whether a stage fits on some devices, and how long its step takes, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, get_args

import typer

from sdfast.cli import complete, output
from sdfast.cli.options import Overrides
from sdfast.errors import UserError

_EXAMPLES = 10_000
_SHARE = 0.4
_MOST = 1e12  # GB, TFLOP/s or GB/s: far above any machine, and far below what a float cannot tell


def plan(
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="vit-ti, -s, -b, -l, -h, roberta-base, -large; hub id or folder; else bundled")
    ] = None,
    stage: Annotated[
        str,
        typer.Option(
            help="pretrain, distill or finetune", autocompletion=complete.words("pretrain", "distill", "finetune")
        ),
    ] = "distill",
    batch: Annotated[int | None, typer.Option(min=1, help="of all devices; the stage's own when not given")] = None,
    devices: Annotated[int, typer.Option(min=1, help="over which the batch is split")] = 1,
    zero: Annotated[int | None, typer.Option(min=0, max=3, help="ZeRO stage; all when not given")] = None,
    offload: Annotated[str, typer.Option(help="of the optimiser, with --zero 3 of parameters too: cpu, nvme")] = "none",
    checkpointing: Annotated[bool, typer.Option(help="of activations; engine.activation_checkpointing")] = False,
    precision: Annotated[str | None, typer.Option(help="fp32, tf32, bf16 (autocast) or bf16-weights")] = None,
    memory: Annotated[float | None, typer.Option(help="GB of a GPU; this machine's device when not given")] = None,
    tflops: Annotated[float | None, typer.Option(help="peak of a device; this one's, measured, if not given")] = None,
    share: Annotated[float, typer.Option(help="of the peak that a step reaches (see sdfast bench)")] = _SHARE,
    link: Annotated[float | None, typer.Option(help="GB/s from a device to the others")] = None,
    examples: Annotated[int, typer.Option(min=1, help="that the bank and the pack hold")] = _EXAMPLES,
    markdown: Annotated[bool, typer.Option("--markdown", help="print a Markdown table")] = False,
) -> None:
    """Predict memory per device and time per step for ZeRO stages; nothing is trained."""
    from sdfast.costs.plan import Machine, bank_bytes, device_bytes, make_plan, rows_of
    from sdfast.costs.workload import workload
    from sdfast.costs.zero_memory import Offload, Precision, Setup
    from sdfast.modalities.named import task_of

    _check(stage, ("pretrain", "distill", "finetune"), "--stage")
    _check(offload, get_args(Offload), "--offload")
    for name, number in (("--memory", memory), ("--tflops", tflops), ("--share", share), ("--link", link)):
        if number is not None and not 0 < number <= _MOST:
            raise UserError(f"{name} {number:g} must be above 0 and at most {_MOST:g}.")
    if share > 1:
        raise UserError(f"--share {share:g} must be at most 1: it is a share of the peak.")
    config, shape, dropouts, device = _opened(model, overrides or ())
    cuda = memory is not None or device.type == "cuda"
    chosen = precision or _precision(config.engine.precision, cuda, device)
    _check(chosen, get_args(Precision), "--precision")
    if tflops is None and cuda and device.type != "cuda":
        raise UserError("--memory plans for a GPU, and there is none here to measure; give its --tflops.")
    peak = 1e12 * tflops if tflops is not None else _measured(chosen, device)
    machine = Machine(
        int(1e9 * memory) if memory is not None else device_bytes(device),
        peak,
        share,
        None if link is None else 1e9 * link,
    )
    step: Any = stage
    work = workload(task_of(step, config, shape, dropouts=dropouts))
    wanted = batch or getattr(config, stage).batch_size
    kind: Any = offload
    exact: Any = chosen
    own = Setup(
        devices,
        offload=kind,
        precision=exact,
        checkpointing=checkpointing or config.engine.activation_checkpointing,
        accumulate=config.engine.accumulate,
        cuda=cuda,
    )
    stages = [zero] if zero is not None else {"none": [0, 1, 2, 3], "cpu": [1, 2, 3], "nvme": [3]}[offload]
    held = bank_bytes(work, config, examples), examples * work.example
    setups = [Setup(**{**vars(own), "zero": number}) for number in stages]
    plans = [make_plan(work, setup, machine, wanted, *held) for setup in setups]
    lines = [
        f"{model or 'bundled'}, {stage}",
        f"{work.trained / 1e6:.1f} M parameters trained, {work.flops / 1e9:.4g} GFLOP an example, {chosen}",
        f"batch {wanted} on {devices} device{'s' * (devices > 1)} of {machine.memory / 1e9:.3g} GB, "
        + ("link not given" if link is None else f"link {link:g} GB/s"),
        f"{peak * share / 1e12:.3g} TFLOP/s of {peak / 1e12:.3g} expected of each",
    ]
    if own.checkpointing:
        lines.append("activations of the blocks are checkpointed")
    if offload != "none":
        lines.append(f"offloaded to {offload}; the time of moving data there and back is not counted")

    def show() -> None:
        typer.echo("\n".join(lines) + "\n")
        _print({f"ZeRO {each.setup.zero}": rows_of(each, machine) for each in plans}, markdown)

    document = {"model": model or "bundled", "stage": stage, "batch": wanted, "about": lines}
    output.give({**document, "machine": machine, "plans": list(map(_document, plans))}, show)


def _document(plan: Any) -> dict[str, Any]:
    """A plan for a program: bytes, seconds, examples a second."""
    memory = {**vars(plan.memory), "total": plan.memory.total}
    return {**vars(plan), "memory": memory, "seconds": plan.seconds, "rate": plan.rate}


def _opened(model: str | None, overrides: Sequence[str]) -> tuple[Any, Any, Any, Any]:
    """Configuration, shape, a text model's dropouts and the local device; a named shape needs no weights."""
    from sdfast.modalities.named import NAMED, PUBLISHED_DROPOUTS
    from sdfast.pipeline import Pipeline

    pipeline = Pipeline(model=model, overrides=overrides)
    shape = NAMED.get(model or "")
    if shape is not None:
        return pipeline.config, shape, PUBLISHED_DROPOUTS, pipeline.device
    initial = pipeline.initial  # whose own settings enter the configuration
    return pipeline.config, initial.shape, getattr(initial, "dropouts", PUBLISHED_DROPOUTS), pipeline.device


def _precision(configured: str, cuda: bool, device: Any) -> str:
    """`auto` of a GPU that is not here is bf16."""
    from sdfast.engine.machine import resolve_precision

    if cuda and device.type != "cuda":
        return "bf16" if configured == "auto" else configured
    return resolve_precision(configured, device)


def _measured(precision: str, device: Any) -> float:
    import torch

    from sdfast.engine.machine import fp32_matmul
    from sdfast.engine.peak import matmul_peak

    half = precision.startswith("bf16")
    with fp32_matmul("bf16" if half else precision, device):
        return matmul_peak(device, torch.bfloat16 if half else torch.float32)


def _check(value: str, known: Sequence[str], option: str) -> None:
    if value not in known:
        raise UserError(f"{option} {value} is not known; use {', '.join(known[:-1])} or {known[-1]}.")


def _print(columns: dict[str, dict[str, Any]], markdown: bool) -> None:
    names = list(next(iter(columns.values())))
    lines = [["", *columns], *([name, *(_shown(rows[name]) for rows in columns.values())] for name in names)]
    if markdown:
        lines.insert(1, ["---", *["---:"] * len(columns)])
        typer.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    for line in lines:
        typer.echo(f"{line[0]:24}" + "".join(f"{cell:>12}" for cell in line[1:]))


def _shown(value: Any) -> str:
    if value is None:
        return "?"
    if isinstance(value, float):
        return "-" if value == 0 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return str(value)
