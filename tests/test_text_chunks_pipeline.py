"""Runs on long documents: what changes for pretrain, distill and the bank, what stays for finetune and for old runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from text_fixtures import FEW_STEPS, WORDS, text, write_text_model, write_texts
from transformers import AutoTokenizer

import sdfast
from sdfast.durable import read_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted, UserError
from sdfast.stages.graph import distillation, finetuning, pretraining
from sdfast.stages.inputs import inputs_of
from sdfast.teacher.bank import open_bank

LONGEST = 40  # tokens that the model's tokenizer allows
ROOM = LONGEST - 2


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("given")
    return {"model": write_text_model(root / "model"), "data": write_texts(root / "data")}


def pipeline(given: dict[str, Path], out: Path, *overrides: str, **more: Any) -> sdfast.Pipeline:
    return sdfast.Pipeline(out=out, device="cpu", overrides=(*FEW_STEPS, *overrides), **given, **more)


def inputs(pipe: sdfast.Pipeline) -> dict[str, dict[str, Any]]:
    context = pipe.context
    stages = {"pretrain": pretraining(context), "finetune": finetuning(context, "init")}
    return {name: inputs_of(context, stage, {}) for name, stage in stages.items()}


def weights_of(out: Path, stage: str) -> str:
    return read_json(out / stage / "result.json")["weights"]


def rows_by_hand(given: dict[str, Path], limit: list[int] | None = None) -> int:
    """Rows of the documents, from the numbers of tokens that the tokenizer of transformers gives."""
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    documents = range(24) if limit is None else limit
    texts = [text(number, number % 2) for number in documents]
    counts = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return sum(max(1, -(-count // ROOM)) for count in counts)


def test_epochs_pass_over_all_chunks_and_the_bank_has_a_row_for_each(given: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline(given, tmp_path / "run", "pretrain.epochs=2", "pretrain.batch_size=1", "distill.epochs=1")
    pipe.distill()
    rows = rows_by_hand(given)
    assert 24 < rows < 48 and pipe.config.pretrain.steps == 2 * rows and pipe.config.distill.steps == -(-rows // 8)
    assert len(open_bank(tmp_path / "run" / "teacher")) == rows
    assert pipe.config.data.chunk is True and len(pipe.context.train) == 24
    log = (tmp_path / "run" / "log.txt").read_text()
    long = rows - 24
    assert f"of 24 documents of train {long} are longer than 40 tokens and become {2 * long} rows; pretrain" in log
    view = pipe.context.train_of("distill")
    words = AutoTokenizer.from_pretrained(given["model"]).convert_tokens_to_ids(WORDS)
    ids, _ = view.tokens(torch.arange(len(view)))
    assert set(ids.tolist()) <= {*words, 0, 2} and (ids == 0).sum() == (ids == 2).sum() == rows


def test_a_limit_is_of_documents(given: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline(given, tmp_path / "run", "data.limit=9", "pretrain.epochs=1", "pretrain.batch_size=1")
    documents = pipe.context.train.limited(9, 42).tolist()
    assert len(documents) == 9 and pipe.context.config.pretrain.steps == rows_by_hand(given, documents)
    assert pipe.context.train_rows("finetune").tolist() == documents


def test_finetune_is_what_it_was(given: dict[str, Path], tmp_path: Path) -> None:
    """Its fingerprint, its bits and its predictions are the same with chunks and without."""
    runs = {chunk: pipeline(given, tmp_path / chunk, f"data.chunk={chunk}") for chunk in ("true", "false")}
    found = {chunk: inputs(pipe) for chunk, pipe in runs.items()}
    assert found["true"]["finetune"] == found["false"]["finetune"]
    changed = {name for name, value in found["true"]["pretrain"].items() if found["false"]["pretrain"][name] != value}
    assert changed == {"train texts", "train rows"}
    for pipe in runs.values():
        pipe.finetune(start="init")
    assert weights_of(tmp_path / "true", "finetune") == weights_of(tmp_path / "false", "finetune")
    results = [read_json(tmp_path / chunk / "finetune" / "result.json")["metrics"] for chunk in runs]
    assert results[0] == results[1]


def test_joined_documents_are_rows_of_the_bank(given: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline(given, tmp_path / "run", "data.pack_short=true", "pretrain.epochs=1", "pretrain.batch_size=1")
    pipe.distill()
    tokenizer, rows, free = AutoTokenizer.from_pretrained(given["model"]), 0, 0
    for ids in tokenizer([text(number, number % 2) for number in range(24)], add_special_tokens=False)["input_ids"]:
        if len(ids) > ROOM:
            rows += -(-len(ids) // ROOM)
        elif len(ids) + 1 <= free:  # with the token that ends it
            free -= len(ids) + 1
        else:
            rows, free = rows + 1, ROOM - len(ids)
    assert rows < rows_by_hand(given) and pipe.config.pretrain.steps == rows
    assert len(open_bank(tmp_path / "run" / "teacher")) == rows
    assert " short ones share " in (tmp_path / "run" / "log.txt").read_text()
    assert len(pipe.context.train_rows("finetune")) == 24


@pytest.mark.parametrize("option", ["data.chunk_stride=5", "data.pack_short=true"])
def test_an_interrupted_run_ends_with_the_same_bits(
    option: str, given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (option, "data.token_budget=90", "distill.tokens=cls")
    pipeline(given, tmp_path / "whole", *options).distill()
    step = Trainer.step

    def stopping(trainer: Trainer) -> Any:
        if trainer.stage == "distill" and trainer.steps_done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(Interrupted):
        pipeline(given, tmp_path / "cut", *options).distill()
    monkeypatch.undo()
    pipeline(given, tmp_path / "cut", *options).distill()
    assert "distill: resuming at step 4 of 6" in (tmp_path / "cut" / "log.txt").read_text()
    for stage in ("pretrain", "distill"):
        assert weights_of(tmp_path / "cut", stage) == weights_of(tmp_path / "whole", stage)


# Runs of versions that had no chunks.


@pytest.fixture(scope="module")
def old(given: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as an earlier version left it: its config.yaml has no such keys."""
    out = tmp_path_factory.mktemp("old") / "run"
    pipeline(given, out, "data.chunk=false").pretrain()
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert [config["data"].pop(key) for key in ("chunk", "chunk_stride")] == [False, 0]
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    return out


@pytest.mark.parametrize("pack", ["there", "deleted"])
def test_an_old_run_is_found_done(pack: str, given: dict[str, Path], old: Path, tmp_path: Path) -> None:
    out = shutil.copytree(old, tmp_path / "run")
    if pack == "deleted":
        shutil.rmtree(out / "pack")
    pipe = pipeline(given, out)
    pipe.pretrain()
    log = (out / "log.txt").read_text()
    assert "pretrain: already done" in log and pipe.config.data.chunk is False
    assert "are cut at 40 tokens, as they were before; data.chunk=true trains on all of them" in log
    asked = pipeline(given, out, "data.chunk=true")
    asked.pretrain()
    assert weights_of(out, "pretrain") != weights_of(old, "pretrain")
    assert "pretrain: runs again, because train texts changed" in (out / "log.txt").read_text()
    assert pipeline(given, out).context.config.data.chunk is True


def test_the_settings_of_an_old_run_mean_what_they_meant(given: dict[str, Path], old: Path, tmp_path: Path) -> None:
    pipe = sdfast.Pipeline(out=tmp_path / "new", config=old / "config.yaml")
    pipe.pretrain()
    assert weights_of(tmp_path / "new", "pretrain") == weights_of(old, "pretrain")
    (tmp_path / "few.yaml").write_text(f"model: {given['model']}\ndata: {{source: {given['data']}, max_length: 30}}\n")
    assert sdfast.Pipeline(out=tmp_path / "few", config=tmp_path / "few.yaml").config.data.chunk is None


def test_chunks_of_data_that_are_gone_are_refused(given: dict[str, Path], old: Path, tmp_path: Path) -> None:
    out, data = shutil.copytree(old, tmp_path / "run"), tmp_path / "data"
    shutil.copytree(given["data"], data)
    moved = {**given, "data": data}
    pipeline(moved, out).pretrain()
    os.rename(data, tmp_path / "elsewhere")
    pipeline(moved, out).pretrain()  # still found done
    with pytest.raises(UserError, match=r"was made with data.chunk=false, and the data it was made of are gone"):
        pipeline(moved, out, "data.chunk=true").pretrain()


def test_both_arms_of_a_study_have_their_rows(given: dict[str, Path], tmp_path: Path) -> None:
    from sdfast.studies.store import Shared, Store

    store = Store(tmp_path, Shared())
    rows = {}
    for chunk in ("false", "true", "false"):
        with store.opened(pipeline(given, tmp_path / "none", f"data.chunk={chunk}").config) as context:
            rows[chunk] = len(context.train_rows("pretrain"))
            assert len(inputs_of(context, distillation(context).chain()[0], {})) > 5
    assert rows == {"false": 24, "true": rows_by_hand(given)}
    assert len(list((tmp_path / "packs").iterdir())) == 1


def test_a_study_of_before_finds_its_packs(tmp_path: Path) -> None:
    """The name of a pack's folder is what it was before there were further keys, from the keys of then."""
    from sdfast.studies.store import Shared, Store

    config = sdfast.Pipeline("bundled-text", "texts", overrides=["data.max_length=64"], preset="text-demo").config
    keys: dict[str, Any] = {
        **{"source": "texts", "image_size": None, "channels": None, "test_fraction": 0.25, "split_seed": 42},
        **{"max_broken": 0.05, "duplicates": "error", "image_key": None, "text_key": None, "label_key": None},
        **{"split_key": None, "encoding": "utf-8", "unseen": "error", "exif_rotation": "apply"},
        **{"background": "white", "range": "auto", "max_pixels": 178_956_970, "max_length": 64, "token_budget": None},
    }
    content = json.dumps(["bundled-text", keys], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    assert Store(tmp_path, Shared())._pack_directory(config).name == f"bundled-text-texts-{digest}"
    other = config.changed(["data.test_fraction=0.5"])
    assert Store(tmp_path, Shared())._pack_directory(other) != Store(tmp_path, Shared())._pack_directory(config)


def test_images_have_no_chunks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.chunk=True says nothing for bundled, which is a model of images"):
        sdfast.Pipeline(out=tmp_path / "run", overrides=["data.chunk=true"]).initial  # noqa: B018
    sdfast.Pipeline(out=tmp_path / "run", overrides=["data.chunk=false"]).initial  # noqa: B018
