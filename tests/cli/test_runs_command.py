"""`sdfast runs` tells of runs and studies what their files say, and leaves them and those that work in them alone."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest
from pipeline_fixtures import FEW_STEPS, write_images, write_model

from sdfast.cli.main import run
from sdfast.durable import sealed
from sdfast.errors import UserError
from sdfast.listing import Listed, list_runs
from sdfast.locks import in_use, locked


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    where = ["--model", str(write_model(folder / "vit")), "--data", str(write_images(folder / "photos"))]
    where += ["--out", str(folder / "run"), "--name", "garden birds"]
    assert run(["train", *where, "--device", "cpu", *FEW_STEPS]) == 0
    return folder / "run"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """Runs in several states, a study, and what is neither."""
    shutil.copytree(finished, tmp_path / "birds" / "done")
    cut = Path(shutil.copytree(finished, tmp_path / "cut"))
    (cut / "finetune" / "result.json").unlink()
    (cut / "finetune" / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "loss"')
    (cut / "distill" / "result.json").write_text('{"stage": "dis')
    begun = tmp_path / "begun"
    (begun / "pretrain").mkdir(parents=True)
    (begun / "config.yaml").write_text("model: [\n")
    (begun / "pretrain" / "metrics.jsonl").touch()
    study = tmp_path / "study"
    for number, accuracy in enumerate((0.25, 0.75)):
        stage = Path(shutil.copytree(finished / "finetune", study / "stages" / f"finetune-{number:012x}"))
        stored = json.loads((stage / "result.json").read_text())
        stored["metrics"]["accuracy"] = accuracy
        del stored["sha256"]
        (stage / "result.json").write_text(json.dumps(sealed(stored)))
    (study / "stages" / "pretrain-00000000000a").mkdir()
    (study / "log.txt").write_text(
        "2026 INFO study compare on photos: 9 fine-tunings; 0 of 5 stages are done (runs/study)\n"
    )
    (tmp_path / "photos" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path)
    return tmp_path


def found_in(folder: Path) -> dict[str, Listed]:
    return {each.name: each for each in list_runs(folder)}


def test_each_run_and_study_is_told_with_its_state(folder: Path, finished: Path) -> None:
    found = found_in(folder)
    assert set(found) == {"birds/done", "cut", "begun", "study"}
    done = found["birds/done"]
    assert done.called == "garden birds"
    assert done.stages == dict.fromkeys(("pretrain", "distill", "finetune"), "done")
    accuracy = json.loads((finished / "finetune" / "result.json").read_text())["metrics"]["accuracy"]
    assert (done.metric, done.value) == ("accuracy", accuracy)
    assert Path(done.model or "").name == "vit" and Path(done.data or "").name == "photos"
    assert done.bytes == sum(path.stat().st_size for path in (folder / "birds/done").rglob("*") if path.is_file())
    assert found["cut"].stages == {"pretrain": "done", "distill": "damaged", "finetune": "interrupted"}
    assert found["cut"].steps == {"finetune": (3, 6)}
    assert found["cut"].problems == ["distill/result.json is damaged or cannot be read"]
    assert found["begun"].stages["pretrain"] == "interrupted"
    assert found["begun"].problems == ["its config.yaml cannot be read"]
    study = found["study"]
    assert (study.study, study.wanted, study.counts) == ("compare", 5, {"done": 2, "interrupted": 1})
    assert (study.metric, study.value) == ("accuracy", 0.75)


def test_a_run_in_which_a_process_works_is_running(folder: Path) -> None:
    with locked(folder / "cut"):
        cut = found_in(folder)["cut"]
    assert cut.running and cut.stages["finetune"] == "running"
    assert not found_in(folder)["cut"].running


def test_the_one_that_was_touched_last_comes_first(folder: Path) -> None:
    (folder / "birds" / "done" / "log.txt").touch()
    assert next(iter(list_runs(folder))).name == "birds/done"
    assert [each.name for each in list_runs(folder / "birds" / "done")] == ["."]


def test_whoever_begins_while_another_looks_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path):
        assert in_use(tmp_path)
    looking = open(tmp_path / ".lock", "rb")  # noqa: SIM115 - closed by what waits
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("sdfast.locks.time.sleep", lambda seconds: looking.close())
    with locked(tmp_path):
        pass


def test_nothing_is_changed_by_looking(folder: Path) -> None:
    def state() -> dict[str, float]:
        return {str(path): path.lstat().st_mtime for path in folder.rglob("*")}

    before = state()
    list_runs(folder)
    assert state() == before


def test_the_command_prints_lines_or_a_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[:4] == ["name", "model", "data", "stages"]
    assert any("study compare: 2 of 5 stages done, 1 interrupted" in line for line in lines)
    assert any("finetune cut 3/6" in line for line in lines)
    assert run(["runs", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {each["name"]: each["kind"] for each in document}["study"] == "study"
    assert run(["runs", str(folder / "photos")]) == 0
    assert "no run and no study" in capsys.readouterr().out
    assert run(["runs", str(folder / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    with pytest.raises(UserError):
        list_runs(folder / "none")
