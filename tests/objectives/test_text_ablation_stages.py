"""The ablations on texts as stages of a run: what is built, said, kept, refused, exported and recorded."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from text_fixtures import FEW_STEPS, write_text_model, write_texts

import sdfast
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted, UserError
from sdfast.modalities.texts.checkpoint import load_classifier


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_text_model(root / "model"), "data": write_texts(root / "data")}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str, **more: Any) -> sdfast.Pipeline:
    return sdfast.Pipeline(**inputs, out=out, overrides=(*FEW_STEPS, *overrides), **more)


def test_each_match_of_texts_is_a_stage_of_its_own_and_builds_no_bank(
    inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sdfast")
    out, weights = tmp_path / "run", set()
    for match in ("predictions", "weights-l2", "weights-mars"):
        chosen = (f"distill.match={match}", "distill.weight=0.01")
        result = pipeline(inputs, out, *chosen).distill()
        weights.add(result.weights)
        assert f"distill.match={match}" in caplog.text and "without a bank" in caplog.text
        assert not (out / "teacher").exists()
        last = json.loads((out / "distill" / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["loss_mlm"] > 0 and last["loss_distill"] > 0 and last["tflops"] > 0
        # what does not act does not count, and what does does
        unused = ("distill.tokens=all", "distill.layer=1", "teacher.dtype=float16")
        assert pipeline(inputs, out, *chosen, *unused).distill().fingerprint == result.fingerprint
    masked = pipeline(inputs, out, "distill.match=predictions", "distill.predictions.patches=masked").distill()
    weights.add(masked.weights)
    alone = pipeline(inputs, out, "distill.match=predictions", "distill.mae_weight=0").distill()
    weights.add(alone.weights)
    assert len(weights) == 5


@pytest.mark.parametrize(
    ("overrides", "more", "sentence"),
    [
        (("distill.match=weights-l2",), {"zero": 3}, "use --zero 0, 1 or 2"),
        (("distill.match=predictions", "build"), {}, "no bank to build"),
        (("finetune.objective=supcon", "engine.accumulate=2"), {}, "engine.accumulate=1"),
        (("finetune.objective=supcon", "data.token_budget=99"), {}, r"without data\.token_budget"),
        (("distill.match=features", "distill.tokens=patch"), {}, "for texts use cls"),
    ],
)
def test_what_cannot_be_with_texts_is_refused_before_anything_is_trained(
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


def test_contrastive_fine_tuning_of_texts_saves_a_plain_classifier(
    inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, chosen = tmp_path / "run", ("finetune.start=init", "finetune.objective=supcon")
    plain = pipeline(inputs, out, "finetune.start=init").finetune(name="plain")
    result = pipeline(inputs, out, *chosen).finetune(name="supcon")
    assert result.weights != plain.weights and set(result.metrics) == set(plain.metrics)
    one, two = (load_classifier(out / name / "model")[0].state_dict() for name in ("plain", "supcon"))
    assert set(one) == set(two) and "views of a text are the same" not in caplog.text
    original = Trainer.step

    def stopping(trainer: Trainer) -> Any:
        if trainer.steps_done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(Interrupted):
        pipeline(inputs, out, *chosen, "finetune.dropout=0").finetune()
    assert "views of a text are the same" in caplog.text
    assert sdfast.Pipeline(out=out, config=out / "config.yaml").export("finetune", tmp_path / "exported") == 4
    assert set(load_classifier(tmp_path / "exported")[0].state_dict()) == set(one)
