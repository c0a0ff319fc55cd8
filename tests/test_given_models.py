"""What a given model decides where no key says otherwise, and what is said of one that does not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import write_text_model, write_texts

import sdfast
from sdfast.cli.main import run
from sdfast.config import PretrainConfig
from sdfast.errors import UserError
from sdfast.modalities.choose import modality_name
from sdfast.modalities.images.checkpoint import load_mae, save_mae
from sdfast.stages.graph import pretraining
from sdfast.stages.inputs import inputs_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same weights, once of raw pixels half of which were masked, and once as most are."""
    usual = write_model(tmp_path_factory.mktemp("models") / "usual")
    loaded, raw = load_mae(str(usual)), usual.with_name("raw")
    save_mae(loaded.module, raw, loaded.processor, norm_pix_loss=False, mask_ratio=0.5)
    return usual, raw


def digest(model: Path, data: Path, out: Path, *keys: str, stage: str = "pretrain") -> str:
    result = sdfast.Pipeline(model, data, out, overrides=(*FEW_STEPS, *keys)).run(stage)
    return result.weights


RAW, USUAL = ("pretrain.norm_pix=false", "pretrain.mask_ratio=0.5"), ("pretrain.norm_pix=true",)


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_the_checkpoint_decides(models: tuple[Path, Path], data: Path, tmp_path: Path, stage: str) -> None:
    """A run on the raw model is, bit for bit, one on the same weights that was told so, and not one that was not."""
    usual, raw = models
    own = digest(raw, data, tmp_path / "own", stage=stage)
    assert own == digest(usual, data, tmp_path / "told", *RAW, stage=stage)
    for number, keys in enumerate(((), RAW[:1], RAW[1:])):  # each of the two counts
        assert own != digest(usual, data, tmp_path / str(number), *keys, stage=stage)
    written = json.loads((tmp_path / "own" / stage / "model/config.json").read_text())
    assert written["norm_pix_loss"] is False and written["mask_ratio"] == 0.5
    inputs = json.loads((tmp_path / "own" / stage / "result.json").read_text())["inputs"]
    assert inputs["pretrain.norm_pix"] is False and inputs["pretrain.mask_ratio"] == 0.5
    resolved = yaml.safe_load((tmp_path / "own/config.yaml").read_text())["pretrain"]
    assert resolved["norm_pix"] is False and resolved["mask_ratio"] == 0.5


def test_a_key_says_otherwise(models: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    usual, raw = models
    told = digest(raw, data, tmp_path / "told", *USUAL, "pretrain.mask_ratio=0.75")
    assert told == digest(usual, data, tmp_path / "usual")


def test_a_usual_model_has_the_inputs_that_it_always_had(models: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    digest(models[0], data, tmp_path)
    inputs = json.loads((tmp_path / "pretrain/result.json").read_text())["inputs"]
    assert inputs["pretrain.norm_pix"] is True and inputs["pretrain.mask_ratio"] == 0.75


@pytest.mark.parametrize(
    ("which", "keys", "parts"),
    [
        (0, (), []),
        (0, ("pretrain.norm_pix=true",), []),
        (0, ("pretrain.norm_pix=false",), ["pre-trained with norm_pix=true; pretrain.norm_pix=false, as given"]),
        (1, (), ["pretrain.norm_pix=false, as it was pre-trained", "pretrain.mask_ratio=0.5, as it was pre-trained"]),
        (1, RAW, []),
        (1, USUAL, ["pre-trained with norm_pix=false; pretrain.norm_pix=true", "mask_ratio=0.5, as it was"]),
    ],
)
def test_the_log_says_which(
    models: tuple[Path, Path],
    data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    which: int,
    keys: tuple[str, ...],
    parts: list[str],
) -> None:
    with caplog.at_level(logging.INFO, "sdfast"):
        _ = sdfast.Pipeline(models[which], data, tmp_path, overrides=keys).initial
    said = [record.message for record in caplog.records if "pre-trained" in record.message]
    assert len(said) == len(parts)
    for part, message in zip(parts, said, strict=True):
        assert part in message


def test_config_show_has_them(models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for model, expected in zip(models, ((True, 0.75), (False, 0.5)), strict=True):
        assert run(["config", "show", "--model", str(model)]) == 0
        shown = yaml.safe_load(capsys.readouterr().out)["pretrain"]
        assert (shown["norm_pix"], shown["mask_ratio"]) == expected


@pytest.mark.parametrize(("given", "expected"), [(None, True), (True, True), (False, False)])
def test_unresolved_is_normalised(given: bool | None, expected: bool) -> None:
    assert PretrainConfig(norm_pix=given).normalised_pixels is expected


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "gpt2", "vocab_size": 50257}, "texts"),
        ({"model_type": "distilbert", "vocab_size": 30522, "dim": 768}, "texts"),
        ({"model_type": "modernbert", "vocab_size": 50368}, "texts"),
        ({"model_type": "t5", "vocab_size": 32128, "d_model": 512}, "texts"),
        ({"model_type": "swin", "image_size": 224}, "images"),
        ({"model_type": "vilt", "image_size": 384, "vocab_size": 30522}, "images"),
        ({"model_type": "vit_mae"}, "images"),
        ({"model_type": "vit", "vocab_size": 10}, "images"),
        ({"model_type": "roberta"}, "texts"),
        ({"model_type": ["roberta"]}, "images"),
        ({"architecture": "vit_base_patch16_224"}, "images"),
    ],
)
def test_what_a_model_is_of(config: dict[str, object], kind: str) -> None:
    """One that sdfast does not take is answered with the models that it takes of the same kind."""
    assert modality_name(config) == kind


def test_a_text_model_of_an_unknown_kind(tmp_path: Path, data: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768}')
    with pytest.raises(
        UserError, match=r"gpt2 model, a language model with causal .*: of text models sdfast takes bert"
    ):
        _ = sdfast.Pipeline(tmp_path, data, tmp_path / "out").initial


def test_a_tokenizer_with_more_words_than_the_model(tmp_path: Path) -> None:
    """They are those of another model's vocabulary; tokens that were added to it are another matter."""
    model, texts = write_text_model(tmp_path / "model"), write_texts(tmp_path / "texts")
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {f"further{number}": 45 + number for number in range(22)}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        _ = sdfast.Pipeline(model, texts, tmp_path / "out").pack
    assert "67 words, 22 more than its model" in str(caught.value)
    assert "model.resize_token_embeddings(len(tokenizer))" in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_nested_json_of_a_tokenizer(name: str, tmp_path: Path) -> None:
    model, texts = write_text_model(tmp_path / "model"), write_texts(tmp_path / "texts")
    (model / name).write_text("[" * 100_000)
    with pytest.raises(UserError) as caught:
        _ = sdfast.Pipeline(model, texts, tmp_path / "out").pack
    assert str(model) in str(caught.value) and "\n" not in str(caught.value)


def test_a_cut_that_the_tokenizer_decides_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when a classifier of short texts is trained further on longer ones."""
    model, texts = write_text_model(tmp_path / "model"), write_texts(tmp_path / "texts")
    config = model / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"model_max_length": 40', '"model_max_length": 20'))
    with caplog.at_level(logging.WARNING, "sdfast"):
        pack = sdfast.Pipeline(model, texts, tmp_path / "out").pack
    assert int(pack.split("train").lengths.max()) == 20
    assert [record.getMessage() for record in caplog.records if "cut at 20 tokens" in record.getMessage()]


@pytest.mark.parametrize("norm_pix", [True, None])
def test_a_text_run_takes_the_configuration_of_an_older_one(norm_pix: bool | None, tmp_path: Path) -> None:
    """Which wrote the images' norm_pix: true, as that was the default."""
    model, texts = write_text_model(tmp_path / "model"), write_texts(tmp_path / "texts")
    pipe = sdfast.Pipeline(model, texts, tmp_path / "out", pretrain={"norm_pix": norm_pix})
    assert "pretrain.norm_pix" not in inputs_of(pipe.context, pretraining(pipe.context), {})
    with pytest.raises(UserError, match="norm_pix=False says nothing"):
        _ = sdfast.Pipeline(model, texts, tmp_path / "out", pretrain={"norm_pix": False}).initial
