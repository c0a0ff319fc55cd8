"""What a run directory holds: whose run it is, what goes with it, what is a person's own, and what is damaged."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pipeline_fixtures
import pytest
import text_fixtures
import torch

import sdfast
from sdfast import locks
from sdfast.cli.main import run
from sdfast.durable import read_json, sha256_file, write_json
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted, RunError, UserError
from sdfast.modalities.images.checkpoint import load_mae, save_encoder
from sdfast.rundir import read_result
from sdfast.studies import schedule
from sdfast.studies.plan import Node

KINDS = ("images", "texts")
STAGES = ("pretrain", "distill", "finetune")
Make = Callable[..., sdfast.Pipeline]


def write_inputs(kind: str, folder: Path, **more: Any) -> dict[str, Path]:
    if kind == "images":
        model = pipeline_fixtures.write_model(folder / "model")
        return {"model": model, "data": pipeline_fixtures.write_images(folder / "data", **more)}
    return {"model": text_fixtures.write_text_model(folder / "model"), "data": other_texts(folder / "data", **more)}


def other_texts(folder: Path, **more: Any) -> Path:
    return text_fixtures.write_texts(folder, **more)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return {kind: write_inputs(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def finished(inputs: dict[str, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole run of each kind."""
    root = tmp_path_factory.mktemp("finished")
    for kind in KINDS:
        pipeline(inputs[kind], root / kind).run()
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def out(kind: str, finished: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished[kind], tmp_path / "run"))


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str, **more: Any) -> sdfast.Pipeline:
    options: dict[str, Any] = {**inputs, **more}
    return sdfast.Pipeline(out=out, overrides=(*pipeline_fixtures.FEW_STEPS, *overrides), **options)


def bytes_in(folder: Path) -> dict[str, bytes]:
    """All but the log, to which every command adds."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("log.txt", ".lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def stop_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int, then: Callable[[], object] | None = None) -> None:
    """Something happens before a step of a stage: a signal to stop, when nothing else is given."""
    one_step = Trainer.step

    def stopping(trainer: Trainer) -> Any:
        if (trainer.stage, trainer.steps_done) == (stage, step):
            (then or (lambda: os.kill(os.getpid(), signal.SIGTERM)))()
        return one_step(trainer)

    monkeypatch.setattr(Trainer, "step", stopping)


# Another run in the same directory.


@pytest.mark.parametrize("kind", KINDS)
def test_other_data_are_refused_until_the_run_is_to_be_replaced(
    kind: str, inputs: dict[str, dict[str, Path]], out: Path, tmp_path: Path
) -> None:
    mine = inputs[kind]
    pipeline(mine, out).evaluate()
    pipeline(mine, out).evaluate(mine["data"])  # leaves eval-pack and a file of predictions
    (out / "distill" / "notes.txt").write_text("mine")
    other = write_inputs(kind, tmp_path, train=8, test=4)["data"]
    before = bytes_in(out)
    with pytest.raises(UserError) as refused:
        pipeline({**mine, "data": other}, out).run()
    for words in (str(mine["data"]), str(other), "choose another --out", "--replace"):
        assert words in str(refused.value)
    assert bytes_in(out) == before

    pipeline({**mine, "data": other}, out, replace=True).pretrain()
    left = set(bytes_in(out))
    assert {name for name in left if name.startswith(("distill/", "finetune/", "teacher/", "eval-pack/"))} == {
        "distill/notes.txt"
    }
    assert not {name for name in left if name.startswith(("predictions", ".replaced"))}
    result = pipeline({**mine, "data": other}, out).run()  # which is now the run that is there
    fresh = pipeline({**mine, "data": other}, tmp_path / "fresh").run()
    assert (result.weights, result.metrics) == (fresh.weights, fresh.metrics)


@pytest.mark.parametrize("kind", KINDS)
def test_the_old_run_stays_until_the_new_one_has_a_result(
    kind: str, inputs: dict[str, dict[str, Path]], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**inputs[kind], "data": write_inputs(kind, tmp_path, train=8, test=4)["data"]}
    models = {name: data for name, data in bytes_in(out).items() if "/model/" in name}
    with monkeypatch.context() as patch:
        stop_at(patch, "pretrain", 3)
        with pytest.raises(Interrupted):
            pipeline(other, out, replace=True).pretrain()
    assert {name: data for name, data in bytes_in(out).items() if "/model/" in name} == models
    pipeline(other, out).pretrain()  # goes on; nobody says --replace again
    assert not (out / "finetune").exists() and not (out / "distill").exists()
    assert "resuming at step 4" in (out / "log.txt").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_moved_is_the_same_and_what_was_changed_in_its_place_runs_again(
    kind: str, inputs: dict[str, dict[str, Path]], out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = {name: Path(shutil.copytree(path, tmp_path / f"moved-{name}")) for name, path in inputs[kind].items()}
    before = read_json(out / "pretrain" / "result.json")
    assert pipeline(moved, out).run().weights == read_json(out / "finetune" / "result.json")["weights"]
    assert read_json(out / "pretrain" / "result.json") == before
    pipeline(moved, out).evaluate()
    if kind == "images":
        shutil.copy(next((moved["data"] / "test" / "class0").iterdir()), moved["data"] / "train" / "class0" / "new.png")
    else:
        with open(moved["data"] / "train.jsonl", "a") as file:
            file.write(json.dumps({"text": "word1 word2 word3 word9", "label": "class0"}) + "\n")
    caplog.clear()
    pipeline(moved, out, "data.duplicates=keep").run()
    assert f"pretrain: runs again, because train {kind} changed" in caplog.text
    assert not (out / "predictions.csv").exists()  # they were of the model before


def test_a_model_of_another_kind_is_another_run(
    inputs: dict[str, dict[str, Path]], finished: dict[str, Path], tmp_path: Path
) -> None:
    for kind, other in (KINDS, KINDS[::-1]):
        out = Path(shutil.copytree(finished[kind], tmp_path / kind))
        with pytest.raises(UserError, match=rf"\({kind}\), and .*\({other}\) is asked for"):
            pipeline(inputs[other], out).pretrain()
        model = write_inputs(kind, tmp_path / f"same-{kind}")["model"]
        if kind == "images":
            pipeline_fixtures.write_model(tmp_path / "other", seed=1)
            with pytest.raises(UserError, match="--replace"):
                pipeline({**inputs[kind], "model": tmp_path / "other"}, out).pretrain()
        before = (out / "pretrain" / "result.json").stat().st_mtime_ns
        places = {"model": model, "data": Path(shutil.copytree(inputs[kind]["data"], tmp_path / f"data-{kind}"))}
        pipeline(places, out).pretrain()  # the same bytes elsewhere
        assert (out / "pretrain" / "result.json").stat().st_mtime_ns == before
        for name, place in places.items():  # no changed input is of another kind
            shutil.rmtree(place)
            shutil.copytree(inputs[other][name], place)
        with pytest.raises(UserError, match=rf"\({kind}\), and .*\({other}\) is asked for"):
            pipeline(places, out).pretrain()


@pytest.mark.parametrize("kind", ["texts"])
def test_work_that_was_interrupted_is_not_lost_to_other_data(
    kind: str, inputs: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, "pretrain", 3)
    with pytest.raises(Interrupted):
        pipeline(inputs[kind], tmp_path / "run").pretrain()
    other = {**inputs[kind], "data": other_texts(tmp_path / "other", train=8)}
    with pytest.raises(UserError, match="choose another --out"):
        pipeline(other, tmp_path / "run").pretrain()
    assert list((tmp_path / "run" / "pretrain" / "checkpoints").glob("step-*"))


# Predictions.


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_on_other_sources_lie_beside_the_runs_own(
    kind: str, inputs: dict[str, dict[str, Path]], out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = {"images": 12, "texts": 12}[kind]
    pipeline(inputs[kind], out).evaluate()
    own = (out / "predictions.csv").read_bytes()
    sources = [write_inputs(kind, tmp_path / name, train=count)["data"] for name, count in (("a", 4), ("b", 6))]
    (out / "predictions-data-3.csv").write_text("a person's own\n")
    caplog.clear()
    for source in (*sources, sources[0]):
        pipeline(inputs[kind], out).evaluate(source)
    assert (out / "predictions.csv").read_bytes() == own and own.count(b"\n") == 1 + rows
    for name, source in zip(("predictions-data.csv", "predictions-data-2.csv"), sources, strict=True):
        assert len(list(csv.DictReader((out / name).read_text().splitlines()))) == rows
        assert f"predictions: {out / name}" in caplog.text
        assert f"evaluated {rows} {kind} (test of {source})" in caplog.text
    third = Path(shutil.copytree(sources[0], tmp_path / "c" / "data"))
    pipeline(inputs[kind], out).evaluate(third)
    assert (out / "predictions-data-4.csv").is_file()
    assert (out / "predictions-data-3.csv").read_text() == "a person's own\n"
    pipeline(inputs[kind], out, "finetune.lr=0.01").run()
    assert {path.name for path in out.glob("predictions*")} == {"predictions-data-3.csv"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_may_only_be_read_is_evaluated(
    kind: str,
    inputs: dict[str, dict[str, Path]],
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = read_json(out / "finetune" / "result.json")["metrics"]["accuracy"]
    original = os.open

    def refused(path: Any, *arguments: Any, **more: Any) -> int:
        if Path(path) == out / ".lock":  # the tests' user may write everywhere
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refused)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(["eval", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert f"accuracy {expected:.4f}" in printed.out
    assert "the predictions are not kept; give --predictions FILE" in printed.err
    assert run(["eval", "--out", str(out), "--data", str(inputs[kind]["data"])]) == 0
    assert f"accuracy {expected:.4f}" in capsys.readouterr().out
    assert run(["eval", "--out", str(out), "--predictions", str(tmp_path / "mine.csv")]) == 0
    assert (tmp_path / "mine.csv").read_text().count("\n") == 13
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert run(["train", "--out", str(out)]) == 2
    assert "permission denied; choose another --out" in capsys.readouterr().err


# Models and data that are gone.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gone", [("model",), ("data",), ("model", "data")], ids="-".join)
def test_a_finished_run_is_shown_without_what_it_was_made_of(
    gone: tuple[str, ...], kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    mine, out = write_inputs(kind, tmp_path), tmp_path / "run"
    first = pipeline(mine, out, "data.limit=16").run()
    for name in gone:
        mine[name].rename(tmp_path / f"elsewhere-{name}")
    before = {name: data for name, data in bytes_in(out).items() if name != "config.yaml"}
    caplog.clear()
    again = pipeline(mine, out, "data.limit=16")
    assert again.run() == first and caplog.text.count("already done") == 3
    assert {name: data for name, data in bytes_in(out).items() if name != "config.yaml"} == before
    with pytest.raises(UserError, match=str(mine[gone[0]])):  # the first thing that is missing
        pipeline(mine, out, "data.limit=16", "pretrain.lr=0.01").run()
    with pytest.raises(UserError, match="elsewhere-other"):
        pipeline({**mine, gone[0]: tmp_path / "elsewhere-other"}, out).run()
    assert {name: data for name, data in bytes_in(out).items() if name != "config.yaml"} == before


def test_a_new_head_is_known_without_its_model(tmp_path: Path) -> None:
    from transformers import RobertaModel

    mine, out = write_inputs("texts", tmp_path), tmp_path / "run"
    RobertaModel.from_pretrained(mine["model"], add_pooling_layer=False).save_pretrained(mine["model"])
    first = pipeline(mine, out).distill()
    assert read_result(out / "head") is not None
    shutil.rmtree(mine["model"])
    assert pipeline(mine, out).distill() == first


def test_a_new_decoder_is_known_without_its_model(tmp_path: Path) -> None:
    mine, out = write_inputs("images", tmp_path), tmp_path / "run"
    loaded = load_mae(str(mine["model"]))
    shutil.rmtree(mine["model"])
    save_encoder(loaded.module, mine["model"], loaded.processor)
    first = pipeline(mine, out).distill()
    assert read_result(out / "head") is not None
    shutil.rmtree(mine["model"])
    assert pipeline(mine, out).distill() == first


# Damage.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["a bit", "cut", "gone", "result", "weights of another"])
def test_no_reader_takes_a_damaged_model(
    how: str, kind: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    companion = {"images": "preprocessor_config.json", "texts": "tokenizer.json"}[kind]
    for stage, name in (("finetune", "model.safetensors"), ("finetune", companion), ("pretrain", "config.json")):
        path = out / stage / "model" / name
        whole = path.read_bytes()
        result = (out / stage / "result.json").read_bytes()
        if how == "a bit":
            path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        elif how == "cut":
            path.write_bytes(whole[:-1])
        elif how == "gone":
            path.unlink()
        elif how == "result":
            (out / stage / "result.json").write_text('{"steps": "six"}')
        else:
            path.write_bytes((out / "distill" / "model" / "config.json").read_bytes() + b" ")
        assert run(["export", "--out", str(out), "--stage", stage, "--to", str(tmp_path / "to")]) == 2
        said = capsys.readouterr().err
        assert "run `sdfast train` with this --out again" in said and "result.json" in said
        assert not (tmp_path / "to").exists()
        command = ["eval"] if stage == "finetune" else ["cache", "verify"]
        assert run([*command, "--out", str(out)]) == 2
        assert "result.json" in capsys.readouterr().err
        path.write_bytes(whole)
        (out / stage / "result.json").write_bytes(result)
    assert run(["export", "--out", str(out), "--to", str(tmp_path / "to")]) == 0
    assert run(["eval", "--out", str(out)]) == 0


def test_a_stage_does_not_start_from_a_model_that_was_damaged_meanwhile(
    inputs: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    """In one object, which knows that the stage was finished."""
    pipe = pipeline(inputs["images"], tmp_path / "run")
    first = pipe.pretrain()
    path = first.model / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + bytes(4))
    pipe.distill()
    assert path.read_bytes() == whole
    with pytest.raises(UserError, match="did you mean 'pretrain'"):
        pipe.run("pretrian")  # type: ignore[arg-type]


# Directories that go, and what is a person's.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["renamed", "removed", "taken"])
def test_a_run_directory_that_goes_while_training_ends_the_run(
    what: str, kind: str, inputs: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "run", tmp_path / "away"

    def go() -> None:
        shutil.rmtree(out) if what == "removed" else out.rename(other)
        if what == "taken":
            out.mkdir()
            (out / ".lock").touch()
            (out / "theirs").touch()

    for every in (2, 100):  # noticed at a checkpoint, and where there is none at the end
        with monkeypatch.context() as patch:
            stop_at(patch, "pretrain", 3, go)
            with pytest.raises(RunError, match=f"{out} was removed, renamed or replaced"):
                pipeline(inputs[kind], out, f"engine.checkpoint_steps={every}").pretrain()
        assert {path.name for path in out.glob("*")} == ({".lock", "theirs"} if what == "taken" else set())
        shutil.rmtree(out, ignore_errors=True)
        if what != "removed":
            result = pipeline(inputs[kind], other).pretrain()  # what was saved goes on where it is
            assert ("resuming at step 2" in (other / "log.txt").read_text()) == (every == 2)
            assert result.steps == 6
            shutil.rmtree(other)


def test_only_the_directory_itself_counts(tmp_path: Path) -> None:
    with locks.locked(tmp_path / "run"):
        locks.check_held(tmp_path / "run" / "a" / "b")
        locks.check_held(tmp_path / "runs")
        (tmp_path / "run" / ".lock").unlink()  # by a person who took it for a relic
        locks.check_held(tmp_path / "run" / "a")
        (tmp_path / "run" / ".lock").touch()  # by another process
        with pytest.raises(RunError):
            locks.check_held(tmp_path / "run" / "a")
    locks.check_held(tmp_path / "run" / "a")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "other").mkdir()
    (tmp_path / "pipe").rename(tmp_path / "other" / ".lock")
    with locks.locked(tmp_path / "other"):  # does not wait for its reader
        pass


def test_a_study_whose_directory_goes_starts_no_other_stage(tmp_path: Path) -> None:
    """Neither in this process nor in a worker, which holds no more than the folder of its stage."""
    out = tmp_path / "study"
    waiting = Node("one", cast(Any, None), [])
    crew = schedule._Crew([waiting], out, 2, "cpu", progress=cast(Any, None))
    with locks.locked(out):
        out.rename(tmp_path / "away")
        with pytest.raises(RunError, match="removed, renamed or replaced"), locks.locked(out / "stages" / "two"):
            pass
        with pytest.raises(RunError, match="removed, renamed or replaced"):
            crew.work()
    assert not out.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_persons_files_among_a_models_stop_what_would_replace_it(
    kind: str, inputs: dict[str, dict[str, Path]], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = out / "finetune" / "model" / "notes" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    pipeline(inputs[kind], out).run()  # nothing is replaced
    steps: list[str] = []
    original = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda trainer: (steps.append(trainer.stage), original(trainer))[1])
    with pytest.raises(UserError, match=r"finetune/model holds 'notes/mine.txt'.*move it away"):
        pipeline(inputs[kind], out, "pretrain.lr=0.01").run()
    assert steps == []  # before anything is trained
    pipeline(inputs[kind], out, "pretrain.lr=0.01").distill()
    assert mine.read_text() == "mine"
    (out / "pretrain" / "checkpoints").mkdir()
    (out / "pretrain" / "checkpoints" / "mine.txt").write_text("mine")
    pipeline(inputs[kind], out).pretrain()
    assert [path.name for path in (out / "pretrain" / "checkpoints").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_between_model_and_result_is_no_persons_doing(
    kind: str, inputs: dict[str, dict[str, Path]], out: Path
) -> None:
    whole = sha256_file(out / "finetune" / "model" / "model.safetensors")
    (out / "finetune" / "result.json").unlink()
    pipeline(inputs[kind], out).run()
    assert sha256_file(out / "finetune" / "model" / "model.safetensors") == whole


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_that_a_kill_left_of_a_finished_stage_are_swept(
    kind: str, inputs: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("sdfast.store.checkpoint.clear", lambda directory: None)
        first = pipeline(inputs[kind], out, "engine.checkpoint_steps=2").pretrain()
    assert len(list((out / "pretrain" / "checkpoints").glob("step-*"))) == 2
    assert pipeline(inputs[kind], out).pretrain() == first
    assert not (out / "pretrain" / "checkpoints").exists()
    with monkeypatch.context() as patch:  # those of other settings can be gone on with
        stop_at(patch, "pretrain", 3)
        with pytest.raises(Interrupted):
            pipeline(inputs[kind], out, "pretrain.lr=0.01").pretrain()
    assert pipeline(inputs[kind], out).pretrain() == first
    assert [path.name for path in (out / "pretrain" / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("kept", [("state-00000.safetensors",), ()])
def test_a_checkpoint_half_removed_is_swept_by_the_next_command(
    kept: tuple[str, ...], inputs: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill within the removal leaves it, or a disk that does not let go of a file; a person's files stay."""
    out = tmp_path / "run"
    folder = out / "pretrain" / "checkpoints"

    def half(path: Path, ignore_errors: bool = False) -> None:
        if not path.name.startswith((".old-step-", "step-")) or not path.is_dir():
            remove(path, ignore_errors)
        else:
            for file in path.iterdir():
                if file.name not in kept:
                    file.unlink()

    remove = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr("sdfast.durable.shutil.rmtree", half)
        first = pipeline(inputs["images"], out, "engine.checkpoint_steps=2").pretrain()
    assert len(list(folder.iterdir())) == 2
    (folder / "step-notes").write_text("mine")
    (folder / "step-7").write_text("mine")
    assert pipeline(inputs["images"], out).pretrain() == first
    assert sorted(path.name for path in folder.iterdir()) == ["step-7", "step-notes"]


# What decides the last bits.


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_on_other_threads_says_so(
    kind: str,
    inputs: dict[str, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    threads = torch.get_num_threads()
    try:
        for name, now, words in (
            ("same", "engine.threads=1", None),
            ("threads", "engine.threads=2", "pretrain: .*number of threads: 1 before, now 2"),
            ("core", "engine.threads=1", "pretrain: .*kind of processor: ANOTHER before, now [A-Z0-9]+"),
        ):
            out = tmp_path / name
            with monkeypatch.context() as patch:
                stop_at(patch, "pretrain", 3)
                if name == "core":
                    patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ANOTHER")
                with pytest.raises(Interrupted):
                    pipeline(inputs[kind], out, "engine.threads=1").pretrain()
            manifest = read_json(out / "pretrain" / "checkpoints" / "step-00000004" / "checkpoint.json")
            assert manifest["values"]["arithmetic"]["threads"] == 1
            caplog.clear()
            pipeline(inputs[kind], out, now).pretrain()
            said = [record.getMessage() for record in caplog.records if "last bits may differ" in record.getMessage()]
            assert len(said) == (words is not None)
            if words is not None:
                assert re.search(words, said[0])
    finally:
        torch.set_num_threads(threads)


def test_results_of_earlier_versions_are_still_results(inputs: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    """They have what this one writes but for keys that came later; unknown ones are passed over."""
    out = tmp_path / "run"
    first = pipeline(inputs["images"], out).pretrain()
    stored = read_json(out / "pretrain" / "result.json")
    del stored["metrics"], stored["sha256"]
    write_json(out / "pretrain" / "result.json", {**stored, "of a later version": [1]})
    again = pipeline(inputs["images"], out).pretrain()
    assert (again.weights, again.seconds, again.metrics) == (first.weights, first.seconds, {})
