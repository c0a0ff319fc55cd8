"""`sdfast embed`: the features are those of transformers on the written models, with names and digests beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sdfast
from sdfast.cli.main import run as command
from sdfast.durable import check_seal, sha256_file
from sdfast.errors import Interrupted, UserError
from sdfast.inference import embed
from sdfast.modalities.images.pack import ImagePack

transformers = pytest.importorskip("transformers")


def pipe(out: Path) -> sdfast.Pipeline:
    return sdfast.Pipeline(out=out, config=out / "config.yaml")


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_features_of_pictures_are_the_hidden_states_of_the_encoder(
    images: tuple[Path, Path], tmp_path: Path, stage: str
) -> None:
    out, loose = images
    folder = out / stage / "model/encoder"
    model, processor = (
        each.from_pretrained(folder) for each in (transformers.AutoModel, transformers.AutoImageProcessor)
    )
    pictures = [Image.open(path) for path in sorted(loose.glob("*.png"))]
    with torch.no_grad():
        states = model(**processor(images=pictures, return_tensors="pt")).last_hidden_state.numpy()
    wanted = {"cls": states[:, 0], "mean": states[:, 1:].mean(axis=1), "patch": states[:, 1:]}
    for tokens, values in wanted.items():
        found = pipe(out).embed(loose, stage, tokens, tmp_path / tokens)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.features, values, rtol=1e-4, atol=1e-5)
        assert found.manifest["shape"] == list(values.shape) and found.features.dtype == np.float32


def test_features_of_a_classifier_are_those_under_its_head(images: tuple[Path, Path], tmp_path: Path) -> None:
    out, loose = images
    model = transformers.AutoModelForImageClassification.from_pretrained(out / "finetune/model")
    found = pipe(out).embed(loose, "finetune", to=tmp_path / "features")
    with torch.no_grad():
        outputs = model.classifier(torch.from_numpy(np.array(found.features))).softmax(dim=1)
    said = pipe(out).predict(loose, tmp_path / "said.parquet").to_pandas()
    np.testing.assert_allclose(outputs.max(dim=1).values, said["confidence"], atol=1e-5)


def test_features_of_texts_are_hidden_states_and_the_mean_leaves_special_tokens_out(
    texts: tuple[Path, Path], tmp_path: Path
) -> None:
    out, new = texts
    folder = out / "distill/model"
    tokenizer, model = (each.from_pretrained(folder) for each in (transformers.AutoTokenizer, transformers.AutoModel))
    cls, mean = (pipe(out).embed(new, tokens=tokens, to=tmp_path / tokens).features for tokens in ("cls", "mean"))
    for row, line in enumerate(new.read_text().splitlines()):
        inputs = tokenizer(line, truncation=True, max_length=30, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0].numpy()
        np.testing.assert_allclose(cls[row], states[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mean[row], states[1:-1].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_the_rows_are_named_by_content_and_the_manifest_by_digests(images: tuple[Path, Path], tmp_path: Path) -> None:
    """A row's digest is the one that the run's own pack has of the same picture."""
    out, loose = images
    found = pipe(out).embed(loose, to=tmp_path / "features")
    rows = found.to_pandas()
    known = {digest.tobytes().hex() for digest in ImagePack.open(out / "pack").split("test").digests}
    assert rows["name"].tolist() == [f"{number:02d}.png" for number in range(24)] and set(rows["sha256"]) == known
    manifest = json.loads((tmp_path / "features/manifest.json").read_text())
    check_seal(manifest)
    assert (manifest["stage"], manifest["tokens"], manifest["layer"], manifest["rows"]) == (
        "distill",
        "cls",
        "last",
        24,
    )
    assert manifest["weights"] == json.loads((out / "distill/result.json").read_text())["weights"]
    for name, about in manifest["files"].items():
        assert sha256_file(tmp_path / "features" / name) == about["sha256"]


def test_parquet_and_half_precision(images: tuple[Path, Path], tmp_path: Path) -> None:
    out, loose = images
    npy = pipe(out).embed(loose, tokens="patch", to=tmp_path / "npy").features
    for dtype in ("float32", "float16"):
        given: dict[str, Any] = {"form": "parquet", "dtype": dtype}
        found = pipe(out).embed(loose, tokens="patch", to=tmp_path / dtype, **given)
        np.testing.assert_array_equal(found.features, npy.astype(dtype))
        assert [path.name for path in sorted((tmp_path / dtype).iterdir())] == ["features.parquet", "manifest.json"]


def test_the_model_as_given_is_a_stage_while_it_is_there(images: tuple[Path, Path], tmp_path: Path) -> None:
    out, loose = images
    given = sdfast.Pipeline(out.parent / "given", out=out, config=out / "config.yaml")
    first = given.embed(loose, "init", to=tmp_path / "init")
    assert first.manifest["weights"] == json.loads((out / "pretrain/result.json").read_text())["inputs"]["start"]
    with pytest.raises(UserError, match="--stage init is the model that the run was given"):
        pipe(out).embed(loose, "init")


def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, loose = images
    for number in range(100):
        (tmp_path / "new").mkdir(exist_ok=True)
        shutil.copy(loose / f"{number % 24:02d}.png", tmp_path / f"new/{number:03d}.png")
    monkeypatch.setattr(embed, "_PART", 1)  # parts of 64 rows
    pipe(out).embed(tmp_path / "new", to=tmp_path / "whole")
    usual, calls = embed.answers_of, iter((False, True, False))

    def stopped(*given: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return usual(*given)

    monkeypatch.setattr(embed, "answers_of", stopped)
    with pytest.raises(Interrupted):
        pipe(out).embed(tmp_path / "new", to=tmp_path / "cut")
    pipe(out).embed(tmp_path / "new", to=tmp_path / "cut")  # one more part, or `calls` ends
    for name in ("features.npy", "rows.parquet", "manifest.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--stage", "distil"], "--stage distil is not known; did you mean 'distill'?"),
        (["--stage", "distill/round-1"], "holds no model that is done"),
        (["--tokens", "all"], "--tokens all is not known; use cls or mean or patch"),
        (["--format", "csv"], "--format csv is not known"),
        (["--to", "."], "which is no part of features"),
    ],
)
def test_mistakes_get_one_sentence(images: tuple[Path, Path], given: list[str], sentence: str, capsys: Any) -> None:
    out, loose = images
    assert command(["embed", "--out", str(out), "--data", str(loose), *given]) == 2
    assert sentence in capsys.readouterr().err


def test_texts_have_no_patches(texts: tuple[Path, Path]) -> None:
    out, new = texts
    with pytest.raises(UserError, match="--tokens patch is of images"):
        pipe(out).embed(new, tokens="patch")
