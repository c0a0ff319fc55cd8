"""`sdfast export --to onnx` and `--to torch.export`: what the files give, and that nothing half made is seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import write_text_model, write_texts

import sdfast
from sdfast.cli.main import run
from sdfast.errors import RunError
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import load_classifier, load_mlm
from sdfast.modalities.texts.portable import portable
from sdfast.models.blocks import use_attention
from sdfast.sharing import forms, graph
from sdfast.sharing.target import target_of

transformers = pytest.importorskip("transformers")
NEW = torch.Generator().manual_seed(3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and one whose neighbours vote."""
    root = tmp_path_factory.mktemp("images")
    model, data = write_model(root / "model"), write_images(root / "images", classes=3)
    for out, more in (("run", ()), ("knn", ("finetune.method=knn", "distill.rounds=0"))):
        sdfast.Pipeline(model, data, root / out, overrides=(*FEW_STEPS, *more), device="cpu").run()
    return root


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    model, data = write_text_model(root / "model", "modernbert"), write_texts(root / "texts")
    sdfast.Pipeline(model, data, root / "run", overrides=(*FEW_STEPS, "distill.rounds=0"), device="cpu").run()
    return root / "run"


def session(path: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_classifier_of_images_as_onnx(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    out = images / "run"
    assert run(["export", "--out", str(out), "--to", "onnx"]) == 0
    said = capsys.readouterr()
    path = out / "export" / "finetune.onnx"
    assert f"{path}: finetune after 6 steps" in said.out
    assert "differs from the model by at most" in said.err and "rows of the run's test split" in said.err
    assert left(out / "export") == ["finetune.onnx", "finetune.onnx.json"]
    model = transformers.AutoModelForImageClassification.from_pretrained(out / "finetune" / "model").eval()
    opened = session(path)
    for count in (1, 3, 8):
        pixels = torch.randn(count, 3, 16, 16, generator=NEW)
        with torch.no_grad():
            wanted = model(pixels).logits
        (logits,) = opened.run(["logits"], {"pixel_values": pixels.numpy()})
        np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4)
    about = json.loads(opened.get_modelmeta().custom_metadata_map["sdfast"])
    assert about == json.loads(path.with_name("finetune.onnx.json").read_text()) == forms.said_of(path)
    assert about["classes"] == ["class0", "class1", "class2"] and about["inputs"]["mean"] == [0.5, 0.5, 0.5]
    assert 0 <= about["checked"]["largest difference"] <= graph.LIMIT and about["checked"]["batches"] == [1, 5]
    assert run(["train", "--out", str(out), "--config", str(out / "config.yaml")]) == 0  # which disturbs no run


def test_an_encoder_of_images_for_torch(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "made" / "encoder.pt2"
    assert sdfast.Pipeline(config=images / "run" / "config.yaml").export("distill", path) == 6
    program = torch.export.load(path)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [each for each in targets if "sdfast" in each]  # torch alone runs it
    model = transformers.AutoModel.from_pretrained(images / "run/distill/model/encoder").eval()
    for count in (1, 4):
        pixels = torch.randn(count, 3, 16, 16, generator=NEW)
        tokens, features = program.module()(pixels)
        with torch.no_grad():
            wanted = model(pixels)
        torch.testing.assert_close(tokens, wanted.last_hidden_state, atol=1e-4, rtol=0)
        torch.testing.assert_close(features, wanted.pooler_output, atol=1e-4, rtol=0)
    assert forms.said_of(path)["outputs"] == ["last_hidden_state", "features"]


def test_neighbours_that_vote(images: Path) -> None:
    pipe, path = sdfast.Pipeline(config=images / "knn" / "config.yaml"), images / "knn" / "export" / "finetune.pt2"
    path.parent.mkdir()
    path.write_text("of before")  # the run's own place
    pipe.export("finetune", "torch.export")
    logits = torch.export.load(path).module()(torch.randn(2, 3, 16, 16, generator=NEW))[0]
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(2), atol=1e-4, rtol=0)
    assert "votes" in forms.said_of(path)["logits"]


def test_texts_of_other_lengths_padded_anywhere(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    path = tmp_path / "classifier.onnx"
    assert run(["export", "--out", str(texts), "--to", str(path)]) == 0
    assert left(tmp_path) == ["classifier.onnx", "classifier.onnx.json", "classifier.tokenizer"]
    assert (tmp_path / "classifier.tokenizer" / "tokenizer.json").is_file()
    opened, own = session(path), load_classifier(texts / "finetune" / "model")[0].eval()
    assert [each.shape for each in opened.get_inputs()] == [["batch", "length"]] * 2
    for length, more in ((1, 0), (9, 4), (40, 0)):
        ids = torch.randint(5, 45, (2, length), generator=NEW)
        with torch.no_grad():
            wanted = own(TokenBatch(ids.flatten(), torch.tensor([length, length])))
        for places in (torch.arange(length), torch.arange(length) + more, torch.randperm(length + more)[:length]):
            where = places.sort().values
            padded, mask = torch.full((2, length + more), 44), torch.zeros(2, length + more, dtype=torch.int64)
            padded[:, where], mask[:, where] = ids, 1
            (logits,) = opened.run(None, {"input_ids": padded.numpy(), "attention_mask": mask.numpy()})
            np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4)


def test_features_of_texts_are_those_of_transformers(texts: Path, tmp_path: Path) -> None:
    sdfast.Pipeline(config=texts / "config.yaml").export("pretrain", tmp_path / "texts.pt2")
    model = transformers.AutoModel.from_pretrained(texts / "pretrain" / "model").eval()
    ids, mask = torch.randint(5, 45, (2, 12), generator=NEW), torch.ones(2, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    tokens, features = torch.export.load(tmp_path / "texts.pt2").module()(ids, mask)
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(tokens, wanted * mask[..., None], atol=1e-4, rtol=0)
    torch.testing.assert_close(features, wanted[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "roberta", "eurobert"])
def test_other_kinds_of_texts(kind: str, tmp_path: Path) -> None:
    """The function that is traced, against packed sequences."""
    loaded = load_mlm(str(write_text_model(tmp_path / "model", kind)))
    model = portable(loaded.module.eval().requires_grad_(False), loaded.companions)
    inputs = model.given(None, torch.arange(6))
    own = model.own(*inputs)
    use_attention(loaded.module, "sdpa")
    tokens, features = model.module(*inputs)
    torch.testing.assert_close(features, own, atol=1e-5, rtol=0)
    assert not tokens[inputs[1] == 0].any()


def test_a_file_that_differs_is_not_kept(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "LIMIT", -1.0)
    with pytest.raises(RunError, match="so it is not kept"):
        sdfast.Pipeline(config=images / "run" / "config.yaml").export("finetune", tmp_path / "made" / "model.pt2")
    assert left(tmp_path / "made") == []


def test_nothing_is_seen_of_an_export_that_was_killed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise SystemExit(9)

    pipe = sdfast.Pipeline(config=images / "run" / "config.yaml")
    monkeypatch.setattr(graph, "_move", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as where the process is gone
    with pytest.raises(SystemExit):
        pipe.export("distill", tmp_path / "model.pt2")
    assert left(tmp_path) == [".staging-model.pt2"]
    monkeypatch.undo()
    pipe.export("distill", tmp_path / "model.pt2")
    assert left(tmp_path) == ["model.pt2", "model.pt2.json"]


def test_what_cannot_be_written(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["export", "--out", str(images / "run"), "--to"]
    (tmp_path / "there.onnx").write_text("mine")
    assert run([*out, str(tmp_path / "there.onnx")]) == 2
    assert (tmp_path / "there.onnx").read_text() == "mine" and "is there already" in capsys.readouterr().err
    monkeypatch.setattr(forms.importlib.util, "find_spec", lambda name: None)
    assert run([*out, "onnx"]) == 2
    assert 'ONNX needs onnx and onnxscript and onnxruntime: pip install "sdfast[onnx]".' in capsys.readouterr().err


def test_words_files_and_folders(tmp_path: Path) -> None:
    assert target_of("onnx", tmp_path, "distill/round-1").path == tmp_path / "export" / "distill-round-1.onnx"
    assert target_of("torch.export", tmp_path, "finetune").path == tmp_path / "export" / "finetune.pt2"
    assert target_of("./onnx", tmp_path, "finetune").form == target_of(Path("onnx"), tmp_path, "x").form == "folder"
    assert target_of("a/b.onnx", tmp_path, "finetune").form == "onnx"
