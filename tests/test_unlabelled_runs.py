"""Runs and studies with many unlabelled rows and few labelled ones: which stage sees which, and what changes then."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import write_text_model, write_texts

import sdfast
from sdfast.cli.main import run
from sdfast.config import resolve
from sdfast.durable import read_json, sha256_array
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted, UserError
from sdfast.stages.graph import distillation, finetuning, pretraining
from sdfast.stages.inputs import inputs_of
from sdfast.studies.declared import STUDIES
from sdfast.studies.plan import Plan
from sdfast.teacher.bank import open_bank

TRAIN, NEW = 24, 16  # labelled rows of train, and rows that only the unlabelled sources have


@pytest.fixture(scope="module", params=["images", "texts"])
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, labelled data with a test split, and more data that hold the labelled ones as well."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "images":
        data, more = write_images(root / "few"), write_images(root / "all", train=NEW // 2, test=0, side=21)
        shutil.copytree(data, more / "train" / "labelled")
        return {"model": write_model(root / "model"), "data": data, "unlabelled": more}
    data, more = write_texts(root / "few", train=TRAIN), write_texts(root / "all", train=TRAIN + NEW)
    return {"model": write_text_model(root / "model"), "data": data, "unlabelled": more}


def pipeline(given: dict[str, Any], out: Path, *overrides: str) -> sdfast.Pipeline:
    """Of texts the documents are a row each, so that rows can be counted."""
    texts = (given["data"] / "train.jsonl").is_file()
    words = ("data.duplicates=drop", *(("data.chunk=false",) if texts else ()), *overrides)
    return sdfast.Pipeline(out=out, device="cpu", overrides=(*FEW_STEPS, *words), **given)


def fingerprints(pipe: sdfast.Pipeline) -> dict[str, dict[str, Any]]:
    context = pipe.context
    stages = {
        "pretrain": pretraining(context),
        "distill": distillation(context),
        "finetune": finetuning(context, "init"),
    }
    return {name: inputs_of(context, stage, dict.fromkeys(stage.needs, "w")) for name, stage in stages.items()}


def test_who_sees_which_rows(given: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline(given, tmp_path / "run", "pretrain.epochs=1", "distill.epochs=1", "finetune.epochs=1")
    pipe.run()
    alone = pipeline({**given, "unlabelled": ()}, tmp_path / "alone")
    context, train, name = pipe.context, pipe.context.train, pipe.modality.name
    assert len(train) == TRAIN + NEW and np.sum(train.labels >= 0) == TRAIN
    for kind in ("pretrain", "distill"):
        assert context.train_rows(kind).tolist() == list(range(TRAIN + NEW))
    assert context.train_rows("finetune").tolist() == list(range(TRAIN))
    assert [pipe.config.pretrain.steps, pipe.config.distill.steps, pipe.config.finetune.steps] == [5, 5, 3]
    assert len(open_bank(tmp_path / "run" / "teacher")) == TRAIN + NEW
    mine, theirs = fingerprints(pipe), fingerprints(alone)
    assert mine["finetune"]["train rows"] == sha256_array(np.arange(TRAIN))
    for key in (f"train {name}", "train labels", f"test {name}", "test labels", "train rows", "classes"):
        assert mine["finetune"][key] == theirs["finetune"][key]
    changed = {key for key, value in mine["pretrain"].items() if theirs["pretrain"][key] != value}
    assert changed == {f"train {name}", "train rows", "pretrain.steps"}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"{TRAIN + NEW} train ({TRAIN} with a label), 12 test, 2 classes" in log
    assert "and, without labels, those of `all`" in (tmp_path / "run" / "pretrain" / "model" / "README.md").read_text()
    assert "`all`" in (tmp_path / "run" / "finetune" / "model" / "README.md").read_text()


def test_limits_of_labelled_rows_are_nested_and_change_finetune_alone(given: dict[str, Path], tmp_path: Path) -> None:
    pipes = {limit: pipeline(given, tmp_path / f"{limit}", f"data.labelled_limit={limit}") for limit in (2, 5, 8, 999)}
    rows = {limit: pipe.context.train_rows("finetune").tolist() for limit, pipe in pipes.items()}
    found = {limit: fingerprints(pipe) for limit, pipe in pipes.items()}
    labels = pipes[2].context.train.labels
    assert set(rows[2]) < set(rows[5]) < set(rows[8]) < set(rows[999]) == set(range(TRAIN))
    assert [sorted(Counter(labels[rows[limit]].tolist()).values()) for limit in (2, 5, 8)] == [[1, 1], [2, 3], [4, 4]]
    for limit, pipe in pipes.items():
        assert len(pipe.context.train_rows("pretrain")) == TRAIN + NEW
        assert [found[limit][kind] for kind in ("pretrain", "distill")] == [
            found[2][kind] for kind in ("pretrain", "distill")
        ]
    differ = {key for key, value in found[2]["finetune"].items() if found[5]["finetune"][key] != value}
    assert differ == {f"train {pipes[2].modality.name}", "train rows", "train labels"}
    both = pipeline(given, tmp_path / "both", "data.labelled_limit=5", "data.limit=12").context
    assert len(both.train_rows("pretrain")) == 12 and both.train_rows("finetune").tolist() == rows[5]
    assert set(rows[5]) <= set(both.train_rows("pretrain").tolist())
    less = pipeline(given, tmp_path / "less", "data.labelled_limit=8", "data.limit=5").context  # what is not in `limit`
    assert less.train_rows("finetune").tolist() == rows[5] == less.train_rows("pretrain").tolist()
    other = pipeline(given, tmp_path / "other", "data.labelled_limit=5", "data.limit_seed=1").context
    assert other.train_rows("finetune").tolist() != rows[5]


def test_a_class_without_a_row_is_said(given: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline(given, tmp_path / "run", "data.labelled_limit=1")
    pipe.pretrain()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"finetune trains on 1 of {TRAIN} labelled rows (data.labelled_limit)" in log
    assert "data.labelled_limit leaves no row of 1 of 2 classes: class" in log


def test_a_sweep_over_labelled_rows_shares_teacher_bank_and_pack(given: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "study"
    steps = [f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("steps=3", "batch_size=8")]
    words = ["study", "compare", "--model", str(given["model"]), "--data", str(given["data"]), "--out", str(out)]
    words += ["--unlabelled", str(given["unlabelled"]), "--methods", "fine-tuning,self-distillation", "--seeds", "1"]
    for limit in (4, 8):
        assert run([*words, *steps, "data.duplicates=drop", f"data.labelled_limit={limit}", "engine.threads=1"]) == 0
    stages = Counter(path.name.split("-")[0] for path in (out / "stages").iterdir())
    assert stages == {"pretrain": 1, "distill": 1, "finetune": 4}
    assert len(list((out / "banks").glob("*/manifest.json"))) == len(list((out / "packs").iterdir())) == 1
    assert len(list(out.glob("compare*.json"))) == 2  # a table for each


def test_a_study_of_labelled_rows_trains_one_teacher(given: dict[str, Path], tmp_path: Path) -> None:
    config = pipeline(given, tmp_path / "run", "data.limit=30").config
    plan = Plan(STUDIES["labels"], [0])
    target = plan.target(config, tmp_path / "study")  # 20 alone of its own points is within the labelled rows
    assert {arm.x for arm in target.arms} == {20} and target.rows == TRAIN
    plan = Plan(STUDIES["labels"], [0], points=[1, 8, 30])
    target = plan.target(config, tmp_path / "study")
    stages = Counter(node.task.stage for node in plan.nodes.values())
    assert stages == {"pretrain": 1, "distill": 1, "finetune": 6}
    assert {cell.config.data.labelled_limit for cell in target.cells} == {1, 8}
    assert target.notes == [
        f"Left out, because there are {TRAIN} labelled training rows: 30.",
        "At n = 1 1 of 2 classes have no training row.",
    ]


def test_an_interrupted_run_ends_with_the_same_bits(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("data.labelled_limit=9",)
    pipeline(given, tmp_path / "whole", *options).run()
    step = Trainer.step
    stops = ["distill", "finetune"]

    def stopping(trainer: Trainer) -> Any:
        if trainer.stage in stops and trainer.steps_done == 3:
            stops.remove(trainer.stage)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted):
            pipeline(given, tmp_path / "cut", *options).run()
    monkeypatch.undo()
    pipeline(given, tmp_path / "cut", *options).run()
    for stage in ("pretrain", "distill", "finetune"):
        ends = [read_json(tmp_path / out / stage / "result.json")["weights"] for out in ("whole", "cut")]
        assert ends[0] == ends[1]


def test_evaluation_of_other_data_and_a_run_whose_unlabelled_data_are_gone(
    given: dict[str, Path], tmp_path: Path
) -> None:
    more = shutil.copytree(given["unlabelled"], tmp_path / "all")
    mine = {**given, "unlabelled": more}
    first = pipeline(mine, tmp_path / "run").run()
    shutil.rmtree(more)
    pipe = pipeline(mine, tmp_path / "run")
    assert pipe.run().weights == first.weights
    assert (
        len(sdfast.Pipeline(out=tmp_path / "run", config=tmp_path / "run" / "config.yaml").evaluate(str(given["data"])))
        > 3
    )
    with pytest.raises(UserError, match=r"all"):
        pipeline(mine, tmp_path / "new").pretrain()


def test_the_option_is_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["config", "show", "--data", "few", "--unlabelled", "a", "--unlabelled", "b c", "data.labelled_limit=3"])
        == 0
    )
    shown = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(shown)
    config = resolve(file=tmp_path / "c.yaml")
    assert config.data.unlabelled == ("a", "b c") and config.data.labelled_limit == 3
    assert resolve(overrides=["data.unlabelled=a", "data.source=few"]).data.unlabelled == ("a",)
    assert resolve(overrides=["data.source=few"]).data.unlabelled == ()
    assert json.loads(json.dumps(config.flat()))["data.unlabelled"] == ["a", "b c"]
    assert run(["train", "--unlabelled", "a", "--out", str(tmp_path / "run")]) == 2
    assert "data.unlabelled joins the data that --data names" in capsys.readouterr().err
    for bad in ("3", "[a,1]", "['']"):
        with pytest.raises(
            UserError, match=r"data\.unlabelled.*does not fit: .*must be the name of a source|data\.unlabelled"
        ):
            resolve(overrides=["data.source=few", f"data.unlabelled={bad}"])
