"""Several processes train what one trains: every ZeRO stage, offload, stage, mask and way of cutting a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from zero_worker import train

from sdfast.ranks import Ranks

pytest.importorskip("deepspeed", reason="deepspeed is not installed")

ENGINES: dict[str, dict[str, Any]] = {
    "zero-0": {"zero": 0},
    "zero-1": {"zero": 1},
    "zero-2": {"zero": 2},
    "zero-3": {"zero": 3},
    "zero-2-cpu": {"zero": 2, "offload": "cpu"},
    "zero-3-cpu": {"zero": 3, "offload": "cpu"},
}
WORK: dict[str, dict[str, Any]] = {
    "pretrain": {"stage": "pretrain"},
    "pretrain-bernoulli": {"stage": "pretrain", "mask": "bernoulli"},
    "distill": {"stage": "distill"},
    "distill-bernoulli": {"stage": "distill", "mask": "bernoulli"},
    "finetune": {"stage": "finetune"},
    "distill-alone": {"stage": "distill", "objective": {"mae_weight": 0.0}},  # the decoder gets no gradient
    "micro-batches": {"stage": "distill", "engine": {"accumulate": 3}},
    "checkpointed": {"stage": "distill", "engine": {"activation_checkpointing": True}},
    "predictions": {"stage": "distill", "objective": {"match": "predictions", "weight": 0.1}},
    "weights": {"stage": "distill", "objective": {"match": "weights-l2", "weight": 0.1}},
    "fewer-rows-than-processes": {"stage": "pretrain", "batch": 49},  # of 50 rows: the last batch has one
    "classes": {"stage": "finetune", "batch": 49, "weights": [1, 0.3, 2, 4], "balanced": True},
    "text-classes": {"stage": "finetune", "text": True, "budget": 60, "weights": [1, 0.3, 2, 4], "balanced": True},
    "several-labels": {"stage": "finetune", "batch": 49, "labels": "several"},
    "text-numbers": {"stage": "finetune", "text": True, "budget": 60, "labels": "numbers"},
    "text-pretrain": {"stage": "pretrain", "text": True},
    "text-distill": {"stage": "distill", "text": True},
    "text-finetune": {"stage": "finetune", "text": True},
    "text-sequence-mean": {"stage": "pretrain", "text": True, "batch": 49, "objective": {"mean": "sequence"}},
    "text-all-tokens": {"stage": "distill", "text": True, "budget": 60, "objective": {"tokens": "all"}},
    "text-uneven": {"stage": "pretrain", "text": True, "batch": 7},  # about 64 tokens, where linear layers differ
    "text-checkpointed": {"stage": "distill", "text": True, "engine": {"activation_checkpointing": True}},
    "text-head": {"stage": "pretrain", "text": True, "objective": {"head_only": True}},
}
HALF: dict[str, dict[str, Any]] = {
    "fp16": {"engine": {"precision": "fp16"}},
    "bf16": {"engine": {"precision": "bf16"}},
    "bf16-weights": {"engine": {"precision": "bf16-weights"}},
}
FEW = ("zero-0", "zero-2", "zero-3")  # engines enough for the kinds of work further down
ONE_IS_ENOUGH = (
    "text-sequence-mean",
    "text-uneven",
    "text-all-tokens",
    "text-checkpointed",
    "text-head",
    "text-classes",
    "text-numbers",
    "several-labels",
)
EVERY = list(WORK)[:5]  # on every engine
CASES = [(work, name) for work in EVERY for name in ENGINES]
CASES += [(work, name) for work in list(WORK)[5:] for name in (FEW if work not in ONE_IS_ENOUGH else ("zero-2",))]
PARTITIONED = "zero-3-partitioned"  # parameters as small as these are otherwise left whole
ENGINES[PARTITIONED] = {"zero": 3, "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}
CASES += [
    (work, PARTITIONED)
    for work in WORK
    if work in ("distill", "text-checkpointed") or (work.startswith("text-") and work not in ONE_IS_ENOUGH)
]
CASES.remove(("weights", "zero-3"))  # which spreads what is compared
FACTOR = 2.0  # times one process's own rounding error


def is_quick(work: str, engine: str) -> bool:
    """Whether `make test` has it."""
    return work == "distill" or engine in ("zero-2", PARTITIONED) or (work in EVERY and engine in FEW)


@pytest.fixture(scope="module")
def trained(run_cases: Callable[..., Path], chosen: Callable[[str, str], list[tuple[Any, ...]]]) -> Path:
    cases = [{"name": f"{work}-{engine}", **WORK[work], **ENGINES[engine]} for work, engine in chosen("work", "engine")]
    cases += [{"name": f"{half}-{n}", "stage": "distill", **HALF[half], "zero": n} for half in HALF for n in (2, 3)]
    cases += [{"name": kept, "stage": "finetune", "zero": 0, "regularizer": kept} for kept in ("recadam", "mars")]
    return run_cases(2, cases)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Tensor], float]]:
    """For each kind of work the weights in float64, and how far those in float32 are from them."""
    ends = {}
    for name, work in WORK.items():
        plain = {key: value for key, value in work.items() if key not in ("engine", "budget")}
        folder = tmp_path_factory.mktemp("alone")
        truth = train(plain, folder / "64", Ranks(), torch.float64)
        ends[name] = truth, distance(train(plain, folder / "32", Ranks()), truth)
    return ends


def distance(weights: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Over all numbers but the keys' biases: softmax ignores those, and Adam divides their noise by itself."""
    total = 0.0
    for name, value in truth.items():
        difference = weights[name].double() - value
        if name.endswith("qkv.bias"):
            queries, _, values = difference.chunk(3)
            difference = torch.cat((queries, values))
        total += float(difference.square().sum())
    return total**0.5


@pytest.mark.parametrize(
    ("work", "engine"), [pytest.param(*case, marks=() if is_quick(*case) else pytest.mark.slow) for case in CASES]
)
def test_two_processes_end_where_one_does(
    work: str, engine: str, trained: Path, alone: dict[str, tuple[dict[str, Tensor], float]]
) -> None:
    assert json.loads((trained / f"{work}-{engine}.json").read_text()) == [{}, {}]
    truth, own_error = alone[work]
    weights = load_file(trained / f"{work}-{engine}.safetensors")
    assert set(weights) == set(truth)
    error = distance(weights, truth)
    assert 0 < error <= FACTOR * own_error


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("half", HALF)
def test_half_precision_is_that_of_one_process(
    half: str, zero: int, trained: Path, alone: dict[str, tuple[dict[str, Tensor], float]], tmp_path: Path
) -> None:
    """With weights in bfloat16 too, and float32 masters, DeepSpeed may err by as much again."""
    truth, _ = alone["distill"]
    work = {"stage": "distill", "engine": {"precision": half.removesuffix("-weights")}}
    own_error = distance(train(work, tmp_path, Ranks()), truth)
    error = distance(load_file(trained / f"{half}-{zero}.safetensors"), truth)
    assert own_error / 2 < error <= FACTOR * own_error


@pytest.mark.parametrize("kept", ["recadam", "mars"])
def test_what_acts_on_the_optimiser_does_so_in_every_process(kept: str, trained: Path, tmp_path: Path) -> None:
    case = {"stage": "finetune", "regularizer": kept}
    truth = train(case, tmp_path / "64", Ranks(), torch.float64)
    own_error = distance(train(case, tmp_path / "32", Ranks()), truth)
    assert distance(load_file(trained / f"{kept}.safetensors"), truth) <= FACTOR * own_error
    plain = train({"stage": "finetune"}, tmp_path / "plain", Ranks(), torch.float64)
    assert distance(truth, plain) > 100 * own_error
