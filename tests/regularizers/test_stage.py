"""Fine-tuning with each regularizer: resumed to the same bits, plain at strength 0, and a stage of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from resuming import check_resumes
from small_stage import CPU, IMAGES, objective_of

import sdfast
from sdfast.config import EngineConfig, FinetuneConfig, ZeroConfig
from sdfast.data.order import BatchOrder
from sdfast.durable import read_json
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.engine.zero import Sharing, make_engine
from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import load_classifier
from sdfast.regularizers.choose import on_loss, on_optimizer
from sdfast.regularizers.r3f import add_spectral_norm

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "recadam": {"recadam": {"k": 0.5, "t0": 6, "gamma": 100}},
    "mars": {"mars": {"radius": 0.05, "head_radius": 0.1}},
    "r3f": {"r3f": {"eps": 0.1}},
    "r4f": {"r3f": {"eps": 0.1}},
}


def config_of(name: str, **more: Any) -> FinetuneConfig:
    values = {"regularizer": name, "steps": 12, "batch_size": 16, "lr": 1e-3, **SETTINGS[name], **more}
    return FinetuneConfig.model_validate(values)


def trainer_of(config: FinetuneConfig, directory: Path, **engine: Any) -> Trainer:
    objective: Any = objective_of("finetune", r3f=on_loss(config))
    objective.regularizer = on_optimizer(config, objective.module)
    if config.regularizer == "r4f":
        add_spectral_norm(objective.module.classifier, 0)
    settings = EngineConfig(log_every=4, **engine)
    order = BatchOrder(torch.arange(50), 16, seed=9)
    data, folder = TrainingData(order, lambda rows: IMAGES[rows]), StageFolder(directory, {"a": "b"})
    return Trainer("finetune", objective, config, settings, data, folder)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.objective.module.state_dict().items()}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_stopped_stage_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    check_resumes(lambda folder: trainer_of(config_of(name), folder), tmp_path)


def test_each_changes_the_result_and_strength_0_is_plain_fine_tuning_bit_for_bit(tmp_path: Path) -> None:
    def trained(folder: str, config: FinetuneConfig) -> dict[str, torch.Tensor]:
        trainer = trainer_of(config, tmp_path / folder)
        trainer.run()
        return weights(trainer)

    plain = trained("plain", config_of("none"))
    for name in ("recadam", "mars", "r3f"):
        other = trained(name, config_of(name))
        assert any(not torch.equal(other[key], value) for key, value in plain.items()), name
    nothing = {
        "mars": {"mars": {"radius": 1e30, "head_radius": 1e30}},
        "r3f": {"r3f": {"weight": 0}},
    }
    for name, settings in nothing.items():
        same = trained(f"{name}-0", config_of(name, **settings))
        assert all(torch.equal(same[key], value) for key, value in plain.items()), name
    # RecAdam at constant annealing is AdamW where epsilon and the decay, which come at other places, are nothing
    settings = {"weight_decay": 0, "betas": (0, 0)}
    still = trained("adamw", config_of("none", **settings))
    same = trained("recadam-constant", config_of("recadam", recadam={"anneal": "constant"}, **settings))
    assert all(torch.equal(same[key], value) for key, value in still.items())


def test_micro_batches_give_the_same_recadam_and_mars_step(tmp_path: Path) -> None:
    for name in ("recadam", "mars"):
        found = []
        for parts in (1, 3):
            trainer = trainer_of(config_of(name), tmp_path / f"{name}{parts}", accumulate=parts)
            for layer in trainer.objective.module.modules():
                if isinstance(layer, torch.nn.Dropout):
                    layer.p = 0.0
            trainer.run()
            found.append(weights(trainer))
        for key, value in found[0].items():
            torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4, msg=f"{name} {key}")


def test_what_acts_on_the_optimiser_is_refused_with_zero() -> None:
    objective: Any = objective_of("finetune")
    objective.regularizer = on_optimizer(config_of("mars"), objective.module)
    with pytest.raises(UserError, match="every weight whole"):
        make_engine(objective, "finetune", config_of("mars"), EngineConfig(), CPU, Sharing(zero=ZeroConfig(stage=1)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_model(root / "model"), "data": write_images(root / "images")}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str, **more: Any) -> sdfast.Pipeline:
    return sdfast.Pipeline(**inputs, out=out, overrides=(*FEW_STEPS, "finetune.start=init", *overrides), **more)


@pytest.mark.parametrize("name", ["recadam", "mars", "r3f", "r4f"])
def test_a_run_with_each(name: str, inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sdfast")
    out = tmp_path / "run"
    chosen = (f"finetune.regularizer={name}", "finetune.mars.head_radius=0.1")  # one that binds in six steps
    plain = pipeline(inputs, out).finetune()
    result = pipeline(inputs, out, *chosen).finetune(name=name)
    assert result.weights != plain.weights and set(result.metrics) == set(plain.metrics)
    assert load_classifier(out / name / "model")[0].classifier.weight.shape[0] == 2
    # what does not act does not count, and what does does
    unused, change = ("recadam", "gamma=7") if name == "mars" else ("mars", "radius=3")
    again = pipeline(inputs, out, *chosen, f"finetune.{unused}.{change}").finetune(name=name)
    assert again.fingerprint == result.fingerprint
    used = {"recadam": "recadam.gamma=7", "mars": "mars.radius=3", "r3f": "r3f.eps=0.01", "r4f": "r3f.eps=0.01"}[name]
    other = pipeline(inputs, out, *chosen, f"finetune.{used}").finetune(name=name)
    assert other.fingerprint != result.fingerprint
    said = [record.message for record in caplog.records if "t0" in record.message]
    assert bool(said) == (name == "recadam")


def test_runs_finished_before_there_were_regularizers_stay_done(inputs: dict[str, Path], tmp_path: Path) -> None:
    pipeline(inputs, tmp_path / "run").finetune()
    stored = read_json(tmp_path / "run" / "finetune" / "result.json")["inputs"]
    assert not [key for key in stored if any(part in key for part in ("regularizer", "recadam", "mars", "r3f"))]


@pytest.mark.parametrize("name", ["recadam", "mars", "r4f"])
def test_zero_is_refused_before_anything_is_trained(
    name: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(inputs, tmp_path / "run", f"finetune.regularizer={name}", "finetune.start=distill", zero=1)
    monkeypatch.setattr("sdfast.opening.import_deepspeed", lambda device: None)
    monkeypatch.setattr("sdfast.opening.join", lambda *_, **__: sdfast.ranks.Ranks())
    with pytest.raises(UserError, match=rf"finetune\.regularizer={name} needs every weight whole"):
        pipe.finetune()
    assert not (tmp_path / "run" / "pretrain").exists()
