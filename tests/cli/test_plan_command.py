"""`sdfast plan`: its table within eighty columns, and one sentence for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pipeline_fixtures import write_model
from text_fixtures import write_text_model

from sdfast.cli import plan
from sdfast.cli.main import run

GPU = ["--memory", "80", "--tflops", "989", "--link", "50"]


def test_the_stages_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--model", "vit-h", "--devices", "1024", "--batch", "65536", *GPU]) == 0
    printed = capsys.readouterr().out
    for words in ("vit-h, distill", "65536 on 1024 devices of 80 GB", "ZeRO 3", "fits 80 GB", "396 TFLOP/s of 989"):
        assert words in printed
    assert max(map(len, printed.splitlines())) <= 80
    rows = {line[:24].strip(): line[24:].split() for line in printed.splitlines()}
    assert [float(number) for number in rows["parameters"]][:3] == [2.63] * 3
    assert all(len(rows[name]) == 4 for name in ("bank", "step, ms", "examples/s", "largest batch a device"))


def test_one_stage_offloaded_and_checkpointed(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--zero", "3", "--offload", "cpu", "--checkpointing", "--markdown"]
    assert run(["plan", "--model", "roberta-large", "--stage", "pretrain", *GPU, *more]) == 0
    printed = capsys.readouterr().out
    assert "is not counted" in printed and "checkpointed" in printed
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert table[0] == "|  | ZeRO 3 |" and {line.count("|") for line in table} == {3}
    assert any(line.startswith("| host, GB a device") for line in table)


def test_this_machine_and_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_measured", lambda precision, device: 1e12)
    model = str(write_model(tmp_path / "model"))
    assert run(["plan", "--model", model, "device=cpu", "engine.activation_checkpointing=true"]) == 0
    printed = capsys.readouterr().out
    assert (
        "checkpointed" in printed
        and "fp32" in printed
        and "0.4 TFLOP/s of 1" in printed
        and "link not given" in printed
    )


def test_a_text_model_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_text_model(tmp_path / "model"))
    assert run(["plan", "--model", model, "--stage", "finetune", "finetune.regularizer=r3f", *GPU]) == 0
    twice = float(re.findall(r"([\d.e-]+) GFLOP an example", capsys.readouterr().out)[0])
    assert run(["plan", "--model", model, "--stage", "finetune", *GPU]) == 0
    once = float(re.findall(r"([\d.e-]+) GFLOP an example", capsys.readouterr().out)[0])
    assert twice == pytest.approx(2 * once, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--zero", "4"], "--zero"),
        (["--devices", "0"], "--devices"),
        (["--devices", "100"], "a batch of 64 cannot be shared by 100 devices"),
        (["--offload", "tape"], "--offload tape is not known; use none, cpu or nvme"),
        (["--offload", "nvme", "--zero", "1"], "needs --zero 3"),
        (["--offload", "cpu", "--zero", "0"], "needs --zero 1, 2 or 3"),
        (["--stage", "all"], "--stage all is not known"),
        (["--precision", "fp8"], "--precision fp8 is not known"),
        (["--memory", "-1"], "--memory -1 must be above 0"),
        (["--link", "0"], "--link 0 must be above 0"),
        (["--tflops", "nan"], "--tflops nan must be above 0"),
        (["--tflops", "1e308"], "--tflops 1e+308 must be above 0 and at most 1e+12"),
        (["--memory", "1e300"], "--memory 1e+300 must be above 0 and at most 1e+12"),
        (["--share", "2"], "must be at most 1"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["pretrain.mask_rati=1"], "pretrain.mask_ratio"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["plan", "--model", "vit-b", "--memory", "80", "--tflops", "989"]
    assert run([*given, *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdfast: ")]
    assert len(lines) == 1 and words in lines[0]
