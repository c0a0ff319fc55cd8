"""Texts from tar shards, of which all chunks are trained on and vote: two processes under ZeRO end where one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import webdataset
from launching import command, finished
from text_fixtures import write_text_model, write_texts

from sdfast.cli.main import run


def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    model = write_text_model(tmp_path / "model", dropout=0.0)
    for file in write_texts(tmp_path / "data").glob("*.jsonl"):
        with webdataset.TarWriter(str(tmp_path / f"{file.stem}-0.tar")) as writer:
            for row, line in enumerate(file.read_text().splitlines()):
                record = json.loads(line)
                writer.write({"__key__": f"{row:03d}", "txt": record["text"], "cls": record["label"]})
    given = ["--stage", "finetune", "--model", str(model), "--data", str(tmp_path / "{train,test}-0.tar")]
    steps = ["finetune.start=init", "finetune.steps=6", "finetune.batch_size=8", "finetune.dropout=0"]
    given += [*steps, "data.chunk_votes=true", "finetune.class_weights={class1: 2}"]
    done = finished(command(2, tmp_path / "two", given))
    assert done.returncode == 0, done.stderr
    assert run(["train", "--out", str(tmp_path / "one"), *given]) == 0
    two, one = (json.loads((tmp_path / out / "finetune" / "result.json").read_text()) for out in ("two", "one"))
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    assert {**two["inputs"], "start": ""} == {**one["inputs"], "start": ""}
