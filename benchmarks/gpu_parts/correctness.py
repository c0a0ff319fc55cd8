"""Whether every path on this device computes what the plain one does."""

from __future__ import annotations

import subprocess
import sys
import typing
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_teacher import recipe_of
from step_clock import matmul_precision
from step_setup import MEAN, STD, Ours, Point, plain, shape_of, switches, trainer_of
from torch import Tensor

from gpu_parts import attention
from gpu_parts.context import Context
from sdfast.engine.teacher_bank import bank_targets
from sdfast.objectives.base import Normalise
from sdfast.products import float32_products
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.residency import Residency

ROOT = Path(__file__).parents[2]
PYTEST_SECONDS = 90.0


def gpu_tests(context: Context) -> dict[str, Any]:
    """The tests marked `gpu`, in a process of their own: counts, and the first words of each failure."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    files = sorted(files, key=lambda path: path.stat().st_size)[:1] if context.quick else files
    report = context.folder / "gpu-tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", f"--junitxml={report}", *map(str, files)]
    seconds = min(PYTEST_SECONDS, context.left())
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    if not report.exists():
        raise RuntimeError(f"pytest wrote no report: {(done.stdout + done.stderr)[-300:]}")
    return {"files": len(files), "exit_code": done.returncode, **read_report(report)}


def read_report(path: Path) -> dict[str, Any]:
    """Counts and failures of a JUnit report."""
    suite = next(ElementTree.parse(path).getroot().iter("testsuite"))
    failures = []
    for case in suite.iter("testcase"):
        for element in (*case.findall("failure"), *case.findall("error")):
            words = " ".join((element.get("message") or "").split())[:200]
            failures.append(f"{case.get('classname')}::{case.get('name')}: {words}")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return {**counts, "failed": failures}


def run_steps(point: Point, engine: dict[str, Any], dtype: torch.dtype, steps: int, context: Context) -> Any:
    """Losses [steps] and final weights of a run of sdfast's loop, and its first weights; in float64 on the CPU."""
    trainer = trainer_of(point, Ours(engine=engine), context.folder, dtype)
    start = flat(trainer)
    losses = []
    tf32 = context.device == "cuda" and engine.get("precision") != "fp32"
    with matmul_precision(tf32), float32_products(engine.get("fp32_products", "auto")):
        for _ in range(steps):
            losses.append(trainer._one_step()["loss"].detach().clone())
            trainer.step += 1
    return torch.stack(losses).double().cpu(), flat(trainer), start


def flat(trainer: Any) -> Tensor:
    """All trained numbers but the keys' biases: softmax ignores them, and Adam divides their noise by itself."""
    parts = []
    for name, parameter in trainer.engine.parameters.items():
        numbers = parameter.detach().double().flatten().cpu()
        if name.endswith("qkv.bias"):
            queries, _, values = numbers.chunk(3)
            numbers = torch.cat((queries, values))
        parts.append(numbers)
    return torch.cat(parts)


def settings_agree(context: Context) -> dict[str, Any]:
    """Every setting against the plain step: shortcuts, attention backends, graphs, compilation; by the same rule.

    The truth is the plain step in float64. A setting's error is how far its weights end from the truth's, as a share of
    how far those moved; it may be at most twice the plain step's own in the same precision.
    """
    model, batch, steps = ("tiny", 4, 3) if context.quick else ("ViT-Ti/16", 16, 20)
    point = Point("distill", model, batch, context.device, 2 * batch)
    exact = {"precision": "fp32"}
    true_losses, true_weights, start = run_steps(point, plain() | exact, torch.float64, steps, context)
    moved = float((true_weights - start).norm())
    rows: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = {"plain": plain(), "default": {}}
    for name, values in switches().items():
        variants |= {f"{name}={value}": {"compile": False, name: value} for value in values}

    def errors(settings: dict[str, Any]) -> dict[str, Any]:
        losses, weights, _ = run_steps(point, settings, torch.float32, steps, context)
        loss_error = float(((losses - true_losses) / true_losses).abs().max())
        return {"weights": float((weights - true_weights).norm()) / moved, "losses": loss_error}

    for precision in ("fp32", "bf16", "tf32") if context.device == "cuda" else ("fp32", "bf16"):
        for name, settings in variants.items():
            row = context.attempt(errors, settings | {"precision": precision}, needs=0 if context.quick else 8)
            rows[f"{name}, {precision}"] = row
            allowed = rows[f"plain, {precision}"]
            if "error" not in row and "error" not in allowed:
                row["times_plain"] = row["weights"] / allowed["weights"] if allowed["weights"] else 1.0
                row["met"] = row["times_plain"] <= 2
    return {"point": str(point), "steps": steps, "rows": rows}


def bf16_follows_fp32(context: Context) -> dict[str, Any]:
    """Means of the loss over tenths of a run in float32 and in bfloat16; they may differ by 1 % (quick: 5 %)."""
    model, batch, steps = ("tiny", 4, 10) if context.quick else ("ViT-Ti/16", 64, 100)
    point = Point("distill", model, batch, context.device, 8 * batch)
    curves = {}
    for precision in ("fp32", "bf16"):
        losses = run_steps(point, {"precision": precision}, torch.float32, steps, context)[0]
        curves[precision] = losses.unflatten(0, (10, -1)).mean(1).tolist()
    apart = max(abs(x - y) / abs(x) for x, y in zip(curves["fp32"], curves["bf16"], strict=True))
    return {
        "point": str(point),
        "steps": steps,
        **curves,
        "apart": apart,
        "met": apart <= (0.05 if context.quick else 0.01),
    }


def banks_alike(context: Context) -> dict[str, Any]:
    """Steps against one bank wherever it lies: the weights afterwards, compared with the first place's."""
    model, batch, steps = ("tiny", 4, 2) if context.quick else ("ViT-Ti/16", 16, 5)
    point = Point("distill", model, batch, context.device, 2 * batch)
    device = torch.device(context.device)
    recipe = recipe_of(shape_of(model), point.rows)
    recipe = replace(recipe, device=device, normalise=Normalise(MEAN, STD).to(device))
    bank = prepare_bank(context.folder / "teacher", recipe)
    rows: dict[str, Any] = {}
    first: Tensor | None = None
    for place in typing.get_args(Residency):
        if place == "auto":
            continue
        settings = Ours(engine={"precision": "fp32", "compile": False})
        trainer = trainer_of(point, settings, context.folder, teacher=bank_targets(bank, recipe, place))
        with matmul_precision(tf32=False):
            for _ in range(steps):
                trainer._one_step()
                trainer.step += 1
        weights = flat(trainer)
        first = weights if first is None else first
        apart = float((weights - first).abs().max())
        rows[place] = {"apart": apart, "met": apart <= 1e-7}
    return rows


def run(context: Context) -> Iterator[dict[str, Any]]:
    """The tests first, then whole steps."""
    result: dict[str, Any] = {"tests": context.attempt(gpu_tests, context)}
    yield result
    heads, width = (2, 16) if context.quick else (12, 64)
    result["attention"] = {}
    for dtype in (torch.bfloat16, torch.float32):
        for name, groups in attention.groups_of(context, 8).items():
            key = f"{name} tokens, {str(dtype).removeprefix('torch.')}"
            result["attention"][key] = context.attempt(attention.agreement, groups, heads, width, dtype, context)
    yield result
    for name, check in (("settings", settings_agree), ("bf16", bf16_follows_fp32), ("banks", banks_alike)):
        result[name] = context.attempt(check, context)
        yield result
