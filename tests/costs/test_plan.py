"""What a step is expected to take, what is sent, and the largest batch, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from sdfast.config import Config
from sdfast.costs.plan import Machine, bank_bytes, communication, largest_batch, make_plan
from sdfast.costs.workload import Workload, workload
from sdfast.costs.zero_memory import Setup, device_memory
from sdfast.errors import UserError
from sdfast.modalities.named import NAMED, task_of

MACHINE = Machine(80_000_000_000, 1e15, 0.4, 50e9)


@pytest.fixture
def work() -> Workload:
    return dataclasses.replace(
        workload(task_of("distill", Config(), NAMED["vit-b"])),
        trained=100_000_000,
        module=120_000_000,
        flops=200_000_000_000,
        again=60_000_000_000,
    )


@pytest.mark.parametrize(
    ("zero", "precision", "accumulate", "sent"),
    [
        (0, "fp32", 1, 700_000_000),  # 2 x 7/8 of 400 MB
        (0, "bf16-weights", 1, 350_000_000),
        (1, "bf16", 1, 1_050_000_000),  # and 7/8 of 400 MB of weights
        (1, "bf16", 4, 1_050_000_000),
        (2, "bf16", 1, 1_050_000_000),
        (2, "bf16", 4, 3_150_000_000),  # reduces after each micro-batch
        (3, "bf16", 1, 1_190_000_000),  # 7/8 of 400 MB, and twice 7/8 of 480 MB
    ],
)
def test_what_a_device_sends(work: Workload, zero: int, precision: str, accumulate: int, sent: int) -> None:
    setup = Setup(8, zero, precision=precision, accumulate=accumulate)  # type: ignore[arg-type]
    assert communication(work, setup) == sent
    assert communication(work, dataclasses.replace(setup, devices=1)) == 0


def test_the_time_of_a_step(work: Workload) -> None:
    plan = make_plan(work, Setup(8, 2, precision="bf16"), MACHINE, 512)
    assert plan.batch == 64
    assert plan.compute == pytest.approx(64 * 200e9 / 0.4e15)  # 32 ms
    assert plan.exposed == pytest.approx(1.05e9 / 50e9)  # 21 ms
    assert plan.seconds == pytest.approx(0.053)
    assert plan.rate == pytest.approx(512 / 0.053)
    again = make_plan(work, Setup(8, 2, precision="bf16", checkpointing=True), MACHINE, 512)
    assert again.compute == pytest.approx(64 * 260e9 / 0.4e15)
    hidden = make_plan(work, Setup(8, 3, precision="bf16"), MACHINE, 512)
    assert hidden.exposed == 0  # 23.8 ms beside 32 ms
    shown = make_plan(work, Setup(8, 3, precision="bf16"), MACHINE, 64)
    assert shown.exposed == pytest.approx(0.0238 - 0.004)
    unknown = make_plan(work, Setup(8, 2), dataclasses.replace(MACHINE, link=None), 512)
    assert (unknown.exposed, unknown.seconds, unknown.rate) == (None, None, None)
    assert make_plan(work, Setup(), dataclasses.replace(MACHINE, link=None), 8).exposed == 0


def test_the_largest_batch_is_the_last_that_fits() -> None:
    work = workload(task_of("pretrain", Config(), NAMED["vit-l"]))
    setup = Setup(8, 1, precision="bf16")
    found = largest_batch(work, setup, 20_000_000_000)
    assert device_memory(work, setup, found).total <= 20_000_000_000 < device_memory(work, setup, found + 1).total
    assert largest_batch(work, setup, 1_000_000) == 0
    plan = make_plan(work, setup, dataclasses.replace(MACHINE, memory=2_000_000_000), 8)
    assert not plan.fits and plan.largest == 0


def test_bank_and_pack_are_on_the_device_where_they_are_small() -> None:
    config = Config()
    work = workload(task_of("distill", config, NAMED["vit-b"]))
    assert bank_bytes(work, config, 1000) == 1000 * 768 * 4
    plan = make_plan(work, Setup(), MACHINE, 8, bank=10**9, pack=10**9)
    assert (plan.memory.bank, plan.memory.pack) == (10**9, 10**9)
    plan = make_plan(work, Setup(), MACHINE, 8, bank=50 * 10**9, pack=30 * 10**9)
    assert (plan.memory.bank, plan.memory.pack) == (0, 0)


def test_text_is_counted_as_published() -> None:
    """RoBERTa's parameters, and 6 FLOPs a parameter of the blocks and a token, attention's products besides."""
    plain = Config.model_validate({"engine": {"masked_tail": False}})
    large = workload(task_of("pretrain", plain, NAMED["roberta-large"]))
    assert round(large.trained / 1e6) == 355
    matrices = 24 * 12 * 1024**2
    attention = 24 * 2 * 2 * 512 * 512 * 1024
    head = 1024 * (1024 + 50_265)
    assert large.flops == 3 * (2 * 512 * (matrices + head) + attention)
    asked = workload(task_of("pretrain", Config(), NAMED["roberta-large"]))
    others = 512 - 77  # for which neither the head nor the last block computes more than keys and values
    assert large.flops - asked.flops == 3 * 2 * others * (head + 10 * 1024**2 + 2 * 512 * 1024)
    assert round(workload(task_of("pretrain", Config(), NAMED["roberta-base"])).trained / 1e6) == 125


@pytest.mark.parametrize(
    ("setup", "batch", "words"),
    [
        (Setup(8), 4, "give --batch 8 or more"),
        (Setup(1, 0, "cpu"), 4, "--offload cpu needs --zero 1, 2 or 3"),
        (Setup(1, 2, "nvme"), 4, "--offload nvme needs --zero 3"),
    ],
)
def test_what_cannot_be(setup: Setup, batch: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_plan(workload(task_of("pretrain", Config(), NAMED["vit-ti"])), setup, MACHINE, batch)
