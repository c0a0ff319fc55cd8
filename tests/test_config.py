"""Layers of the configuration, and what is said about mistakes."""

from __future__ import annotations

import json
import os
import re
import time
import tracemalloc
from importlib import resources
from pathlib import Path

import pytest
import yaml

from sdfast.config import Config, presets, resolve, valid_keys
from sdfast.config.whole import leaves
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
    assert resolve().data.labelled_limit == 100
    assert resolve(options={"data": {"source": "photos"}}).data.labelled_limit is None
    asked = resolve(preset="demo", overrides=["data.source=photos", "data.labelled_limit=7"])
    assert asked.data.labelled_limit == 7


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


TABLE_9 = {  # of the paper; linear decay is the only schedule that there is
    "paper-vit": {
        **{f"{stage}.{key}": value for stage in ("pretrain", "distill")
           for key, value in (("steps", 20_000), ("batch_size", 64), ("lr", 1.5e-4), ("weight_decay", 0.01))},
        "distill.rounds": 1,
        "finetune.steps": 10_000, "finetune.batch_size": 32, "finetune.lr": 1e-4, "finetune.weight_decay": 0.01,
    },
    "paper-roberta": {
        **{f"{stage}.{key}": value for stage in ("pretrain", "distill")
           for key, value in (("epochs", 100), ("batch_size", 128), ("lr", 1e-4), ("weight_decay", 0.01))},
        "distill.rounds": 1,
        "finetune.epochs": 10, "finetune.batch_size": 16, "finetune.lr": 2e-5, "finetune.weight_decay": 0.01,
    },
}  # fmt: skip
BESIDE_TABLE_9 = {
    "paper-vit": {
        "pretrain.betas": [0.9, 0.95], "pretrain.warmup": 0.0, "pretrain.clip": 0.0,
        "pretrain.mask_ratio": 0.75, "pretrain.mask": "fixed", "pretrain.norm_pix": True,
        "distill.betas": [0.9, 0.95], "distill.warmup": 0.0, "distill.clip": 0.0,
        "distill.tokens": "cls", "distill.weight": 1.0, "distill.mae_weight": 1.0,
        "finetune.betas": [0.9, 0.999], "finetune.warmup": 0.05, "finetune.clip": 1.0,
        "finetune.dropout": 0.1, "finetune.flip": 0.5, "finetune.start": "distill",
        "engine.precision": "fp32", "data.exif_rotation": "ignore",
    },
    "paper-roberta": {
        "pretrain.betas": [0.9, 0.98], "pretrain.eps": 1e-6, "pretrain.warmup": 0.0, "pretrain.clip": 1.0,
        "pretrain.mask_ratio": 0.15, "pretrain.mask_only": False, "pretrain.mean": "token",
        "distill.betas": [0.9, 0.98], "distill.eps": 1e-6, "distill.warmup": 0.0, "distill.clip": 1.0,
        "distill.tokens": "cls", "distill.weight": 1.0, "distill.mae_weight": 1.0,
        "finetune.betas": [0.9, 0.999], "finetune.warmup": 0.0, "finetune.clip": 1.0,
        "finetune.dropout": 0.1, "finetune.start": "distill",
        "finetune.recadam.k": 0.5, "finetune.recadam.t0": 250,
        "engine.precision": "fp32", "data.max_length": 512, "data.chunk": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", TABLE_9)
def test_a_preset_of_the_paper_says_whose_each_value_is(preset: str) -> None:
    text = resources.files("sdfast.presets").joinpath(f"{preset}.yaml").read_text("utf-8")
    values = dict(leaves(yaml.safe_load(text)))
    assert values == TABLE_9[preset] | BESIDE_TABLE_9[preset]
    assert {key: resolve(preset=preset).flat()[key] for key in values} == values
    section, of_table_9 = "", set()
    for line in (line for line in text.splitlines() if not line.startswith("#")):
        if found := re.fullmatch(r"(\w+):", line):
            section = found[1]
            continue
        found = re.fullmatch(r"  (\w+): .+  # (Table 9|equation|section|code|image code|DSP|ours)\b.*", line)
        assert found, line
        if found[2] == "Table 9":
            of_table_9.add(f"{section}.{found[1]}")
    assert of_table_9 == TABLE_9[preset].keys()


def test_more_views_than_memory_could_name_are_refused() -> None:
    assert resolve(overrides=["teacher.views=1000"]).teacher.views == 1000
    with pytest.raises(UserError, match=r"teacher\.views=1000000000 does not fit: input should be less than or equal"):
        resolve(overrides=["teacher.views=1000000000"])


# What no person writes.

HOSTILE = {
    "deep": "a: " + "[" * 100_000,
    "deep lists": "a:\n" + "- " * 50_000,
    "deep questions": "a: \n" + "? " * 50_000,
    "deep keys": "deepspeed: " + "{a: " * 60 + "1" + "}" * 60,
    "holds itself": "deepspeed: &a {b: *a}",
    "a list that holds itself": "deepspeed: {b: &a [*a]}",
    "multiplies": "a0: &a0 [1, 1]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "multiplies by merging": "a0: &a0 {k: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
    "a date that is none": "seed: 2020-99-99",
    "a number without end": "seed: " + "1" * 10_000,
    "a fraction without end": "seed: " + "1:" * 300 + "1.5",
    "a number of no digits": "seed: !!int ''",
    "a time that is none": "seed: !!timestamp x",
    "a truth that is none": "seed: !!bool x",
    "not a mapping's key": "{[1]: 2}",
    "no letters": "seed: \x01",
}


def one_sentence(text: str) -> str:
    assert "\n" not in text and text.endswith(".") and len(text) < 600, text
    return text


@pytest.mark.parametrize("name", HOSTILE)
def test_yaml_that_nests_or_multiplies_is_one_sentence_and_no_load(name: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(HOSTILE[name])
    started = time.monotonic()
    tracemalloc.start()
    with pytest.raises(UserError, match=r"bad\.yaml is not valid YAML") as caught:
        resolve(file=file)
    said = one_sentence(str(caught.value))
    assert name.partition(" ")[0] != "deep" or "YAML: it is nested too deeply" in said
    assert tracemalloc.get_traced_memory()[1] < 50e6 and time.monotonic() - started < 10
    tracemalloc.stop()
    key, _, value = HOSTILE[name].partition(": ")
    if "\n" not in value and key.isidentifier():
        with pytest.raises(UserError, match="cannot be read; quote it") as caught:
            resolve(overrides=[f"{key}={value}"])
        one_sentence(str(caught.value))


def test_anchors_and_merge_keys_of_a_person_are_read(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("pretrain: &all {steps: 7, lr: 0.5}\ndistill: {<<: *all, lr: 0.25}\nfinetune: *all\n")
    config = resolve(file=file)
    assert [config.pretrain.steps, config.distill.steps, config.finetune.steps] == [7, 7, 7]
    assert [config.pretrain.lr, config.distill.lr, config.finetune.lr] == [0.5, 0.25, 0.5]


def test_what_is_no_file_is_not_read_as_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"#" * (1 << 20))
    for file, words in (
        (tmp_path, "directory"),
        (tmp_path / "pipe", "a named pipe, not a regular file"),
        (tmp_path / "zero", "a device, not a regular file"),
        (tmp_path / "large", "bytes are more than"),
        (tmp_path / "nul\0", "no file can have this name"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            resolve(file=file)
        one_sentence(str(caught.value))


@pytest.mark.parametrize("key", ["model", "out", "data.source", "zero.nvme_path", "zero.config", "data.label_key"])
def test_a_nul_is_in_no_name(key: str) -> None:
    more = ["zero.stage=3", "zero.offload=nvme"] if key == "zero.nvme_path" else []
    with pytest.raises(UserError, match=rf"{key} has a NUL character in it"):
        resolve(overrides=[*more, f'{key}="a\\0b"'])


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("pretrain.steps", 10**9),
        ("distill.epochs", 10**6),
        ("finetune.batch_size", 2**24),
        ("finetune.supcon.projection", 65_536),
        ("distill.rounds", 1000),
        ("data.image_size", 65_536),
        ("data.max_length", 2**20),
        ("engine.threads", 1024),
        ("engine.accumulate", 2**24),
        ("seed", 2**63 - 1),
        ("data.limit", 2**63 - 1),
        ("data.split_seed", 2**63 - 1),
        ("engine.checkpoint_steps", 2**63 - 1),
    ],
)
def test_a_number_that_no_machine_takes_is_one_sentence(key: str, fits: int) -> None:
    resolve(overrides=[f"{key}={fits}"])
    for more in (fits + 1, 10**18 if fits < 2**62 else 10**30, 10**4000):
        with pytest.raises(UserError, match=f"{key}.* does not fit") as caught:
            resolve(overrides=[f"{key}={more}"])
        one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "value", ["2020-01-01", "{1: 2}", "{a: !!set {b}}", ".inf", "{a: [1, {2: 3}]}", "!!binary aGk=", "0x" + "f" * 9000]
)
def test_options_of_deepspeed_are_words_and_numbers(value: str) -> None:
    with pytest.raises(UserError, match="deepspeed") as caught:
        resolve(overrides=[f"deepspeed.x={value}"])
    one_sentence(str(caught.value))


def test_a_key_of_a_thousand_parts_is_none() -> None:
    with pytest.raises(UserError, match="is not an override") as caught:
        resolve(overrides=["a." * 100_000 + "b=1"])
    one_sentence(str(caught.value))


def test_a_colour_is_no_comment_on_the_command_line() -> None:
    assert resolve(overrides=["data.background=#c8102e"]).data.background == "#c8102e"
    for wrong in ("whitish", "#c8102e80", "rgb(300,0,0)", "7", ""):
        with pytest.raises(UserError, match=r"data\.background"):
            resolve(overrides=[f"data.background={wrong}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "finetune: {prob: {standardise: false}}",
            r"there is no configuration key 'finetune\.prob\.standardise';"
            r" did you mean 'finetune\.probe\.standardise'\?",
        ),
        ("distill: {weigh: 2}", r"there is no configuration key 'distill\.weigh'; did you mean 'distill\.weight'\?"),
        ("pretrain: {steps: -1}", r"pretrain\.steps=-1 does not fit: .*\."),
        ("data: {source: 'a\\0b'}", r"data\.source has a NUL character in it, .*\."),
    ],
)
def test_what_does_not_fit_in_a_file_is_said_with_its_name(tmp_path: Path, content: str, message: str) -> None:
    """Not where an override is what does not fit."""
    path = tmp_path / "my.yaml"
    path.write_text(content.replace("'", '"'))
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {message}$"):
        resolve(file=path)
    path.write_text("seed: 1")
    with pytest.raises(UserError, match=r"^distill\.weight=-1 does not fit"):
        resolve(file=path, overrides=["distill.weight=-1"])
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))} cannot be read: is a directory\.$"):
        resolve(file=tmp_path)
