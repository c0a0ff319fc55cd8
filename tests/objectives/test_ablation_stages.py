"""The ablations as stages of a run: what is built, said, kept, refused and recorded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_fixtures import FEW_STEPS, write_images, write_model

import sdfast
from sdfast.durable import read_json
from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import load_classifier, load_mae


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_model(root / "model"), "data": write_images(root / "images")}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str, **more: Any) -> sdfast.Pipeline:
    return sdfast.Pipeline(**inputs, out=out, overrides=(*FEW_STEPS, *overrides), **more)


def test_each_match_is_a_stage_of_its_own_and_builds_no_bank(
    inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sdfast")
    out, weights = tmp_path / "run", set()
    for match in ("predictions", "weights-l2", "weights-mars"):
        chosen = (f"distill.match={match}", "teacher.mode=bank")
        result = pipeline(inputs, out, *chosen).distill()
        weights.add(result.weights)
        assert f"distill.match={match}" in caplog.text and "without a bank" in caplog.text
        assert not (out / "teacher").exists()
        # what does not act does not count, and what does does
        unused = ("distill.tokens=all", "distill.layer=1", "teacher.dtype=float16")
        assert pipeline(inputs, out, *chosen, *unused).distill().fingerprint == result.fingerprint
        masked = pipeline(inputs, out, *chosen, "distill.predictions.patches=masked").distill()
        assert (masked.fingerprint == result.fingerprint) is (match != "predictions")
    assert len(weights) == 3


def test_the_default_settings_leave_old_results_done(inputs: dict[str, Path], tmp_path: Path) -> None:
    pipeline(inputs, tmp_path / "run").run()
    for stage in ("distill", "finetune"):
        stored = read_json(tmp_path / "run" / stage / "result.json")["inputs"]
        assert not [
            key for key in stored if any(part in key for part in ("match", "predictions", "objective", "supcon"))
        ]


@pytest.mark.parametrize(
    ("overrides", "more", "sentence"),
    [
        (("distill.match=weights-l2",), {"zero": 3}, "use --zero 0, 1 or 2"),
        (("distill.match=predictions", "build"), {}, "no bank to build"),
        (("finetune.objective=supcon", "engine.accumulate=2"), {}, "engine.accumulate=1"),
        (("finetune.objective=supcon", "finetune.regularizer=r3f"), {}, "objective=cross_entropy alone"),
        (("distill.match=weights-mars", "distill.mae_weight=0"), {}, "mae_weight must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    overrides: tuple[str, ...],
    more: dict[str, Any],
    sentence: str,
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sdfast.opening.import_deepspeed", lambda device: None)
    monkeypatch.setattr("sdfast.opening.join", lambda *_, **__: sdfast.ranks.Ranks())

    def work() -> object:
        pipe = pipeline(inputs, tmp_path / "run", *(each for each in overrides if each != "build"), **more)
        return pipe.build_bank() if "build" in overrides else pipe.run()

    with pytest.raises(UserError, match=sentence):
        work()
    assert not (tmp_path / "run" / "pretrain").exists()


def test_contrastive_fine_tuning_saves_a_plain_classifier(inputs: dict[str, Path], tmp_path: Path) -> None:
    out, chosen = tmp_path / "run", ("finetune.start=init", "finetune.objective=supcon")
    plain = pipeline(inputs, out, "finetune.start=init").finetune(name="plain")
    result = pipeline(inputs, out, *chosen).finetune(name="supcon")
    assert result.weights != plain.weights and set(result.metrics) == set(plain.metrics)
    one, two = (load_classifier(out / name / "model")[0].state_dict() for name in ("plain", "supcon"))
    assert set(one) == set(two)
    other = pipeline(inputs, out, *chosen, "finetune.supcon.temperature=0.1").finetune(name="supcon")
    assert other.fingerprint != result.fingerprint


def test_gap_and_distance_are_recorded(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = pipeline(inputs, out).run()
    start = load_mae(str(inputs["model"])).module.encoder.state_dict()
    assert result.metrics["generalisation_gap"] == result.metrics["test_loss"] - result.metrics["train_loss"]
    for stage in ("pretrain", "distill", "finetune"):
        folder = out / stage / "model"
        module: Any = load_classifier(folder)[0] if stage == "finetune" else load_mae(str(folder)).module
        squares = [(value - start[name]).double().square().sum() for name, value in module.encoder.state_dict().items()]
        distance = read_json(out / stage / "result.json")["metrics"]["distance"]
        assert distance == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-6) and distance > 0
    none = pipeline(inputs, out, "distill.rounds=0").distill()
    assert none.metrics == pipeline(inputs, out).pretrain().metrics
