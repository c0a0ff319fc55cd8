"""The bank as part of a run: built when it is needed, never trained on when it is wrong, and no other result."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_fixtures import FEW_STEPS, write_images, write_model

import sdfast
from sdfast.cli.main import run
from sdfast.context import Context
from sdfast.durable import read_json
from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import load_mae
from sdfast.stages.graph import distillation
from sdfast.stages.inputs import inputs_of
from sdfast.teacher.bank import open_bank


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_model(root / "model"), "data": write_images(root / "images")}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str, **more: Any) -> sdfast.Pipeline:
    return sdfast.Pipeline(**inputs, out=out, overrides=(*FEW_STEPS, *overrides), **more)


@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_bank_and_live_give_one_result_under_one_fingerprint(
    inputs: dict[str, Path], tmp_path: Path, tokens: str
) -> None:
    wanted = f"distill.tokens={tokens}"
    banked = pipeline(inputs, tmp_path / "bank", wanted).distill()
    live = pipeline(inputs, tmp_path / "live", wanted, "teacher.mode=live").distill()
    assert (tmp_path / "bank" / "teacher" / "manifest.json").is_file() and not (tmp_path / "live" / "teacher").exists()
    assert banked.fingerprint == live.fingerprint
    one, other = (load_mae(str(result.model)).module.state_dict() for result in (banked, live))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=2e-5, rtol=1e-3)
    again = pipeline(inputs, tmp_path / "bank", wanted, "teacher.mode=live").distill()
    assert again.weights == banked.weights  # done is done, whatever the mode


@pytest.mark.parametrize(("precision", "alike"), [("fp32", True), ("tf32", False), ("bf16", False)])
def test_live_and_bank_are_told_apart_where_their_arithmetic_differs(
    inputs: dict[str, Path], tmp_path: Path, precision: str, alike: bool
) -> None:
    settings = [(f"engine.precision={precision}", f"teacher.mode={mode}") for mode in ("bank", "live")]
    contexts = [pipeline(inputs, tmp_path / "run", *each).context for each in settings]
    stage = distillation(contexts[0])
    bank, live = (inputs_of(context, stage, dict.fromkeys(stage.chain(), "")) for context in contexts)
    assert (bank == live) == alike


def test_a_bank_is_kept_for_another_student_and_follows_the_teacher(inputs: dict[str, Path], tmp_path: Path) -> None:
    out, manifest = tmp_path / "run", tmp_path / "run" / "teacher" / "manifest.json"
    pipeline(inputs, out).distill()
    first = manifest.stat().st_mtime_ns
    pipeline(inputs, out, "distill.weight=0.5").distill()
    assert manifest.stat().st_mtime_ns == first
    pipeline(inputs, out, "pretrain.lr=1e-3").distill()
    assert manifest.stat().st_mtime_ns != first
    result = pipeline(inputs, out, "distill.rounds=2").distill()
    stored = open_bank(out / "teacher").identity["teacher"]["weights"]
    assert read_json(result.model.parent / "result.json")["inputs"]["round"] == 2
    from sdfast.models.weights import weights_digest

    assert stored == weights_digest(load_mae(str(out / "distill" / "round-1" / "model")).module.encoder.state_dict())


def test_a_damaged_bank_stops_the_run_before_the_first_step(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    pipeline(inputs, out).distill()
    data = out / "teacher" / "features-00000.bin"
    damaged = bytearray(data.read_bytes())
    damaged[1000] ^= 1
    data.write_bytes(damaged)
    records = (out / "distill" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"damaged: block 0 of features-00000\.bin differs.*--rebuild"):
        pipeline(inputs, out, "distill.weight=0.5").distill()
    assert (out / "distill" / "metrics.jsonl").read_bytes() == records
    pipe = pipeline(inputs, out, "distill.weight=0.5")
    pipe.build_bank(rebuild=True)
    assert pipe.distill().steps == 6


def test_other_settings_need_another_bank(inputs: dict[str, Path], tmp_path: Path) -> None:
    """The sentence gives the command that rebuilds it with all settings that differ."""
    out = tmp_path / "run"
    pipeline(inputs, out, "pretrain.augment=crop", "teacher.views=1").distill()
    changes = ("pretrain.augment=crop", "distill.tokens=patch", "distill.layer=1", "teacher.views=2")
    with pytest.raises(UserError, match="of something else") as caught:
        pipeline(inputs, out, *changes).distill()
    found = re.search(r"`(sdfast cache build .*)`", str(caught.value))
    assert found is not None
    command = shlex.split(found[1])
    assert command == ["sdfast", "cache", "build", "--out", str(out), "--rebuild", *changes[1:]]
    assert run(command[1:]) == 0
    result = pipeline(inputs, out, *changes).distill()
    assert result.steps == 6 and open_bank(out / "teacher").identity["features"]["layer"] == 1
    assert pipeline(inputs, out, "distill.tokens=all", resume="never").distill().steps == 6


def test_the_command_in_the_sentence_is_the_one_that_helps(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a run"
    pipeline(inputs, out).distill()
    arguments = ["train", "--stage", "distill", "--out", str(out), *FEW_STEPS]
    arguments += ["--model", str(inputs["model"]), "--data", str(inputs["data"]), "distill.tokens=patch"]
    assert run(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "features.tokens is cls there and patch here" in said
    assert f"`sdfast cache build --out '{out}' --rebuild distill.tokens=patch`" in said
    assert run(["cache", "build", "--out", str(out), "--rebuild", "distill.tokens=patch"]) == 0
    assert run(arguments) == 0


@pytest.mark.parametrize("mode", ["bank", "live"])
def test_a_teacher_that_learned_nothing_is_refused(inputs: dict[str, Path], tmp_path: Path, mode: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="same weights as the student"):
        pipeline(inputs, out, "pretrain.lr=0", f"teacher.mode={mode}").distill()
    assert not (out / "teacher").exists() and not (out / "distill" / "model").exists()


def test_a_random_transform_is_refused(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, turns = Context.read, itertools.count()

    def flipping(self: Context, split: Any) -> Any:
        read = plain(self, split)
        return lambda rows: read(rows).flip(2) if next(turns) % 2 else read(rows)

    monkeypatch.setattr(Context, "read", flipping)
    with pytest.raises(UserError, match="transform is random"):
        pipeline(inputs, tmp_path / "run").distill()
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_a_rounded_bank_is_another_result(inputs: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    exact = pipeline(inputs, tmp_path / "exact", "distill.tokens=all").distill()
    rounded = pipeline(inputs, tmp_path / "rounded", "distill.tokens=all", f"teacher.dtype={dtype}").distill()
    assert rounded.fingerprint != exact.fingerprint and rounded.weights != exact.weights
    one, other = (load_mae(str(result.model)).module.state_dict() for result in (exact, rounded))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=2e-3, rtol=1e-2)


def test_without_weight_no_bank_is_built(inputs: dict[str, Path], tmp_path: Path) -> None:
    pipeline(inputs, tmp_path / "run", "distill.weight=0").distill()
    assert not (tmp_path / "run" / "teacher").exists()


def test_an_inner_layer_is_another_result_and_the_same_for_bank_and_live(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    plain = pipeline(inputs, tmp_path / "run").distill()
    assert "distill.layer" not in read_json(plain.model.parent / "result.json")["inputs"]
    build = pipeline(inputs, tmp_path / "run", "distill.layer=1")
    build.build_bank(rebuild=True)
    banked = build.distill()
    live = pipeline(inputs, tmp_path / "live", "distill.layer=1", "teacher.mode=live").distill()
    assert banked.fingerprint == live.fingerprint != plain.fingerprint and banked.weights != plain.weights
    one, other = (load_mae(str(result.model)).module.state_dict() for result in (banked, live))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("layer", "words"), [("2", "which has 2 blocks; use 1 to 1, or last"), ("0", "distill.layer=0")]
)
def test_a_layer_that_is_not_there_is_one_sentence_before_any_training(
    inputs: dict[str, Path], tmp_path: Path, layer: str, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        pipeline(inputs, tmp_path / "run", f"distill.layer={layer}").distill()
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "pretrain").exists()


def test_without_the_masked_part_only_what_the_layer_needs_is_trained(inputs: dict[str, Path], tmp_path: Path) -> None:
    result = pipeline(inputs, tmp_path / "run", "distill.layer=1", "distill.mae_weight=0").distill()
    start, end = (load_mae(str(path)).module.state_dict() for path in (inputs["model"], result.model))
    changed = {name for name, value in end.items() if not torch.equal(value, start[name])}
    assert any(name.startswith("encoder.blocks.0.") for name in changed)
    assert not any(name.startswith(("decoder.", "encoder.blocks.1.", "encoder.norm.")) for name in changed)
