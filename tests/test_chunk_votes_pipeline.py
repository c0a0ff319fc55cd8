"""Fine-tuning on all chunks of a document, whose mean is its answer: beside transformers, one chunk at a time."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_fixtures import FEW_STEPS, write_text_model, write_texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sdfast
from sdfast.durable import read_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted, UserError
from sdfast.stages.graph import finetuning
from sdfast.stages.inputs import inputs_of

ROOM = 38  # tokens of a row beside the special ones
VOTES = "data.chunk_votes=true"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("given")
    return {"model": write_text_model(root / "model"), "data": write_texts(root / "data", dev=9)}


def pipeline(given: dict[str, Path], out: Path, *overrides: str) -> sdfast.Pipeline:
    return sdfast.Pipeline(out=out, device="cpu", overrides=(*FEW_STEPS, *overrides), **given)


def records(given: dict[str, Path], split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (given["data"] / f"{split}.jsonl").read_text().splitlines()]


def chunks(tokenizer: Any, document: str) -> list[list[int]]:
    """As many as hold it, as even as can be."""
    ids = tokenizer(document, add_special_tokens=False)["input_ids"]
    parts = np.array_split(np.array(ids, int), max(1, -(-len(ids) // ROOM)))
    return [[tokenizer.cls_token_id, *part.tolist(), tokenizer.sep_token_id] for part in parts]


def by_hand(folder: Path, documents: list[str]) -> torch.Tensor:
    """[documents, classes] float64: the mean of the probabilities of each document's chunks."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    model.eval()
    with torch.no_grad():
        return torch.stack(
            [
                torch.stack(
                    [model(torch.tensor([ids])).logits[0].double().softmax(0) for ids in chunks(tokenizer, document)]
                ).mean(0)
                for document in documents
            ]
        )


def check_predictions(path: Path, folder: Path, rows: list[dict[str, Any]], names: list[str]) -> torch.Tensor:
    """One row a document, with the mean's class and probability; the probabilities by hand."""
    expected = by_hand(folder, [row["text"] for row in rows])
    with path.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["label"] for row in written] == [str(row["label"]) for row in rows]
    assert [row["predicted"] for row in written] == [names[number] for number in expected.argmax(1).tolist()]
    found = [float(row["probability"]) for row in written]
    np.testing.assert_allclose(found, expected.max(1).values.numpy(), atol=2e-5)
    return expected


def test_a_document_is_the_mean_of_its_chunks(given: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    pipe = pipeline(given, out, VOTES, "finetune.epochs=3", "finetune.batch_size=4", "finetune.lr=0.01")
    result = pipe.finetune(start="init")
    tokenizer, train, test = (
        AutoTokenizer.from_pretrained(given["model"]),
        records(given, "train"),
        records(given, "test"),
    )
    rows = sum(len(chunks(tokenizer, row["text"])) for row in train)
    assert len(train) < rows and len(pipe.context.train_rows("finetune")) == rows
    assert pipe.context.config.finetune.steps == 3 * -(-rows // 4)
    assert sum(len(chunks(tokenizer, row["text"])) for row in test) > len(test)
    model, names = out / "finetune" / "model", pipe.context.pack.class_names
    assert pipe.evaluate() == {key: result.metrics[key] for key in pipe.evaluate()}
    expected = check_predictions(out / "predictions.csv", model, test, names)
    labels = torch.tensor([names.index(str(row["label"])) for row in test])
    assert result.metrics["accuracy"] == float((expected.argmax(1) == labels).double().mean())
    assert result.metrics["test_loss"] == pytest.approx(
        float(-expected[range(len(test)), labels].log().mean()), abs=1e-5
    )
    on_train = by_hand(model, [row["text"] for row in train])
    labels = torch.tensor([names.index(str(row["label"])) for row in train])
    loss = float(-on_train[range(len(train)), labels].log().mean())
    assert result.metrics["train_loss"] == pytest.approx(loss, abs=1e-5)
    log = (out / "log.txt").read_text()
    assert "of which fine-tuning has those of its labelled documents (data.chunk_votes)" in log
    assert "their chunks vote in evaluation (data.chunk_votes)" in log
    # another source, whose rows all vote
    shutil.copy(given["data"] / "dev.jsonl", tmp_path / "other.jsonl")
    pipe.evaluate(tmp_path / "other.jsonl", tmp_path / "other.csv")
    check_predictions(tmp_path / "other.csv", model, records(given, "dev"), names)


def test_held_out_documents_keep_their_chunks(given: dict[str, Path], tmp_path: Path) -> None:
    """Without a test split a share of train is held out, and its chunks vote; `data.chunk` is of pretrain alone."""
    shutil.copytree(given["data"], tmp_path / "data", ignore=shutil.ignore_patterns("test*", "dev*"))
    pipe = pipeline({**given, "data": tmp_path / "data"}, tmp_path / "run", VOTES, "data.chunk=false")
    result = pipe.finetune(start="init")
    test, texts = pipe.context.test, [row["text"] for row in records(given, "train")]
    rows = [int(name.rpartition(":")[2]) - 1 for name in test.names]
    expected = by_hand(tmp_path / "run" / "finetune" / "model", [texts[row] for row in rows])
    loss = float(-expected[range(len(rows)), torch.from_numpy(test.labels)].log().mean())
    assert result.metrics["test_loss"] == pytest.approx(loss, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    kept = [text for row, text in enumerate(texts) if row not in rows]
    assert len(pipe.context.train_rows("finetune")) == sum(len(chunks(tokenizer, text)) for text in kept)
    assert len(pipe.context.train_rows("pretrain")) == len(kept)


def test_what_identifies_a_run(given: dict[str, Path], tmp_path: Path) -> None:
    """Off, it counts for nothing; on, the rows, their labels and the chunks that vote do."""
    found = {}
    for name, options in {"cut": [], "off": ["data.chunk_votes=false"], "on": [VOTES]}.items():
        context = pipeline(
            given, tmp_path / "run", *options
        ).context  # one directory: its pack is made anew where need be
        found[name] = inputs_of(context, finetuning(context, "init"), {})
    assert found["cut"] == found["off"]
    changed = {key for key, value in found["on"].items() if found["cut"].get(key) != value}
    assert changed == {"train texts", "train rows", "train labels", "data.chunk_votes", "test votes"}
    context = pipeline(given, tmp_path / "run").context  # that pack will do without votes, too
    assert inputs_of(context, finetuning(context, "init"), {}) == found["cut"]
    assert context.pack.manifest["all_rests"] is True


def test_an_interrupted_stage_ends_with_the_same_bits(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (VOTES, "data.chunk_stride=5", "finetune.sampling=balanced", "finetune.class_weights={class1: 2}")
    options += ("finetune.best_dev=true", "finetune.evaluations=3")
    whole = pipeline(given, tmp_path / "whole", *options).finetune(start="init")
    step = Trainer.step

    def stopping(trainer: Trainer) -> Any:
        if trainer.steps_done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(Interrupted):
        pipeline(given, tmp_path / "cut", *options).finetune(start="init")
    monkeypatch.undo()
    again = pipeline(given, tmp_path / "cut", *options).finetune(start="init")
    assert again.weights == whole.weights and again.metrics == whole.metrics
    assert "finetune: resuming at step 4 of 6" in (tmp_path / "cut" / "log.txt").read_text()


def test_a_run_without_votes_has_no_chunks_to_evaluate(given: dict[str, Path], tmp_path: Path) -> None:
    pipeline(given, tmp_path / "run").finetune(start="init")
    with pytest.raises(
        UserError, match=r"was made without data.chunk_votes and lacks the chunks of \d+ documents of test"
    ):
        pipeline(given, tmp_path / "run", VOTES).evaluate()


def test_images_have_no_chunks_that_vote(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.chunk_votes=True says nothing for bundled, which is a model of images"):
        sdfast.Pipeline(out=tmp_path / "run", overrides=[VOTES]).initial  # noqa: B018
    assert not read_json(tmp_path / "run" / "result.json")
