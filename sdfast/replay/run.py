"""`sdfast replay`: find the fault that is kept in a run, go to the step before it, and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from sdfast import durable
from sdfast.context import Context
from sdfast.engine.faults import FAULT, plain
from sdfast.engine.loop import Trainer
from sdfast.errors import UserError, nearest, said
from sdfast.log import log
from sdfast.replay.again import Way, alone, beginnings, compared, go_to, trainer_from
from sdfast.replay.causes import Finding, diagnose
from sdfast.replay.watch import described, first_not_finite
from sdfast.rundir import Result
from sdfast.stages.build import build_stage, names_of
from sdfast.stages.graph import Stage, distillation, finetuning, pretraining
from sdfast.stages.inputs import inputs_of
from sdfast.stages.run_directory import RunDirectory
from sdfast.stages.train import sources_of
from sdfast.store.artifact import first_changed_key

_FILE = "fault.json"
_KEPT = {"stage", "step", "found_at", "identity", "zero", "processes"}


def faults_in(out: Path) -> dict[str, Path]:
    """The folders of the stages of a run with a fault, with its file, newest first."""
    found = [*out.glob(f"*/{FAULT}/{_FILE}"), *out.glob(f"*/*/{FAULT}/{_FILE}")]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return {path.parents[1].relative_to(out).as_posix(): path for path in found}


def replay_run(context: Context, place: RunDirectory, wanted: str | None = None) -> tuple[dict[str, Any], Finding]:
    """Run the step of a fault again; what is found is written to `fault/replay.json` and `fault/weights.safetensors`.

    Args:
        context: of the run.
        place: its directory, which is held.
        wanted: folder of the stage; the newest fault when None.

    Returns:
        What was kept of the fault, and what was found.

    Raises:
        UserError: no fault is kept, or the run has changed since.
    """
    faults = faults_in(place.out)
    if not faults or (wanted is not None and wanted not in faults):
        there = nearest(wanted or "", list(faults)) if faults else "one is when a loss stops being finite."
        raise UserError(f"no fault is kept in {place.out / (wanted or '')}; {there}")
    folder = wanted or next(iter(faults))
    fault = _read(faults[folder])
    stage, results = _stage_of(context, place, folder, fault)
    run, directory = alone(context), place.out / folder
    if fault["zero"] or fault["processes"] > 1:
        count = f"{fault['processes']} process{'es' * (fault['processes'] > 1)}"
        log.warning(
            "replay: the run was one of %s with --zero %d, and the step is run in one without: sums in another order"
            " may differ in their last bits",
            count,
            fault["zero"],
        )
    start, teacher = sources_of(
        run, stage, results, lambda recipe: place.bank(recipe, rebuild=False, new_teacher=False)
    )

    def build(temporary: Path, resume: bool) -> Trainer:
        identity = fault["identity"]
        return build_stage(run, stage, start, temporary, teacher=teacher, inputs=identity, resume=resume)

    section = "pretrain" if stage.kind == "head" else stage.kind
    found, state = _found(run, stage, start, build, directory, fault)
    command = f"sdfast train --config {place.out / 'config.yaml'} --out {place.out}"
    found.remedies = [_as_command(each, command, place.out, section) for each in found.remedies]
    values = {"fault": {name: fault[name] for name in ("stage", "step", "found_at")}, **asdict(found)}
    if place.read_only:
        log.warning("replay: %s may not be written, so what was found is not kept", place.out)
    else:
        if state:
            durable.write_bytes(directory / FAULT / "weights.safetensors", save(state))
        durable.write_json(directory / FAULT / "replay.json", plain(values))
    return fault, found


def _read(path: Path) -> dict[str, Any]:
    """What was kept of a fault.

    Raises:
        UserError: it is not what was written.
    """
    try:
        fault = durable.load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used: {said(error) if isinstance(error, OSError) else error}.") from error
    if not isinstance(fault, dict) or not fault.keys() >= _KEPT or not isinstance(fault["identity"], dict):
        raise UserError(f"{path} cannot be used: it is not what a run writes.")
    return fault


def _found(
    run: Context, stage: Stage, start: Any, build: Any, directory: Path, fault: dict[str, Any]
) -> tuple[Finding, dict[str, Tensor]]:
    """Go to the step from the newest checkpoint whose weights are finite, and look; with the weights before it."""
    unsound: list[tuple[int, str, str]] = []
    for path in beginnings(directory, fault["step"]):
        with trainer_from(build, path) as trainer:
            broken = first_not_finite(trainer.objective.module)
            if broken is not None:
                unsound.append((trainer.steps_done, broken[0], described(broken[1])))
                continue
            way = go_to(trainer, fault["step"] - 1)
            if way.broke is None:
                return _looked_at(run, stage, start, way, directory, unsound)
        with trainer_from(build, path) as trainer:  # an earlier step went wrong, and is past
            way = go_to(trainer, way.broke - 1)
            return _looked_at(run, stage, start, way, directory, unsound)
    _, tensor, words = unsound[-1]
    origin = f"--model {run.config.model_spec}" if stage.start is None else f"the result of {stage.start.folder}"
    found = Finding(
        "weights",
        tensor,
        f"{tensor} of {origin}, which {stage.folder} starts from, is not finite ({words}).",
        [f"weights that the stage starts from: {tensor} {words}"],
        ["give another --model" if stage.start is None else f"--stage {stage.start.kind} --resume never"],
    )
    return found, {}


def _looked_at(
    run: Context, stage: Stage, start: Any, way: Way, directory: Path, unsound: Sequence[tuple[int, str, str]]
) -> tuple[Finding, dict[str, Tensor]]:
    trainer, number = way.trainer, way.trainer.steps_done + 1
    state = {name: value.detach().cpu().clone() for name, value in trainer.objective.module.state_dict().items()}
    names = names_of(run, stage.kind, trainer.order.batch(number - 1).rows)
    found = diagnose(way, start, "pretrain" if stage.kind == "head" else stage.kind, names)
    found.tried.insert(0, f"step {number}, come to from the weights of step {way.begun}")
    if (words := compared(way, directory / "metrics.jsonl")) is not None:
        found.tried.insert(1, words)
    if unsound and found.cause is None:
        step, tensor, words = unsound[0]
        found.cause, found.tensor = "checkpoint", tensor
        path = directory / "checkpoints" / f"step-{step:08d}"
        found.sentence = (
            f"{tensor} of the checkpoint of step {step} is not finite ({words}), and the steps before it do not make it"
            " so: the checkpoint is damaged."
        )
        found.remedies = [f"rm -r {path}", "run the same command again"]
    return found, state


def _stage_of(
    context: Context, place: RunDirectory, folder: str, fault: dict[str, Any]
) -> tuple[Stage, dict[Stage, Result]]:
    """The stage of a fault, and the results of those that it needs.

    Raises:
        UserError: the run has changed since, so that the stage is another.
    """
    changed = f"a stage of the run is called {folder}"
    for stage in _candidates(context, folder, fault):
        results: dict[Stage, Result] = {}
        for need in stage.chain():
            inputs = inputs_of(context, need, {each: result.weights for each, result in results.items()})
            if need is stage:
                if inputs == fault["identity"]:
                    return stage, results
                changed = first_changed_key(fault["identity"], inputs) or changed
                break
            done = place.directory(need, inputs).finished(inputs)
            if done is None:
                changed = f"the result of {need.folder}"
                break
            results[need] = done
    raise UserError(
        f"{changed} has changed since the loss of {folder} stopped being finite, so that the step cannot be run again;"
        " run the command that failed once more."
    )


def _candidates(context: Context, folder: str, fault: dict[str, Any]) -> list[Stage]:
    """Stages that may be the one: those of the configuration, and fine-tunings of Python's with names of their own."""
    if fault["stage"] == "finetune":
        starts = dict.fromkeys((context.config.finetune.start, "distill", "pretrain", "init"))
        return [finetuning(context, start, fault["identity"]["seed"], folder) for start in starts]
    chain = [*distillation(context).chain(), *pretraining(context).chain()]
    return [stage for stage in chain if stage.folder == folder][:1]


def _as_command(remedy: str, command: str, out: Path, section: str) -> str:
    """A setting, or the end of a command, as a whole command."""
    remedy = remedy.replace("{out}", str(out)).replace("{section}", section)
    if remedy.startswith("--") or "=" in remedy.split(" ")[0]:
        return f"{command} {remedy}"
    return remedy
