"""What launchers say, and how processes agree."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from sdfast import launch
from sdfast.errors import RunError, UserError
from sdfast.launch import LaunchInfo, _name_meeting_point, first_machine, launch_info, may_speak
from sdfast.ranks import Ranks, explain_lost_process

SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]"}


def test_launchers_are_recognised() -> None:
    assert launch_info({}) == LaunchInfo()
    assert launch_info({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == LaunchInfo(3, 4, 1)
    assert launch_info(SLURM) == LaunchInfo(5, 8, 1)
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "gpu[07-08]"}
    assert launch_info(batch_script) == LaunchInfo()


@pytest.mark.parametrize("environment", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_a_broken_launch_is_one_sentence(environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match="RANK"):
        launch_info(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[07-12,20],login1", "gpu07"), ("a[3,5]b", "a3b"), ("rack-2[1-4]", "rack-21")],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert first_machine(nodes) == first


def test_the_meeting_point_of_a_step() -> None:
    environment = {**SLURM, "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "2"}
    _name_meeting_point(environment)
    assert environment["MASTER_ADDR"] == "gpu07" and 20_000 <= int(environment["MASTER_PORT"]) < 40_000
    given = {"MASTER_ADDR": "host", "MASTER_PORT": "1"}
    _name_meeting_point(given)
    assert given == {"MASTER_ADDR": "host", "MASTER_PORT": "1"}
    with pytest.raises(UserError, match="MASTER_ADDR"):
        _name_meeting_point({})


@pytest.mark.parametrize(
    ("device", "current", "launcher", "index"),
    [
        (torch.device("cuda"), 0, {}, 0),
        (torch.device("cuda"), 2, {}, 2),
        (torch.device("cuda", 1), 0, {}, 1),
        (torch.device("cuda"), 0, {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n"}, 1),
    ],
)
def test_a_process_takes_its_gpu(
    device: torch.device, current: int, launcher: dict[str, str], index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own `set_device` wants a number. DeepSpeed takes the GPU that LOCAL_RANK names."""
    taken: list[Any] = []
    monkeypatch.setenv("LOCAL_RANK", "")
    monkeypatch.delenv("LOCAL_RANK")  # and again afterwards
    for name, value in {**launcher, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", taken.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(launch.dist, "init_process_group", lambda backend, **_: taken.append(backend))
    monkeypatch.setattr(launch.dist, "new_group", lambda **_: None)
    monkeypatch.setattr(launch.Ranks, "current", Ranks)
    launch.join(device, alone=True)
    assert taken == [index, "cpu:gloo,cuda:nccl"]
    assert launch.name_local_rank(device) == ("LOCAL_RANK" not in launcher) and os.environ["LOCAL_RANK"] == str(index)
    assert not launch.name_local_rank(device)


def test_one_process_speaks() -> None:
    assert may_speak()


def test_a_lost_process_is_one_sentence_and_other_errors_stay() -> None:
    two = Ranks(0, 2, lambda value: [value, value])
    with pytest.raises(RunError, match="another process of this job died"), explain_lost_process(two):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    for ranks, error in ((Ranks(), "gloo"), (two, "shapes do not fit")):
        with pytest.raises(RuntimeError, match=error), explain_lost_process(ranks):
            raise RuntimeError(error)


def test_what_the_first_does_reaches_all() -> None:
    said: list[Any] = []

    def answers(value: Any) -> list[Any]:
        said.append(value)
        return [[None, "made by the first"], value]

    second = Ranks(1, 2, answers)
    assert second.first(lambda: pytest.fail("the others wait")) == "made by the first"
    assert second.rank0_then_others(lambda: "found") == "found" and said == [[None, None]] * 3
    failing = Ranks(1, 2, lambda value: [[["user", 0, "no such folder."], None], value])
    with pytest.raises(UserError, match="no such folder"):
        failing.first(lambda: None)


def test_one_of_several_is_not_taken_apart_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of gloo would abort it; what is to be done at the exit is done before."""
    done: list[Any] = []

    def leave_to_the_system(code: int) -> None:
        done.append(code)
        raise InterruptedError

    monkeypatch.setattr(launch.atexit, "_run_exitfuncs", lambda: done.append("at the exit"))
    monkeypatch.setattr(launch.os, "_exit", leave_to_the_system)
    monkeypatch.setattr(launch, "_met", False)
    with pytest.raises(SystemExit) as alone:
        launch.end(3)
    assert alone.value.code == 3 and done == []
    monkeypatch.setattr(launch, "_met", True)
    with pytest.raises(InterruptedError):
        launch.end(3)
    assert done == ["at the exit", 3]
