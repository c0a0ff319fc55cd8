"""Texts through the same stages: what comes out, what is kept, what is resumed, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from text_fixtures import FEW_STEPS, write_text_model, write_texts

import sdfast
from sdfast.cli.main import run
from sdfast.durable import read_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted, UserError
from sdfast.modalities.texts.checkpoint import load_mlm
from sdfast.objectives.masked import MaskedTraining

KINDS = ("roberta", "bert", "distilbert", "electra", "modernbert", "eurobert")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {
        **{kind: write_text_model(root / kind, kind) for kind in KINDS},
        "data": write_texts(root / "chemprot"),
    }


@pytest.fixture(scope="module")
def runs(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole run of each kind of model."""
    root = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        pipeline(inputs, root / kind, kind=kind).run()
    return {kind: root / kind for kind in KINDS}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str, kind: str = "roberta", **more: Any) -> Any:
    options = {"model": inputs[kind], "data": inputs["data"], **more}
    return sdfast.Pipeline(out=out, overrides=(*FEW_STEPS, *overrides), **options)


def weights_of(run: Path, stage: str) -> str:
    return read_json(run / stage / "result.json")["weights"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_leaves_the_promised_files(kind: str, runs: dict[str, Path], inputs: dict[str, Path]) -> None:
    out = runs[kind]
    for stage in ("pretrain", "distill", "finetune"):
        stored = read_json(out / stage / "result.json")
        assert stored["stage"] == stage and stored["steps"] == 6 and stored["seq_per_s"] > 0
        assert "img_per_s" not in stored and "train texts" in stored["inputs"]
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(stored["files"])
        last = json.loads((out / stage / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["tflops"] > 0 and ("loss_mlm" in last) == (stage != "finetune")
    assert len({weights_of(out, stage) for stage in ("pretrain", "distill", "finetune")}) == 3
    metrics = read_json(out / "finetune" / "result.json")["metrics"]
    names = {"accuracy", "macro_f1", "micro_f1", "test_loss", "train_loss", "generalisation_gap", "distance"}
    assert set(metrics) - {"macro_f1_classes"} == names | {"majority_class_accuracy"}
    assert read_json(out / "finetune" / "result.json")["paper_metric"] == "micro_f1"  # the folder is called chemprot
    assert yaml.safe_load((out / "config.yaml").read_text())["pretrain"]["mask_ratio"] == 0.15
    assert not {"pretrain.mask", "finetune.flip"} & set(read_json(out / "finetune" / "result.json")["inputs"])
    assert "seq/s" in (out / "log.txt").read_text() and "img" not in (out / "log.txt").read_text()
    again = pipeline(inputs, out, kind=kind)
    before = (out / "finetune" / "result.json").stat().st_mtime_ns
    assert again.run().seq_per_s is not None
    assert (out / "finetune" / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_folders_and_gives_the_same_labels(
    kind: str, runs: dict[str, Path], inputs: dict[str, Path]
) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

    out = runs[kind]
    result = read_json(out / "finetune" / "result.json")["metrics"]
    metrics = pipeline(inputs, out, kind=kind).evaluate()
    for name in ("accuracy", "macro_f1", "micro_f1", "test_loss"):
        assert metrics[name] == pytest.approx(result[name], rel=1e-5)
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    texts = [json.loads(line) for line in (inputs["data"] / "test.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [text["label"] for text in texts]
    model = AutoModelForSequenceClassification.from_pretrained(out / "finetune" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "finetune" / "model")
    words = tokenizer([text["text"] for text in texts], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**words).logits.softmax(1)
    for row, text_probabilities in zip(rows, probabilities, strict=True):
        assert row["predicted"] == model.config.id2label[int(text_probabilities.argmax())]
        assert float(row["probability"]) == pytest.approx(float(text_probabilities.max()), abs=1e-5)
    for stage in ("pretrain", "distill"):
        theirs = AutoModelForMaskedLM.from_pretrained(out / stage / "model").eval()
        ours = load_mlm(str(out / stage / "model")).module
        assert theirs.num_parameters() == sum(value.numel() for value in ours.parameters())
        assert AutoTokenizer.from_pretrained(out / stage / "model").mask_token_id == tokenizer.mask_token_id


def test_a_changed_setting_runs_what_depends_on_it(
    inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    pipeline(inputs, out).distill()
    first = {stage: weights_of(out, stage) for stage in ("pretrain", "distill")}
    caplog.clear()
    pipeline(inputs, out, "pretrain.mask_only=true").distill()
    assert "pretrain: runs again, because pretrain.mask_only changed" in caplog.text
    assert all(weights_of(out, stage) != value for stage, value in first.items())


@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher.mode=live", "distill.tokens=all"],
        ["pretrain.mean=sequence", "distill.layer=1"],
        ["distill.mae_weight=0"],
        ["teacher.dtype=int8", "engine.accumulate=3"],
    ],
)
def test_options_of_distillation_train(inputs: dict[str, Path], tmp_path: Path, overrides: list[str]) -> None:
    result = pipeline(inputs, tmp_path / "run", *overrides).distill()
    last = json.loads((result.model.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss_distill"] > 0 and ("loss_mlm" in last) == ("distill.mae_weight=0" not in overrides)


def test_the_bank_gives_what_the_live_teacher_gives(
    inputs: dict[str, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    live = pipeline(inputs, tmp_path / "run", "teacher.mode=live").distill()
    mine, theirs = (load_mlm(str(path)).module.state_dict() for path in (live.model, runs["roberta"] / "distill/model"))
    assert max((mine[name] - value).abs().max() for name, value in theirs.items()) < 1e-5


def test_cutting_a_batch_changes_nothing_but_rounding(inputs: dict[str, Path], tmp_path: Path) -> None:
    plain = write_text_model(tmp_path / "model", dropout=0.0)
    states = []
    for number, more in enumerate(([], ["engine.accumulate=3"], ["data.token_budget=60"])):
        result = pipeline(inputs, tmp_path / str(number), *more, model=plain).pretrain()
        states.append(load_mlm(str(result.model)).module.state_dict())
    start = load_mlm(str(plain)).module.state_dict()
    for other in states[1:]:
        assert not all(torch.equal(other[name], value) for name, value in states[0].items())
        error = sum(float((other[name] - value).square().sum()) for name, value in states[0].items()) ** 0.5
        moved = sum(float((start[name] - value).square().sum()) for name, value in states[0].items()) ** 0.5
        assert error < 0.01 * moved


def test_epochs_are_counted_in_steps_and_steps_replace_them(inputs: dict[str, Path], tmp_path: Path) -> None:
    pipe = sdfast.Pipeline(inputs["roberta"], inputs["data"], tmp_path / "run", preset="paper-roberta")
    assert len(pipe.pack.split("train")) == 24
    assert (pipe.config.pretrain.steps, pipe.config.distill.steps, pipe.config.finetune.steps) == (100, 100, 20)
    other = sdfast.Pipeline(
        inputs["roberta"], inputs["data"], tmp_path / "run", preset="paper-roberta", overrides=["pretrain.steps=3"]
    )
    assert other.pack is not None and (other.config.pretrain.steps, other.config.distill.steps) == (3, 100)


def without_head(inputs: dict[str, Path], folder: Path) -> Path:
    from transformers import RobertaModel

    folder.mkdir()
    for path in inputs["roberta"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    RobertaModel.from_pretrained(inputs["roberta"], add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_a_new_head_is_trained_first_and_alone(
    inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, out = without_head(inputs, tmp_path / "model"), tmp_path / "run"
    pipe = pipeline(inputs, out, "pretrain.head_steps=4", model=model)
    pipe.distill()
    assert "has no language-model head" in caplog.text
    start, head = load_mlm(str(inputs["roberta"])).module.state_dict(), load_mlm(str(out / "head" / "model"))
    for name, value in head.module.state_dict().items():
        assert torch.equal(value, start[name]) == name.startswith("encoder."), name
    stored = {stage: read_json(out / stage / "result.json") for stage in ("head", "pretrain", "distill")}
    assert stored["head"]["steps"] == 4 and stored["pretrain"]["steps"] == 6
    assert stored["pretrain"]["inputs"]["start"] == stored["distill"]["inputs"]["start"] == stored["head"]["weights"]
    caplog.clear()
    pipeline(inputs, out, "pretrain.head_steps=4", model=model).pretrain()
    assert "head: already done" in caplog.text and "pretrain: already done" in caplog.text
    assert pipeline(inputs, tmp_path / "none", "pretrain.head_steps=0", model=model).pretrain() is not None
    assert not (tmp_path / "none" / "head").exists()


@pytest.mark.parametrize("stage", ["pretrain", "distill", "finetune"])
def test_a_signal_saves_and_the_run_ends_with_the_same_bits(
    stage: str, inputs: dict[str, Path], runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step

    def stopping(trainer: Trainer) -> Any:
        if trainer.stage == stage and trainer.steps_done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer)

    out = tmp_path / "run"
    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(Interrupted):
        pipeline(inputs, out).run()
    monkeypatch.setattr(Trainer, "step", original)
    torch.manual_seed(99)
    pipeline(inputs, out).run()
    assert f"{stage}: resuming at step 4 of 6" in (out / "log.txt").read_text()
    for name in ("pretrain", "distill", "finetune"):
        assert weights_of(out, name) == weights_of(runs["roberta"], name)


def test_a_killed_run_ends_with_the_same_bits(inputs: dict[str, Path], tmp_path: Path) -> None:
    steps = ("pretrain.steps=60", "engine.checkpoint_steps=2", f"engine.threads={torch.get_num_threads()}")
    options = ["--model", str(inputs["roberta"]), "--data", str(inputs["data"]), "--out", str(tmp_path / "cut")]
    environment = {**os.environ, "PYTHONPATH": str(Path(sdfast.__file__).parent.parent)}
    command = [sys.executable, "-m", "sdfast", "train", "--stage", "pretrain", *options, *FEW_STEPS, *steps]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "cut").glob("pretrain/checkpoints/step-*")):
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    assert not (tmp_path / "cut" / "pretrain" / "result.json").exists()
    for out in ("cut", "whole"):
        pipeline(inputs, tmp_path / out, *steps).pretrain()
        assert ("resuming at step" in (tmp_path / out / "log.txt").read_text()) == (out == "cut")
    assert weights_of(tmp_path / "cut", "pretrain") == weights_of(tmp_path / "whole", "pretrain")


def test_export_of_an_unfinished_stage(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

    original = Trainer.step
    for stage, kind in (("pretrain", AutoModelForMaskedLM), ("finetune", AutoModelForSequenceClassification)):

        def stopping(trainer: Trainer, stage: str = stage) -> Any:
            if trainer.stage == stage and trainer.steps_done == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(trainer)

        monkeypatch.setattr(Trainer, "step", stopping)
        out = tmp_path / f"run-{stage}"
        with pytest.raises(Interrupted):
            pipeline(inputs, out, "finetune.start=init").run(stage)  # type: ignore[arg-type]
        assert sdfast.Pipeline(out=out, config=out / "config.yaml").export(stage, tmp_path / stage) == 4
        assert kind.from_pretrained(tmp_path / stage).config.vocab_size == 45
        assert AutoTokenizer.from_pretrained(tmp_path / stage)("word1").input_ids == [0, 6, 2]


def test_the_commands_mark_the_papers_metric(
    inputs: dict[str, Path], runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "--out", str(runs["roberta"])]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown if "paper" in line] == ["micro_f1"]
    assert shown[3].startswith("test_loss") and "precision" in shown[5]  # then the table of classes
    options = ["--model", str(inputs["roberta"]), "--data", str(inputs["data"]), "--out", str(tmp_path / "run")]
    assert run(["study", "compare", "--seeds", "1", *options, *FEW_STEPS]) == 0
    table = capsys.readouterr().out
    header = next(line for line in table.splitlines() if line.startswith("| method"))
    assert header.index("micro-F1 %") < header.index("accuracy %") < header.index("macro-F1 %") and "img" not in table


def test_another_source_is_evaluated_and_the_run_needs_no_model_any_more(
    inputs: dict[str, Path], runs: dict[str, Path], tmp_path: Path
) -> None:
    out = runs["roberta"]
    result = read_json(out / "finetune" / "result.json")["metrics"]
    gone = sdfast.Pipeline(out=out, model=tmp_path / "gone", data=tmp_path / "gone")
    assert gone.evaluate(inputs["data"] / "train.jsonl")["test_loss"] == pytest.approx(result["train_loss"], rel=1e-5)
    strange = write_texts(tmp_path / "strange", classes=3)
    with pytest.raises(UserError, match="class2"):
        gone.evaluate(strange)


def test_the_masks_of_a_stage_are_keyed_by_the_seed(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    original = MaskedTraining.draw

    def noted(objective: MaskedTraining, batch: Any) -> Any:
        rates.append(objective.views.masking.rate)
        return original(objective, batch)

    monkeypatch.setattr(MaskedTraining, "draw", noted)
    weights = {
        pipeline(inputs, tmp_path / name, *more).pretrain().weights
        for name, more in (("a", ["seed=0"]), ("b", ["seed=0"]), ("c", ["seed=1"]), ("d", ["pretrain.mask_ratio=0.4"]))
    }
    assert len(weights) == 3 and set(rates) == {0.15, 0.4}
