"""`sdfast theory`: the table, the files, and one sentence for every mistake."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from sdfast.cli.main import run
from sdfast.theory import LinearModel


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdfast: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_table_and_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "theory"
    assert run(["theory", "--out", str(out), "--rounds", "3", "--instances", "20", "--seed", "4"]) == 0
    printed = capsys.readouterr().out
    for words in ("Lemma 1", "does not hold", "repaired", "20 instances with independent targets", "seed 4"):
        assert words in printed
    assert "…" not in printed
    table = list(csv.DictReader((out / "theory.csv").open()))
    assert [row["t"] for row in table] == ["0", "1", "2", "3"]
    assert all(float(row["norm"]) <= float(row["repaired_zeta"]) for row in table)
    assert float(table[0]["norm"]) > float(table[0]["paper_zeta"])
    written = json.loads((out / "theory.json").read_text())
    assert written["settings"]["rounds"] == 3 and len(written["claims"]) == 13 and len(written["survey"]) == 2
    with Image.open(out / "theory.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20)) > 10
    assert "<svg" in (out / "theory.svg").read_text()
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert run(["theory", "--out", str(out), "--rounds", "3", "--instances", "20", "--seed", "4"]) == 0
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--samples", "9"], "do not outnumber 9 samples"),
        (["--samples", "0"], "--samples"),
        (["--rounds", "0"], "--rounds"),
        (["--seed", "-1"], "--seed"),
        (["--ridge", "-1"], "--ridge"),
        (["--ridge", "nan"], "ridge"),
        (["--time", "nan"], "time"),
        (["--time", "1e9"], "nothing that float64 can tell"),
        (["--targets", "far"], "not far"),
        (["--out", "a-file"], "a-file is a file"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    assert run(["theory", "--instances", "0", *more]) == 2
    assert words in sentence(capsys)
    assert not Path("runs").exists()


def test_a_theorem_that_is_not_found_to_hold_is_a_failed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LinearModel.distilled
    monkeypatch.setattr(LinearModel, "distilled", lambda self, t: 1.001 * right(self, t))
    assert run(["theory", "--out", str(tmp_path), "--instances", "0"]) == 1
    assert "Lemma 1" in sentence(capsys)
