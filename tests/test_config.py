"""Layers of the configuration, and what is said about mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sdfast.config import Config, presets, resolve, valid_keys
from sdfast.errors import UserError


def test_defaults_are_the_papers() -> None:
    config = resolve(options={"model": "facebook/vit-mae-base"})
    assert config.pretrain.steps == config.distill.steps == 20_000
    assert (config.pretrain.lr, config.pretrain.betas, config.pretrain.clip) == (1.5e-4, (0.9, 0.95), 0.0)
    assert (config.finetune.steps, config.finetune.batch_size, config.finetune.clip) == (10_000, 32, 1.0)
    assert config.distill.tokens == "cls" and config.distill.rounds == 1
    assert config.engine.precision == "auto"
    exactly = resolve(preset="paper-vit")  # also what the released code did besides its hyperparameters
    assert exactly.engine.precision == "fp32" and exactly.data.exif_rotation == "ignore"
    config, default = config.resolved("images"), Config().resolved("images")
    for section in ("pretrain", "distill", "finetune"):
        assert getattr(exactly, section) == getattr(config, section) == getattr(default, section)


def test_the_bundled_model_takes_the_demo_preset() -> None:
    assert resolve().pretrain.steps == resolve(preset="demo").pretrain.steps < 1000


def test_the_bundled_model_of_texts_takes_its_own_preset() -> None:
    texts = resolve(options={"model": "bundled-text"})
    assert texts == resolve(preset="text-demo") and texts.pretrain.steps < 1000 and texts.model == "bundled-text"


def test_the_demos_limit_is_for_the_bundled_images() -> None:
    assert resolve().data.limit == 500
    assert resolve(options={"data": {"source": "photos"}}).data.limit is None
    assert resolve(preset="demo", overrides=["data.source=photos", "data.limit=7"]).data.limit == 7


def test_file_then_overrides_then_options(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 1\npretrain: {steps: 11, lr: 2e-4}\ndata: {limit: 5}\n")
    config = resolve(file=file, overrides=["pretrain.steps=12", "seed=2"], options={"seed": 3})
    assert (config.seed, config.pretrain.steps, config.pretrain.lr, config.data.limit) == (3, 12, 2e-4, 5)


def test_the_printed_configuration_is_read_back(tmp_path: Path) -> None:
    config = resolve(overrides=["data.image_size=[32, 48]", "finetune.betas=[0.8, 0.9]"], preset="demo")
    file = tmp_path / "c.yaml"
    file.write_text(config.to_yaml())
    assert resolve(file=file) == config
    assert set(yaml.safe_load(config.to_yaml())) == set(Config.model_fields)


def test_every_key_has_a_description_in_the_schema() -> None:
    schema = Config.model_json_schema()
    json.dumps(schema)
    for name, section in schema["$defs"].items():
        for key, value in section["properties"].items():
            assert value.get("description"), f"{name}.{key}"
    assert {"seed", "pretrain.steps", "pretrain.mask_ratio", "distill.tokens", "data.limit"} <= set(valid_keys())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pretrain.step=3", "'pretrain.steps'"),
        ("mask_ratio=0.5", "'pretrain.mask_ratio'"),
        ("zzz=1", "config show"),
        ("pretrain.steps=many", "pretrain.steps=many"),
        ("pretrain.steps=0", "pretrain.steps=0"),
        ("distill.tokens=cl", "distill.tokens=cl"),
        ("pretrain.steps", "key=value"),
        ("pretrain=3", "pretrain=3"),
        ("pretrain.lr=.inf", "pretrain.lr=inf"),
        ("finetune.betas=[1.0, 2.0]", "finetune.betas"),
        ("data.image_size=abc", "data.image_size=abc"),
        ("distill={weight: 0, mae_weight: 0}", "must be above 0"),
        ("data.source=''", "data.source="),
        ("a=[1", "cannot be read"),
    ],
)
def test_mistakes_in_overrides(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(overrides=[override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_in_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml"):
        resolve(file=tmp_path / "absent.yaml")
    for content in ("a: [1", "- 1\n", ""):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(UserError, match=r"bad\.yaml"):
            resolve(file=tmp_path / "bad.yaml")


def test_presets_say_what_they_are() -> None:
    assert {"paper-vit", "demo"} <= set(presets())
    assert all(len(about) > 10 for about in presets().values())


def test_more_views_than_memory_could_name_are_refused() -> None:
    assert resolve(overrides=["teacher.views=1000"]).teacher.views == 1000
    with pytest.raises(UserError, match=r"teacher\.views=1000000000 does not fit: input should be less than or equal"):
        resolve(overrides=["teacher.views=1000000000"])
