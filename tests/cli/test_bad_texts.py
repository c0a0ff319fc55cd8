"""What a person gets wrong with texts, through the command line: one sentence, exit code 2."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_fixtures import write_images
from text_fixtures import FEW_STEPS, text, write_text_model, write_texts

from sdfast.cli.main import run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_text_model(root / "model"), "data": write_texts(root / "data")}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The sentence of a command that ends with code 2."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdfast:")]
    assert code == 2 and len(errors) == 1 and errors[0].endswith((".", "?")), errors
    return errors[0]


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def lines(path: Path, *rows: bytes | dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


GOOD = [{"text": text(number, number % 2), "label": f"class{number % 2}"} for number in range(8)]
SOURCES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "not UTF-8": (lambda root: lines(root / "a.jsonl", *GOOD, b'{"text": "caf\x81", "label": "class0"}'), "UTF-8"),
    "not JSON": (lambda root: lines(root / "a.jsonl", *GOOD, b'{"text": '), "line 9"),
    "a missing field": (lambda root: lines(root / "a.jsonl", *GOOD, {"words": "a b"}), "text"),
    "empty documents": (
        lambda root: lines(root / "a.jsonl", *GOOD[:2], *[{"text": " ", "label": "class0"}] * 6),
        "empty",
    ),
    "an empty file": (lambda root: lines(root / "a.jsonl"), "a.jsonl"),
    "an unknown label": (
        lambda root: (
            lines(root / "d" / "train.jsonl", *GOOD).with_name("test.jsonl")
            and lines(root / "d" / "test.jsonl", {"text": "word1 word2", "label": "class7"}).parent
        ),
        "class7",
    ),
    "nothing": (lambda root: root / "absent", "absent"),
    "no labels": (lambda root: lines(root / "a.txt", *(row["text"].encode() for row in GOOD)), "no labels"),
    "labels of another name": (
        lambda root: lines(root / "a.jsonl", *({"text": row["text"], "kind": row["label"]} for row in GOOD)),
        "no column is taken for the labels; if they are 'kind', say so by data.label_key",
    ),
    "another encoding": (
        lambda root: lines(root / "a.txt", *(f"\u043a\u043e\u0442 {row['text']}".encode("cp1251") for row in GOOD)),
        "data.encoding=cp1251",
    ),
    "no header": (
        lambda root: lines(root / "a.csv", *(f"{row['text']},{row['label']}".encode() for row in GOOD)),
        "has no header",
    ),
    "a pipe": (lambda root: pipe(root / "a.jsonl"), "a named pipe, not a regular file"),
    "a line that does not end": (
        lambda root: lines(root / "a.jsonl", *GOOD, b'{"text": "' + b"a b " * (17 << 20) + b'"}'),
        "line 9 is longer than 67,108,864 bytes",
    ),
    "a name that is too long": (lambda root: root / ("x" * 300), "file name too long"),
    "half of a surrogate pair": (
        lambda root: lines(root / "a.jsonl", *GOOD, b'{"text": "word1 word2", "label": "\\ud800"}'),
        "half of a surrogate pair",
    ),
    "images": (lambda root: write_images(root / "images"), "images need a model of images"),
    "one class": (lambda root: lines(root / "a.jsonl", *(row | {"label": "only"} for row in GOOD)), "only"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(name: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = SOURCES[name]
    said = fails(
        capsys, "train", "--stage", "finetune", "--model", inputs["model"], "--data", make(tmp_path),
        "--out", tmp_path / "run", *FEW_STEPS, "finetune.start=init",
    )  # fmt: skip
    assert words in said


SETTINGS = {
    "distill.tokens=patch": "for images",
    "distill.tokens=all": "teacher.mode=live",
    "distill.layer=2": "layer",
    "pretrain.mask=bernoulli": "says nothing for",
    "pretrain.augment=flip": "says nothing for",
    "finetune.flip=0.1": "says nothing for",
    "data.image_size=32": "says nothing for",
    "pretrain.epochs=0": "pretrain.epochs",
    "pretrain.mask_ratio=0": "pretrain.mask_ratio",
    "data.max_length=2": "data.max_length",
    "pretrain.lr=0": "same weights",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting: str, inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["pretrain.weight_decay=0"] if setting == "pretrain.lr=0" else []
    said = fails(
        capsys, "train", "--stage", "distill", "--model", inputs["model"], "--data", inputs["data"],
        "--out", tmp_path / "run", *FEW_STEPS, setting, *more,
    )  # fmt: skip
    assert SETTINGS[setting] in said


@pytest.mark.parametrize(
    "setting",
    ["pretrain.mask_only=true", "pretrain.mean=sequence", "data.token_budget=100", "pretrain.whole_word=true"],
)
def test_settings_of_texts_are_refused_for_images(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "says nothing for bundled" in fails(capsys, "train", "--out", tmp_path / "run", setting)


def test_models(inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(model: Path) -> str:
        return fails(capsys, "train", "--model", model, "--data", inputs["data"], "--out", tmp_path / "run", *FEW_STEPS)

    model = write_text_model(tmp_path / "model")
    kept = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(kept[:-40])
    assert "tokenizer" in train(model)
    larger = json.loads(kept)
    larger["model"]["vocab"]["word99"] = 60
    (model / "tokenizer.json").write_text(json.dumps(larger))
    assert "do not belong together" in train(model)
    unmasked = json.loads((model / "tokenizer_config.json").read_text())
    unmasked.pop("mask_token")
    (model / "tokenizer_config.json").write_text(json.dumps(unmasked))
    (model / "tokenizer.json").write_text(kept)
    assert "no mask token" in train(model)
    for path in model.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer" in train(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "deberta"}))
    assert "deberta model, an encoder with relative positions" in train(model)
    assert "no model folder" in train(tmp_path / "absent")


def test_a_command_for_images_alone(inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert "texts" in fails(capsys, "bench", "--model", inputs["model"])
    assert run(["plan", "--model", str(inputs["model"]), "--tflops", "1"]) == 0
    assert "GFLOP an example" in capsys.readouterr().out


def test_config_show_prints_the_ratio_of_the_model(inputs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for model, ratio in (([], 0.75), (["--model", str(inputs["model"])], 0.15)):
        assert run(["config", "show", *model]) == 0
        assert f"mask_ratio: {ratio}" in capsys.readouterr().out
