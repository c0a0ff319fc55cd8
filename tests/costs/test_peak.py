"""The measured peak: measured once, by setting, without a random number."""

from __future__ import annotations

import pytest
import torch

from sdfast.engine import peak

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_SIZES", (64, 128))
    monkeypatch.setattr(peak, "_SECONDS", 0.01)
    monkeypatch.setattr(peak, "_best", {})


def test_it_is_the_best_of_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 1e-5, 2.0, 4e-3, 1e-3, 8e-3])  # warm-up and second product of each size, then repeats
    monkeypatch.setattr(peak, "_seconds", lambda factors, product: next(seconds))
    assert peak.matmul_peak(CPU, torch.float32) == 2 * 128**3 / 1e-3


def test_a_size_that_takes_long_enough_is_not_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_seconds", lambda factors, product: 0.5)
    assert peak.matmul_peak(CPU, torch.float32) == 2 * 64**3 / 0.5


def test_a_later_measurement_can_only_raise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([2e9, 1e9, 3e9])
    monkeypatch.setattr(peak, "_measured", lambda device, dtype: next(measured))
    assert [peak.matmul_peak(CPU, torch.float32, anew) for anew in (False, True, False, True)] == [2e9, 2e9, 2e9, 3e9]


def test_it_is_measured_once_for_each_setting_and_draws_no_random_number() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = peak.matmul_peak(CPU, torch.float32)
    assert first > 0
    assert peak.matmul_peak(CPU, torch.float32) == first
    assert len(peak._best) == 1
    peak.matmul_peak(CPU, torch.bfloat16)
    try:
        torch.set_num_threads(threads + 1)
        peak.matmul_peak(CPU, torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert len(peak._best) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_names() -> None:
    assert peak.peak_name(CPU, torch.float32) == "fp32"
    assert peak.peak_name(CPU, torch.bfloat16) == "bf16"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert peak.peak_name(torch.device("cuda"), torch.float32) == "tf32"
        assert peak.peak_name(CPU, torch.float32) == "fp32"
    finally:
        torch.set_float32_matmul_precision(before)
