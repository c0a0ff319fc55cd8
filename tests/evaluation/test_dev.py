"""finetune.best_dev: the weights that do best on the val split, of images and texts, and what stands in the way."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pipeline_fixtures
import pytest
import text_fixtures
import torch

import sdfast
from sdfast.durable import read_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted, UserError
from sdfast.evaluation.classification import classification_metrics

KINDS = ("images", "texts")
LONGER = ("finetune.start=init", "finetune.steps=12", "finetune.lr=0.02")
CHOOSING = (*LONGER, "finetune.best_dev=true", "finetune.evaluations=6")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    root = tmp_path_factory.mktemp("inputs")
    of_images = {
        "model": pipeline_fixtures.write_model(root / "vit"),
        "data": pipeline_fixtures.write_images(root / "images", val=9),
    }
    of_texts = {
        "model": text_fixtures.write_text_model(root / "roberta"),
        "data": text_fixtures.write_texts(root / "chemprot", classes=3, dev=20),  # whose metric is micro-F1
    }
    return {"images": of_images, "texts": of_texts}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str, **more: Any) -> sdfast.Pipeline:
    return sdfast.Pipeline(**{**inputs, **more}, out=out, overrides=(*pipeline_fixtures.FEW_STEPS, *overrides))


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_on_val_is_kept_and_said(
    kind: str, inputs: dict[str, dict[str, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sdfast")
    out, given = tmp_path / "run", inputs[kind]
    plain = pipeline(given, out, *LONGER).finetune(name="plain")
    inputs_before = read_json(out / "plain" / "result.json")["inputs"]
    assert not [key for key in inputs_before if "best" in key or "evaluations" in key or "val" in key]
    assert (
        pipeline(given, out, *LONGER, "finetune.evaluations=3").finetune(name="plain").fingerprint == plain.fingerprint
    )

    run = pipeline(given, out, *CHOOSING)
    result = run.finetune()
    stored = read_json(out / "finetune" / "result.json")
    lines = [json.loads(line) for line in (out / "finetune" / "metrics.jsonl").read_text().splitlines()]
    by = "accuracy" if kind == "images" else "micro_f1"
    scores = {line["step"]: line[f"dev_{by}"] for line in lines if f"dev_{by}" in line}
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    best = max(scores, key=lambda step: (scores[step], -step))
    assert len(set(scores.values())) > 1 and (best < 12) == (result.weights != plain.weights)
    assert (stored["best_step"], stored["best_by"], result.best_step) == (best, by, best)
    assert f"kept the weights of step {best} of 12" in caplog.text and f"dev_{by}" in caplog.text
    # what was kept is what is in the folder: its scores on val, and on the test rows
    found = run.modality.read_classifier(out / "finetune" / "model")
    for split_name, prefix in (("val", "dev_"), ("test", "")):
        split = run.pack.split(split_name)
        rows = torch.arange(len(split))
        logits = run.modality.predict(found.module, found.companions, split, rows, run.context.read(split))
        metrics = classification_metrics(logits, torch.from_numpy(split.labels))
        for name in ("accuracy", "macro_f1", "micro_f1"):
            assert stored["metrics"][prefix + name] == pytest.approx(metrics[name])
        loss = "dev_loss" if prefix else "test_loss"
        assert stored["metrics"][loss] == pytest.approx(metrics["loss"], rel=1e-5)
    again = pipeline(given, out, *CHOOSING).finetune()
    assert again == result


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_choice_ends_with_the_same_bits(
    kind: str, inputs: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (*CHOOSING, "finetune.regularizer=r4f")  # whose head is another one while it is trained
    whole = pipeline(inputs[kind], tmp_path / "whole", *more).finetune()
    original = Trainer.step

    def stopping(trainer: Trainer) -> Any:
        if trainer.steps_done == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(Interrupted):
        pipeline(inputs[kind], tmp_path / "cut", *more).finetune()
    monkeypatch.setattr(Trainer, "step", original)
    cut = pipeline(inputs[kind], tmp_path / "cut", *more).finetune()
    assert (cut.weights, cut.best_step, cut.metrics) == (whole.weights, whole.best_step, whole.metrics)


def test_contrast_is_chosen_from_too(inputs: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    for kind in KINDS:
        result = pipeline(inputs[kind], tmp_path / kind, *CHOOSING, "finetune.objective=supcon").finetune()
        assert result.best_step in (2, 4, 6, 8, 10, 12) and "dev_accuracy" in result.metrics


def test_without_rows_to_choose_by_nothing_is_trained(inputs: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    of_texts = inputs["texts"]
    none = text_fixtures.write_texts(tmp_path / "none")
    only_val = text_fixtures.write_texts(tmp_path / "only-val", test=0, dev=8)
    unlabelled = text_fixtures.write_texts(tmp_path / "unlabelled", dev=8)
    rows = [json.loads(line) for line in (unlabelled / "dev.jsonl").read_text().splitlines()]
    (unlabelled / "dev.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    for data, sentence in ((none, "has none; add one"), (only_val, "no test split"), (unlabelled, "no labels")):
        with pytest.raises(UserError, match=sentence) as error:
            pipeline(of_texts, tmp_path / "run" / data.name, "finetune.best_dev=true", data=data).run()
        assert "finetune.best_dev=true" in str(error.value)
        assert not (tmp_path / "run" / data.name / "pretrain").exists()
