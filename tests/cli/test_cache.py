"""`sdfast cache`: exit codes, what is printed, and one sentence for every mistake."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from pipeline_fixtures import FEW_STEPS, write_images, write_model

from sdfast.cli.main import run
from sdfast.durable import sha256_json, write_json
from sdfast.store.rows import checksum
from sdfast.teacher.bank import open_bank, read_manifest


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    arguments = ["--model", str(write_model(root / "model")), "--data", str(write_images(root / "images"))]
    assert run(["cache", "build", "--out", str(root / "run"), *arguments, *FEW_STEPS]) == 0
    return root / "run"


@pytest.fixture
def out(run_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_directory, tmp_path / "run"))


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdfast: ")]
    assert len(lines) == 1
    return lines[0]


def test_build_verify_info(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "info", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    bank = open_bank(out / "teacher")
    for words in (bank.fingerprint, f"{bank.bytes:,} bytes", "[32] float32", "ago", "images/s"):
        assert words in printed
    assert run(["cache", "verify", "--out", str(out), "--sample", "10"]) == 0
    assert "run again on 10 rows: largest error" in capsys.readouterr().out
    before = (out / "teacher" / "manifest.json").stat().st_mtime_ns
    assert run(["cache", "build", "--out", str(out)]) == 0  # with the run's own settings
    assert (out / "teacher" / "manifest.json").stat().st_mtime_ns == before
    assert run(["cache", "build", "--out", str(out), "--rebuild"]) == 0
    assert (out / "teacher" / "manifest.json").stat().st_mtime_ns != before
    (out / "teacher" / "built.json").write_text("[")
    assert run(["cache", "info", "--out", str(out)]) == 0
    assert "rebuild" not in capsys.readouterr().out.splitlines()[-1]


def test_no_bank_and_no_run(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("info", "verify"):
        assert run(["cache", command, "--out", str(tmp_path / "nothing")]) == 2
        assert "nothing" in sentence(capsys)
    shutil.rmtree(out / "teacher")
    assert run(["cache", "verify", "--out", str(out)]) == 2
    assert f"holds no teacher bank; run `sdfast cache build --out {out}`" in sentence(capsys)
    assert run(["cache", "verify", "--out", str(out), "--sample", "-1"]) == 2


def test_damage_and_difference(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "build", "--out", str(out), "distill.tokens=all"]) == 2
    assert "features.tokens is cls there and all here" in sentence(capsys)
    assert run(["cache", "build", "--out", str(out), "distill.tokens=all", "--rebuild"]) == 0
    capsys.readouterr()
    with open(out / "teacher" / "features-00000.bin", "r+b") as file:
        file.truncate(100)
    for command in ("info", "verify", "build"):
        assert run(["cache", command, "--out", str(out)]) == 2
        assert "features-00000.bin is not" in sentence(capsys)


def test_a_layer_that_is_not_there(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where training would not look at it."""
    words = ["distill.layer=99", "distill.weight=0", "--rebuild"]
    assert run(["cache", "build", "--out", str(out), *words]) == 2
    assert "distill.layer=99 is no inner layer" in sentence(capsys)


def test_a_well_made_forgery_shows_when_the_teacher_runs_again(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All checksums right, one feature wrong by a tenth."""
    folder = out / "teacher"
    values = np.fromfile(folder / "features-00000.bin", "<f4")
    values[5] += 0.1
    values.tofile(folder / "features-00000.bin")
    (folder / "checksums.bin").write_bytes(checksum(values.tobytes()))
    manifest = read_manifest(folder).to_json()["manifest"]
    manifest["checksums_sha256"] = hashlib.sha256((folder / "checksums.bin").read_bytes()).hexdigest()
    write_json(folder / "manifest.json", {"sha256": sha256_json(manifest), "manifest": manifest})
    assert run(["cache", "verify", "--out", str(out), "--sample", "0"]) == 0
    capsys.readouterr()
    assert run(["cache", "verify", "--out", str(out), "--sample", "24"]) == 1
    assert "largest error 1.00e-01" in sentence(capsys)


def test_a_teacher_that_was_trained_again_is_another(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "train",
                "--stage",
                "pretrain",
                "--out",
                str(out),
                "--config",
                str(out / "config.yaml"),
                "pretrain.lr=0.001",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert run(["cache", "verify", "--out", str(out)]) == 2
    assert "teacher.weights is" in sentence(capsys)
    assert run(["cache", "build", "--out", str(out)]) == 2
    assert "teacher.weights is" in sentence(capsys)
