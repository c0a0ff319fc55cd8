"""Two processes on many unlabelled rows and few labelled ones end where one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launching import command, finished
from pipeline_fixtures import write_images, write_model

from sdfast.cli.main import run
from sdfast.durable import read_json

pytest.importorskip("deepspeed", reason="deepspeed is not installed")


def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    data, more = write_images(tmp_path / "few"), write_images(tmp_path / "all", train=8, test=0, side=21)
    shutil.copytree(data, more / "train" / "labelled")
    arguments = ["--model", str(write_model(tmp_path / "model")), "--data", str(data), "--unlabelled", str(more)]
    arguments += [
        f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("epochs=1", "batch_size=8")
    ]
    arguments += ["data.duplicates=drop", "data.labelled_limit=9", "finetune.dropout=0"]
    done = finished(command(2, tmp_path / "two", arguments))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("40 train (24 with a label), 12 test") == 1
    assert done.stderr.count("finetune trains on 9 of 24 labelled rows") == 1
    assert run(["train", "--out", str(tmp_path / "one"), *arguments]) == 0
    results = [read_json(tmp_path / out / "finetune" / "result.json") for out in ("two", "one")]
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=1e-4)
    assert [result["steps"] for result in results] == [2, 2]
    for stage, key in (("pretrain", "train rows"), ("distill", "train images"), ("finetune", "train labels")):
        inputs = [json.loads((tmp_path / out / stage / "result.json").read_text())["inputs"] for out in ("two", "one")]
        assert inputs[0][key] == inputs[1][key]
