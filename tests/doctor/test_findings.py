"""What checks make of facts that are given to them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sdfast.doctor.computing import judged_core, judged_device
from sdfast.doctor.cuda import judged
from sdfast.doctor.disk import check_shared_memory, judged_room
from sdfast.doctor.packages import misfits
from sdfast.doctor.processors import cpu_limit
from sdfast.doctor.processors import judged as judged_threads
from sdfast.doctor.sandbox import Outcome
from sdfast.doctor.surroundings import caches, check_caches, check_clock, check_encoding

FACTS = {"torch": "2.14.1", "built": "13.0", "driver": "13.1", "card": True, "visible": None, "error": None}
FITTING = {**FACTS, "devices": [("H200", "9.0")], "architectures": ["sm_80", "sm_90", "compute_90"]}


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        (FITTING, "ok", "H200 (9.0)"),
        ({**FITTING, "built": None, "driver": None}, "not installed", "without CUDA"),
        ({**FITTING, "built": None}, "broken", "torch 2.14.1 is without CUDA"),
        ({**FITTING, "driver": None, "card": False}, "not installed", "no driver"),
        ({**FITTING, "driver": None}, "broken", "libcuda"),
        ({**FITTING, "driver": "12.8"}, "broken", "none above 12.8"),
        ({**FITTING, "devices": [], "visible": "-1"}, "not installed", "hides the devices"),
        ({**FITTING, "devices": [], "error": "unknown error"}, "broken", "unknown error"),
        ({**FITTING, "devices": [("K80", "3.7")]}, "broken", "no kernels for K80"),
        ({**FITTING, "devices": [("next", "10.0")]}, "ok", "next"),
        ({**FITTING, "devices": [("next", "10.0")], "architectures": ["sm_90"]}, "broken", "no kernels for next"),
    ],
)
def test_torch_cuda_and_driver(facts: dict, state: str, words: str) -> None:
    finding = judged(facts)
    assert finding.state == state and words in finding.found
    assert bool(finding.todo) is (state == "broken")


def test_requirements_hold_for_what_is_installed() -> None:
    version = {"torch": "2.9.0", "timm": "1.0", "numpy": "2.0"}.get
    needs = ["torch>=2.11", "numpy<3", "absent>=1", "timm>=2; extra == 'timm'", "numpy<1; python_version < '3'"]
    assert misfits(needs, version) == ["torch>=2.11 (2.9.0 is installed)"]
    assert misfits(needs, version, extras=True) == [
        "torch>=2.11 (2.9.0 is installed)",
        "timm>=2 (1.0 is installed)",
    ]


def test_threads_are_held_against_processors_and_limits(tmp_path: Path) -> None:
    assert not judged_threads(4, 4, None, {}, None).broken
    assert not judged_threads(2, 8, 1.5, {}, None).broken
    finding = judged_threads(8, 8, 1.5, {}, None)
    assert finding.broken and "1.5 of 8" in finding.found and "OMP_NUM_THREADS=2" in finding.todo
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "job" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "job" / "step" / "cpu.max").write_text("max 100000\n")
    assert cpu_limit(tmp_path, own) == 1.5  # that of the group above
    assert cpu_limit(tmp_path / "none", tmp_path / "none") is None


def test_a_crash_names_what_was_computed_last() -> None:
    right = {"what": "product in float32 on cpu", "error": "0.0", "allowed": "1.0", "right": True}
    finding = judged_device("numbers on the CPU", Outcome([right], "crashes: signal SIGILL ended the process"))
    assert finding.broken and "SIGILL" in finding.found and "after the product" in finding.found


def test_a_core_for_another_torch_and_a_wrong_level_are_broken() -> None:
    said = {"built": {"torch": "2.14"}, "why_not": "the compiled core needs torch >= 2.10", "torch": "2.9"}
    assert judged_core(Outcome([said])).found == said["why_not"]
    level = {"level": None, "why": "SDFAST_SIMD=amx is more than this CPU and build have"}
    assert "SDFAST_SIMD" in judged_core(Outcome([{**said, "why_not": None}, level])).todo


def test_room_counts_what_is_not_there_yet(tmp_path: Path) -> None:
    needs = {"pack": {"bytes": 3_000_000_000, "there": True}, "bank": {"bytes": 2_000_000_000, "there": False}}
    assert not judged_room(needs, 2_500_000_000, tmp_path).broken
    finding = judged_room(needs, 1_500_000_000, tmp_path)
    assert finding.broken and "bank 2 GB" in finding.found and "1.5 GB free" in finding.found


def test_little_shared_memory_is_broken_for_several_gpus_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sdfast.doctor.disk._SHM_BYTES", 1 << 62)
    assert [finding.state for devices in (1, 2) for finding in check_shared_memory(devices, tmp_path)] == [
        "ok",
        "broken",
    ]


def test_encoding_clock_and_caches(tmp_path: Path) -> None:
    assert not next(check_encoding("utf-8", "UTF-8", "utf-8")).broken
    assert next(check_encoding("ascii", "UTF-8", "utf-8")).broken
    assert next(check_encoding("utf-8", "UTF-8", "ascii")).broken
    assert next(check_clock(time.time() - 10 * 365 * 86_400)).broken
    assert not next(check_clock()).broken
    (tmp_path / "file").touch()
    folders = {"HF_HOME": str(tmp_path / "file"), "TRITON_CACHE_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    finding = next(check_caches(folders))
    assert finding.broken and "models of the hub" in finding.found and "Triton" not in finding.found
    assert caches({"HF_HUB_CACHE": "/hub"}, tmp_path)["models of the hub"] == Path("/hub")
