"""Several processes train what LoRA and a linear probe train in one, keep the rest to the last bit, and go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_zero_trajectories import FACTOR, distance
from torch import Tensor
from zero_worker import train

from sdfast.ranks import Ranks

pytest.importorskip("deepspeed", reason="deepspeed is not installed")

STOP = 5
WORK: dict[str, dict[str, Any]] = {
    "distill": {"stage": "distill", "method": "lora"},
    "finetune": {"stage": "finetune", "method": "lora"},
    "text-distill": {"stage": "distill", "text": True, "method": "lora"},
    "probe": {"stage": "finetune", "method": "linear_probe"},
}
CASES = [(work, zero) for work in WORK for zero in (0, 2)] + [("distill", 3), ("text-distill", 3), ("probe", 3)]
PARTED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # parameters so small are else left whole


@pytest.fixture(scope="module")
def trained(run_cases: Callable[..., Path]) -> Path:
    cases = [
        {"name": f"{work}-{zero}", **WORK[work], "zero": zero, "deepspeed": PARTED if zero == 3 else {}}
        for work, zero in CASES
    ]
    cut = {**WORK["distill"], "zero": 2, "run": "cut"}
    cases += [{**cut, "name": "stopped", "stop": STOP}, {**cut, "name": "resumed"}]
    return run_cases(2, cases)


@pytest.mark.parametrize(("work", "zero"), CASES)
def test_two_processes_end_where_one_does(work: str, zero: int, trained: Path, tmp_path: Path) -> None:
    assert json.loads((trained / f"{work}-{zero}.json").read_text()) == [{}, {}]
    truth = train(WORK[work], tmp_path / "64", Ranks(), torch.float64)
    alone = train(WORK[work], tmp_path / "32", Ranks())
    found = load_file(trained / f"{work}-{zero}.safetensors")
    assert set(found) == set(truth)
    assert 0 < distance(found, truth) <= FACTOR * distance(alone, truth)
    frozen = [name for name in found if is_frozen(name, WORK[work]["method"])]
    assert frozen and all(torch.equal(found[name], alone[name]) for name in frozen)


def is_frozen(name: str, method: str) -> bool:
    return (
        name.startswith("encoder.") and "lora_" not in name if method == "lora" else not name.startswith("classifier.")
    )


def test_a_stage_that_was_stopped_goes_on(trained: Path) -> None:
    assert [each["error"] for each in json.loads((trained / "stopped.json").read_text())] == ["Interrupted"] * 2
    whole: dict[str, Tensor] = load_file(trained / "distill-2.safetensors")
    resumed = load_file(trained / "resumed.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
