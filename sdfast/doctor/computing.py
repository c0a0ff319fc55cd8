"""Whether what computes here gives the right numbers: the compiled core, the processor and the GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdfast.doctor.cuda import judged
from sdfast.doctor.disk import check_shared_memory
from sdfast.doctor.finding import Finding, absent, broken, ok
from sdfast.doctor.processors import judged_threads
from sdfast.doctor.sandbox import Outcome, in_turn, tried

_BUILD = "build it again with `make build`, or `pip install .` where a C++20 compiler is"
_WITHOUT = "remove sdfast/lib to go without it"
_LEVELS = ("plain", "avx2", "avx512", "amx")
_INSTALL = "install torch again (`pip install --force-reinstall torch`)"


def judged_core(outcome: Outcome) -> Finding:
    """Judge the probe `core`: whether the compiled core loads, is of this torch, and agrees with the reference."""
    check = "compiled core"
    again = f"{_BUILD}; {_WITHOUT}."
    first = outcome.answers[0] if outcome.answers else None
    if first is None:
        return broken(check, f"the process that loads it {outcome.ended}", again)
    built, reason = first["built"], first["why_not"]
    if reason is not None:
        return broken(check, reason, again) if built else absent(check, "not built; Triton or plain torch compute")
    if outcome.ended is not None:
        return broken(check, f"the process that computes with it {outcome.ended}", again)
    levels, *agreements = outcome.answers[1:]
    if levels["level"] is None:
        return broken(check, levels["why"], "take SDFAST_SIMD out of the environment.")
    if (cuda := levels.get("cuda")) is not None and built.get("cuda", {}).get("built"):
        return broken(check, cuda, again)
    if wrong := wrong_ones(agreements):
        return broken(check, "; ".join(wrong), again)
    more = [name for name in built.get("simd", ()) if _LEVELS.index(name) > _LEVELS.index(levels["level"])]
    above = f", built up to {more[-1]}, which this processor or SDFAST_SIMD does not allow" if more else ""
    against = built.get("torch", "unknown")
    parts = "CPU and CUDA" if built.get("cuda", {}).get("built") else "CPU"
    return ok(
        check,
        f"{parts}, computes by {levels['level']}{above}; built against torch {against}, agrees with the reference",
    )


def judged_device(check: str, outcome: Outcome) -> Finding:
    """Judge the probes `cpu` and `gpu`: whether a product, and the loss and attention by every backend, are right."""
    agreements = [answer for answer in outcome.answers if "right" in answer]
    if outcome.ended is not None:
        after = f" after the {agreements[-1]['what']}" if agreements else ""
        return broken(check, f"the process that computes {outcome.ended}{after}", f"{_INSTALL}.")
    if wrong := wrong_ones(agreements):
        return broken(check, "; ".join(wrong), f"{_INSTALL}; if that does not help, the machine's memory may fail.")
    return ok(check, f"{len(agreements)} results are right: {', '.join(_names(agreements))}")


def wrong_ones(agreements: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that lie farther from float64 than they may."""
    return [
        f"{each['what']} differs by {float(each['error']):.1e} from float64, {float(each['allowed']):.1e} is allowed"
        for each in agreements
        if not each["right"]
    ]


def _names(agreements: Sequence[Mapping[str, Any]]) -> list[str]:
    return [each["what"].rpartition(" on ")[0] for each in agreements]


def judged_cuda(outcome: Outcome) -> Finding:
    """Judge the probe `cuda`: whether torch, CUDA and the driver fit."""
    if outcome.ended is not None:
        return broken("CUDA", f"the process that asks torch {outcome.ended}", "install the driver and torch again.")
    return judged(outcome.last)


def check_computing(seconds: float) -> Iterator[Finding]:
    """The compiled core, numbers on the processor and, where there is one, on the GPU; threads; /dev/shm."""
    found = in_turn(("core", "cpu", "cuda", "threads"), seconds)
    yield judged_core(found["core"])
    yield judged_device("numbers on the CPU", found["cpu"])
    cuda = judged_cuda(found["cuda"])
    yield cuda
    if cuda.state == "ok":
        yield judged_device("numbers on the GPU", tried("gpu", seconds=seconds))
    yield judged_threads(found["threads"])
    yield from check_shared_memory(len(found["cuda"].last.get("devices", ())))
