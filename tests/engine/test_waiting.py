"""Threads that wait: spinning while the processors are free, asleep beside other work, and as the user says."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import pytest
import torch

from sdfast.config import EngineConfig
from sdfast.engine import waiting
from sdfast.engine.machine import cpu_settings
from sdfast.engine.waiting import libgomp, seconds_waited, shorten_slices, waiting_adapts, why_not_adapting

adapts = pytest.mark.skipif(why_not_adapting({}) is not None, reason=f"threads wait {why_not_adapting({})}")

SLEEPS = """
import os, pathlib, threading, time
import torch
from sdfast.engine import waiting

def region():
    big.add_(1)

def slept():  # of the threads that OpenMP started: how often one gave its processor away
    lines = [pathlib.Path(f"/proc/self/task/{thread}/status").read_text() for thread in team]
    return sum(int(text.split("voluntary_ctxt_switches:")[1].split()[0]) for text in lines)

def often():
    before = slept()
    for _ in range(60):
        region()
        until = time.perf_counter() + 3e-4  # a tenth of what libgomp spins
        while time.perf_counter() < until:
            pass
    return slept() - before

before = set(waiting.seconds_waited())
big = torch.zeros(200_000)
region()
team = set(waiting.seconds_waited()) - before
idle = waiting._IdleTeam(os.cpu_count() + 2)
alone = often()
idle.begin()
idle.begin()
while threading.active_count() < 2 or len(waiting.seconds_waited()) < len(team) + 3:
    time.sleep(0.01)
often()
beside = often()
idle.end()
idle.end()
time.sleep(0.2)
often()
again = often()
print(len(team), alone, beside, again)
"""


@adapts
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: libgomp never spins")
def test_a_second_team_makes_threads_sleep_and_its_end_lets_them_spin() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        environment.pop(name, None)
    answer = subprocess.run(
        [sys.executable, "-c", SLEEPS], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    team, alone, beside, again = map(int, answer.stdout.split())
    assert team == 1
    assert beside >= 50, "each of 60 loops should find its thread asleep"
    assert alone <= 20 and again <= 20, "a thread that spins is not asleep"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "as OMP_WAIT_POLICY=ACTIVE says"),
        ({"GOMP_SPINCOUNT": "0"}, "as GOMP_SPINCOUNT=0 says"),
        (
            {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "9"},
            "as OMP_WAIT_POLICY=PASSIVE and GOMP_SPINCOUNT=9 say",
        ),
    ],
)
def test_what_the_user_set_rules(environment: dict[str, str], reason: str) -> None:
    assert why_not_adapting(environment) == reason


def test_another_runtime_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "libgomp", lambda: None)
    expected = "not libgomp" if os.path.isfile("/proc/self/schedstat") else "does not count"
    assert expected in str(why_not_adapting({}))


@adapts
def test_the_runtime_is_the_one_that_torch_computes_with() -> None:
    library = libgomp()
    assert library is not None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert library.omp_get_max_threads() == 3
    finally:
        torch.set_num_threads(threads)


class _Recorded(waiting._IdleTeam):
    """A team that only says what it was told."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.said: list[str] = []

    def begin(self) -> None:
        self.said.append("sleep")

    def end(self) -> None:
        self.said.append("spin")


@adapts
def test_the_watch_follows_the_longest_wait_with_a_gap_between(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, shares = iter(range(100)), iter([0.0, 0.01, 0.06, 0.5, 0.06, 0.03])
    totals = {"1": 7.0, "2": 0.0}  # the first has waited long ago
    watch = waiting._Watch(2)
    watch.team = team = _Recorded(2)

    def waited() -> dict[str, float]:
        share = next(shares, None)
        if share is None:
            watch.ended.set()
        totals["2"] += share or 0.0
        return dict(totals)

    monkeypatch.setattr(waiting, "seconds_waited", waited)
    monkeypatch.setattr(waiting.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0)
    watch._look()
    assert team.said == ["spin", "sleep", "spin", "spin"]  # 0.06 is neither


@adapts
def test_only_several_threads_are_watched_once_and_no_longer_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)

    def watched() -> int:
        return sum(thread.name == "sdfast-waiting" for thread in threading.enumerate())

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with waiting_adapts():
        assert watched() == 0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with waiting_adapts(), waiting_adapts():
        assert watched() == 1
    assert watched() == 0
    with pytest.raises(KeyError), waiting_adapts():
        raise KeyError
    assert watched() == 0
    for device, watches in (("cpu", 1), ("cuda", 0)):
        with cpu_settings(EngineConfig(), torch.device(device)):
            assert watched() == watches
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with waiting_adapts():
        assert watched() == 0


def _slice_ns() -> int:
    attributes = waiting._SchedAttr()
    _, get_number = waiting._SCHED_ATTR[waiting.platform.machine()]
    ctypes.CDLL(None).syscall(get_number, 0, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    return int(attributes.runtime)


@adapts
@pytest.mark.skipif(waiting.platform.machine() not in waiting._SCHED_ATTR, reason="the system call's number is unknown")
def test_slices_are_short_inside_and_as_before_after() -> None:
    before, nice = _slice_ns(), os.getpriority(os.PRIO_PROCESS, 0)
    if before == 0:
        pytest.skip("Linux older than 6.12 has no slice of a thread's own")
    shorten_slices(200_000)
    inside = _slice_ns()
    shorten_slices(0)
    assert (inside, _slice_ns()) == (200_000, before)
    assert os.getpriority(os.PRIO_PROCESS, 0) == nice


@adapts
def test_every_thread_has_its_count() -> None:
    found = seconds_waited()
    assert str(threading.get_native_id()) in found
    assert all(seconds >= 0 for seconds in found.values())
