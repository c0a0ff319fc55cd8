"""`sdfast bench`: the table, the JSON file, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pipeline_fixtures import FEW_STEPS, write_images, write_model

from sdfast.cli.main import run
from sdfast.stages import bench


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_SECONDS", 0.5)
    monkeypatch.setattr(bench, "matmul_peak", lambda device, dtype, anew=False: 1e11)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_model(tmp_path / "model"))


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdfast: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_table_and_the_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    arguments = ["bench", "--model", model, "--json", str(file), "--batch", "4", "data.image_size=32", *FEW_STEPS]
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    for words in (
        "torch",
        "threads",
        "fp32",
        "TFLOP/s",
        "pretrain",
        "+ cls_tail*",
        "+ masked_tail*",
        "finetune: 6 steps of 8",
    ):
        assert words in printed
    assert "…" not in printed
    assert max(map(len, printed.splitlines()[1:])) <= 100  # the first line names the processor
    written = json.loads(file.read_text())
    assert {row["batch"] for row in written["rows"]} == {4}
    assert written["planned"][0]["steps"] == 6
    large = written["rows"][0]["gflop_per_image"]
    assert run(["bench", "--model", model, "--json", str(file), "--batch", "4"]) == 0
    assert json.loads(file.read_text())["rows"][0]["gflop_per_image"] < large / 3


def test_a_run_directory_gives_its_settings(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    data = ["--data", str(write_images(tmp_path / "images"))]
    assert run(["train", "--stage", "pretrain", "--model", model, *data, "--out", str(out), *FEW_STEPS]) == 0
    before = sorted(out.rglob("*"))
    assert run(["bench", "--out", str(out), "--batch", "2"]) == 0
    assert "pretrain: 6 steps of 8 would take" in capsys.readouterr().out
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["pretrain.stepz=3"], "pretrain.steps"),
        (["--batch", "0"], "--batch"),
        (["--out", "nowhere"], "nowhere is not a run directory"),
        (["--json", "nowhere/b.json"], "there is no folder nowhere"),
        (["data.image_size=30"], "not a multiple of the model's patch size"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    more: list[str], words: str, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["bench", "--model", model, *more]) == 2
    assert words in sentence(capsys)


def test_ctrl_c_is_one_sentence(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "_timed", interrupted)
    assert run(["bench", "--model", model]) == 130
    assert sentence(capsys) == "sdfast: interrupted."
