"""What `sdfast bench` measures: every stage and variant, as the run would train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pipeline_fixtures import SHAPE, write_model

from sdfast.config import Config
from sdfast.costs.resident import PeakGrowth
from sdfast.errors import RunError
from sdfast.modalities.images.checkpoint import PretrainedMAE, load_mae
from sdfast.modalities.images.costs import ImageTask
from sdfast.models.blocks import Attention
from sdfast.objectives.base import shortcuts
from sdfast.stages import bench

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_SECONDS", 0.5)
    monkeypatch.setattr(bench, "matmul_peak", lambda device, dtype, anew=False: 1e11)


@pytest.fixture
def model(tmp_path: Path) -> PretrainedMAE:
    return load_mae(str(write_model(tmp_path / "model")))


def config_of(**values: object) -> Config:
    small = {"batch_size": 8, "steps": 40}
    stages = {stage: {**small, **values.pop(stage, {})} for stage in bench.STAGES}  # type: ignore[dict-item]
    return Config.model_validate({**stages, **values})


def test_every_stage_and_variant_is_measured(model: PretrainedMAE) -> None:
    heard: list[str] = []
    report = bench.bench(config_of(), model, CPU, say=heard.append)
    assert {(row.stage, row.variant) for row in report.rows} >= {
        ("pretrain", "plain"), ("distill", "live"), ("distill", "bank"), ("finetune", "plain")
    }  # fmt: skip
    assert {row.batch for row in report.rows} == {2, 8}
    for row in report.rows:
        assert row.steps >= 3 and row.img_per_s == row.batch / row.seconds
        assert row.tflops == pytest.approx(row.img_per_s * row.gflop_per_image / 1e3)
        assert row.peak_share == pytest.approx(row.tflops / 0.1)
        assert row.memory_predicted > 0
    assert heard[-1].startswith("finetune")
    for plan in report.planned:
        rows = [row for row in report.rows if row.stage == plan.stage and row.configured and row.batch == 8]
        assert (plan.steps, plan.batch, plan.measured_batch) == (40, 8, 8)
        assert plan.seconds == pytest.approx(40 * rows[-1].seconds)
    assert report.machine["threads"] == str(torch.get_num_threads()) and report.machine["precision"] == "fp32"
    assert report.to_json()["rows"][0]["stage"] == "pretrain"


@pytest.mark.parametrize(
    "values",
    [
        {"distill": {"tokens": "all"}, "teacher": {"dtype": "int8"}},
        {"distill": {"tokens": "patch", "mae_weight": 0}, "teacher": {"mode": "live"}},
        {"distill": {"weight": 0}, "pretrain": {"mask": "bernoulli"}, "engine": {"accumulate": 3}},
    ],
)
def test_other_settings_run_too(values: dict[str, object], model: PretrainedMAE) -> None:
    report = bench.bench(config_of(**values), model, CPU, batches=[4])
    assert {row.batch for row in report.rows} == {4}
    assert {row.stage for row in report.rows if row.configured} == set(bench.STAGES)
    assert report.planned[1].measured_batch == 4


def test_the_configured_variant_is_marked(model: PretrainedMAE) -> None:
    live = bench.variants(config_of(teacher={"mode": "live"}), model)
    marked = [(each.stage, each.name) for each in live if each.configured]
    assert ("distill", "+ masked_tail") not in marked and ("distill", "as configured") in marked
    # A switch adds a variant to the stages whose arithmetic it changes, and only there.
    found = bench.variants(config_of(engine={"masked_tail": False}), model)
    names = [(each.stage, each.name, each.configured) for each in found]
    assert names == [
        ("pretrain", "plain", True),
        ("pretrain", "+ masked_tail", False),
        ("distill", "live", False),
        ("distill", "bank", False),
        ("distill", "+ packed", False),
        ("distill", "+ cls_tail", True),
        ("distill", "+ masked_tail", False),
        ("finetune", "plain", False),
        ("finetune", "+ cls_tail", True),
    ]


def test_a_variant_trains_with_its_own_switches(model: PretrainedMAE, tmp_path: Path) -> None:
    config = config_of(engine={"packed": False, "attention": "reference"}, distill={"layer": 1})
    for variant in bench.variants(config, model):
        trainer = bench._trainer(variant, model, CPU, 4, tmp_path)
        assert trainer.objective.shortcuts == shortcuts(variant.config.engine)  # type: ignore[attr-defined]
        assert {layer.backend for layer in trainer.objective.module.modules() if isinstance(layer, Attention)} == {
            "reference"
        }
        assert getattr(trainer.objective, "layer", 1) == (1 if variant.stage != "pretrain" else "last")


def test_a_batch_is_halved_until_it_can_be_measured(model: PretrainedMAE, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = bench.variants(config_of(), model)[0]
    flops = ImageTask("pretrain", variant.config, SHAPE).flops().step
    peak = flops * 20 / (bench._SECONDS / 10 * bench._EXPECTED_PEAK_SHARE)  # twenty images would take all the time
    assert bench._feasible(variant, model, CPU, 64, peak) == 16
    assert bench._feasible(variant, model, CPU, 64, flops * 1e-6) == 1
    monkeypatch.setattr(bench, "free_memory", lambda device: 2_000_000)
    small = bench._feasible(variant, model, CPU, 4096, 1e15)
    assert bench._predicted_memory(variant, model, CPU, small) <= 1_600_000
    assert bench._predicted_memory(variant, model, CPU, 2 * small) > 1_600_000


def test_memory_that_runs_out_is_one_sentence(model: PretrainedMAE, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "_trainer", full)
    with pytest.raises(RunError, match="does not fit into the memory of cpu; give a smaller --batch"):
        bench.bench(config_of(), model, CPU)


def test_growth_of_the_process() -> None:
    growth = PeakGrowth()
    if growth.bytes() is None:
        pytest.skip("this system does not tell")
    before = growth.bytes()
    block = torch.ones(20_000_000)
    del block
    after = growth.bytes()
    assert before is not None and after is not None and after - before >= 70_000_000
    assert PeakGrowth().bytes() < 10_000_000  # type: ignore[operator]
