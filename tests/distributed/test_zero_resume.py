"""A run that stops goes on at another number of processes and another ZeRO stage; what is wrong in one ends all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_zero_trajectories import FACTOR, distance
from zero_worker import train

from sdfast.errors import Interrupted
from sdfast.ranks import Ranks
from sdfast.store.checkpoint import Checkpoint, newest

pytest.importorskip("deepspeed", reason="deepspeed is not installed")

DISTILL: dict[str, Any] = {"stage": "distill"}
FINETUNE: dict[str, Any] = {"stage": "finetune", "dropout": 0.2}  # drawn anew at each step, in each process
STAGES = {"zero-0": {"zero": 0}, "zero-1": {"zero": 1}, "zero-2": {"zero": 2}, "zero-3": {"zero": 3}}
STAGES |= {"zero-2-cpu": {"zero": 2, "offload": "cpu"}, "zero-3-cpu": {"zero": 3, "offload": "cpu"}}
DROPOUT_TOO = ("zero-2", "zero-3")
LONG = ("zero-1", "zero-2-cpu")  # not in `make test`
STOP = 5
TEXT: dict[str, Any] = {"stage": "distill", "text": True, "dropout": 0.2, "budget": 60, **STAGES["zero-2"]}
KILLED: dict[str, Any] = {**TEXT, "run": "text-killed", "engine": {"checkpoint_steps": 2}}


@pytest.fixture(scope="module")
def runs(
    run_cases: Callable[..., Path], chosen: Callable[..., list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Whole runs on two processes, ones that were stopped or killed and continued, and ones that fail."""
    folder = tmp_path_factory.mktemp("cases")
    run_cases(2, [{**KILLED, "name": "text-killed", "kill": STOP}], folder, dies=True)
    found = newest(folder / "text-killed" / "checkpoints", {"case": "one"})
    assert found is not None and Checkpoint.open(found).step == 4
    cases: list[dict[str, Any]] = [{**TEXT, "name": "text-whole"}, {**KILLED, "name": "text-resumed"}]
    for name, kind in chosen("engine", "kind"):
        work = {**(DISTILL if kind == "distill" else FINETUNE), **STAGES[name]}
        cut = {**work, "run": f"{kind}-{name}"}
        cases += [{**work, "name": f"{kind}-{name}-whole"}, {**cut, "name": f"{kind}-{name}-stopped", "stop": STOP}]
        cases += [{**cut, "name": f"{kind}-{name}-resumed"}]
    for name, other in chosen("left", "other"):
        cut = {**DISTILL, "run": f"{name}-to-{other}"}
        cases += [{**cut, **STAGES[name], "name": f"{name}-to-{other}-stopped", "stop": STOP}]
        cases += [{**cut, **STAGES[other], "name": f"{name}-to-{other}"}]
    for name in ("zero-2", "zero-3"):
        cases += [{**DISTILL, **STAGES[name], "name": f"leave-{name}", "stop": STOP}]
        cases += [{**DISTILL, **STAGES[name], "name": f"poison-{name}", "poison": STOP}]
    return run_cases(2, cases, folder)


def ends(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("engine", "kind"),
    [pytest.param(name, "distill", marks=pytest.mark.slow if name in LONG else ()) for name in STAGES]
    + [(name, "finetune") for name in DROPOUT_TOO],
)
def test_stopped_and_resumed_in_as_many_processes_gives_the_same_bits(engine: str, kind: str, runs: Path) -> None:
    stopped = ends(runs, f"{kind}-{engine}-stopped")
    assert [(end["error"], end["code"]) for end in stopped] == [("Interrupted", 143)] * 2
    assert len({end["text"] for end in stopped}) == 1 and f"stopped at step {STOP + 2} of 12" in stopped[0]["text"]
    whole = load_file(runs / f"{kind}-{engine}-whole.safetensors")
    resumed = load_file(runs / f"{kind}-{engine}-resumed.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_killed_in_distill_on_texts_and_resumed_gives_the_same_bits(runs: Path) -> None:
    """With dropout, which is drawn anew at each step, in each process."""
    assert not (runs / "text-killed.json").exists() and ends(runs, "text-resumed") == [{}, {}]
    whole, resumed = (load_file(runs / f"text-{name}.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], float]:
    folder = tmp_path_factory.mktemp("one")
    truth = train(DISTILL, folder / "64", Ranks(), torch.float64)
    return truth, distance(train(DISTILL, folder / "32", Ranks()), truth)


@pytest.mark.parametrize(
    ("left", "other"),
    [
        ("zero-2", "zero-3"),
        ("zero-3", "zero-1"),
        pytest.param("zero-1", "zero-0", marks=pytest.mark.slow),
        pytest.param("zero-0", "zero-3-cpu", marks=pytest.mark.slow),
    ],
)
def test_another_zero_stage_goes_on(
    left: str, other: str, runs: Path, one_process: tuple[dict[str, torch.Tensor], float]
) -> None:
    name = f"{left}-to-{other}"
    assert ends(runs, name) == [{}, {}]
    truth, own_error = one_process
    assert distance(load_file(runs / f"{name}.safetensors"), truth) <= FACTOR * own_error


@pytest.mark.parametrize("engine", ["zero-2", "zero-3"])
def test_one_process_goes_on_and_two_go_on_from_one(
    engine: str,
    runs: Path,
    one_process: tuple[dict[str, torch.Tensor], float],
    tmp_path: Path,
    run_cases: Callable[..., Path],
) -> None:
    truth, own_error = one_process
    assert distance(train(DISTILL, runs / f"leave-{engine}", Ranks()), truth) <= FACTOR * own_error
    with pytest.raises(Interrupted):
        train({**DISTILL, "stop": STOP}, tmp_path / "back", Ranks())
    run_cases(2, [{**DISTILL, **STAGES[engine], "name": "back"}], tmp_path)
    assert ends(tmp_path, "back") == [{}, {}]
    assert distance(load_file(tmp_path / "back.safetensors"), truth) <= FACTOR * own_error


@pytest.mark.parametrize("engine", ["zero-2", "zero-3"])
def test_a_loss_that_is_not_finite_in_one_process_ends_all_in_the_same_words(engine: str, runs: Path) -> None:
    first, second = ends(runs, f"poison-{engine}")
    assert first == second and first["error"] == "RunError"
    assert f"the loss of distill stopped being finite at step {STOP + 1};" in first["text"]
    assert not list((runs / f"poison-{engine}").glob("checkpoints/step-*"))
