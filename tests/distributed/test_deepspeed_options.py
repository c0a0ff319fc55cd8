"""What DeepSpeed is told, and what contradicts it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sdfast.config import FinetuneConfig, ZeroConfig, resolve
from sdfast.errors import UserError

pytest.importorskip("deepspeed", reason="deepspeed is not installed")


def options(zero: ZeroConfig | None = None, further: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    from sdfast.engine.deepspeed_options import deepspeed_options

    arguments = {"world": 4, "accumulate": 2, "trained": 800, "module": 1000, "precision": "fp32", **changes}
    return deepspeed_options("finetune", FinetuneConfig(), zero or ZeroConfig(stage=2), further or {}, **arguments)


def test_ours() -> None:
    made = options(ZeroConfig(stage=3, offload="cpu"), trained=10**9, module=10**9)
    assert made["train_micro_batch_size_per_gpu"] == 4 and made["train_batch_size"] == 32
    assert made["gradient_clipping"] == 1.0 and made["gradient_accumulation_steps"] == 2
    optimization = made["zero_optimization"]
    assert optimization["stage"] == 3 and optimization["reduce_bucket_size"] == 50_000_000
    assert optimization["offload_optimizer"] == optimization["offload_param"] == {"device": "cpu"}
    assert "offload_param" not in options(ZeroConfig(stage=2, offload="cpu"))["zero_optimization"]
    assert options(precision="fp16")["torch_autocast"]["dtype"] == "float16"
    assert options(precision="bf16-weights")["bf16"] == {"enabled": True}


def test_the_users_options_are_passed_on_and_may_repeat_ours(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_comm": True}, "gradient_clipping": "auto"}))
    zero = ZeroConfig(stage=2, config=str(file))
    made = options(zero, {"zero_optimization": {"reduce_bucket_size": 7}, "wall_clock_breakdown": True})
    assert made["zero_optimization"]["overlap_comm"] is True and made["zero_optimization"]["reduce_bucket_size"] == 7
    assert made["wall_clock_breakdown"] is True and made["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("further", "words"),
    [
        ({"gradient_clipping": 0.5}, "deepspeed.gradient_clipping=0.5 contradicts finetune.clip=1.0"),
        ({"zero_optimization": {"stage": 3}}, "deepspeed.zero_optimization.stage=3 contradicts --zero=2"),
        ({"optimizer": {"type": "Lamb"}}, "deepspeed.optimizer.type=Lamb contradicts finetune.lr"),
        ({"fp16": {"enabled": True}}, "contradicts engine.precision, which decides it; set engine.precision"),
        ({"train_batch_size": 64}, "deepspeed.train_batch_size=64 contradicts finetune.batch_size=32"),
        ({"gradient_cliping": 1}, "no option 'gradient_cliping'; did you mean 'gradient_clipping'"),
        ({"zero_optimization": {"overlap_com": True}}, "no option 'zero_optimization.overlap_com'; did you mean"),
    ],
)
def test_a_contradiction_names_both(further: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        options(further=further)
    assert words in str(error.value)


def test_a_bad_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for name, words in (("absent.json", "cannot read"), ("torn.json", "is not JSON"), ("list.json", "JSON object")):
        with pytest.raises(UserError, match=words):
            options(ZeroConfig(stage=2, config=str(tmp_path / name)))


def test_what_is_no_file_and_what_nests_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "deep").write_text('{"a":' * 100_000)
    (tmp_path / "levels").write_text('{"a":' * 200 + "1" + "}" * 200)
    (tmp_path / "number").write_text('{"steps_per_print": ' + "1" * 10_000 + "}")
    for name, words in (
        ("pipe", "a named pipe, not a regular file"),
        ("zero", "a device, not a regular file"),
        (".", "directory"),
        ("deep", "nested too deeply"),
        ("levels", "nested too deeply"),
        ("number", "is not whole JSON"),
        ("nul\0", "no file can have this name"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            options(ZeroConfig(stage=2, config=str(tmp_path / name)))
        assert "\n" not in str(caught.value) and str(caught.value).count("zero.config") == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["zero.offload=cpu"], "needs --zero 1, 2 or 3"),
        (["zero.stage=2", "zero.offload=nvme", "zero.nvme_path=/x"], "needs --zero 3"),
        (["zero.stage=3", "zero.offload=nvme"], "zero.nvme_path"),
        (["zero.stage=5"], "zero.stage=5"),
    ],
)
def test_settings_that_do_not_fit(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve(overrides=overrides)


def test_options_are_keys_of_the_configuration() -> None:
    config = resolve(overrides=["deepspeed.zero_optimization.overlap_comm=true", "deepspeed.steps_per_print=5"])
    assert config.deepspeed == {"zero_optimization": {"overlap_comm": True}, "steps_per_print": 5}


def test_an_old_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 0.19.8 ZeRO-3 on gloo computed with parameters that had not arrived: wrong numbers, or NaN, at times."""
    import deepspeed
    import torch

    from sdfast.engine.zero import import_deepspeed

    assert import_deepspeed(torch.device("cpu")) is deepspeed
    monkeypatch.setattr(deepspeed, "__version__", "0.19.7+cu130")
    with pytest.raises(UserError, match=r"DeepSpeed 0\.19\.7\+cu130 is too old.*pip install -U deepspeed"):
        import_deepspeed(torch.device("cpu"))
