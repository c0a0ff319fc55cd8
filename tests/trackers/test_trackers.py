"""Every tracker is told what metrics.jsonl is told, by its real package, without a network; resumed runs go on."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from pipeline_fixtures import FEW_STEPS, write_images, write_model

from sdfast import Pipeline
from sdfast.config import Config
from sdfast.config.sections import TrackerName
from sdfast.engine.loop import Trainer
from sdfast.errors import Interrupted, UserError
from sdfast.trackers.choose import TRACKERS, check_trackers, trackers_of
from sdfast.trackers.tracker import Tracked, Tracker

Run = tuple[Path, list[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that was interrupted in pretrain and resumed to the end, and the trackers whose packages are there."""
    folder = tmp_path_factory.mktemp("trackers")
    names = [name for name, row in TRACKERS.items() if all(map(importlib.util.find_spec, row.needs))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_TRACKING_URI", f"file://{folder / 'mlflow'}")  # a database takes ten seconds to make
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.chdir(folder)

        write_model(folder / "model")
        write_images(folder / "images")
        keys = [*FEW_STEPS, "engine.log_every=2", f"engine.tracker={','.join(names)}", "finetune.start=pretrain"]

        def pipeline() -> Pipeline:
            return Pipeline(folder / "model", folder / "images", folder / "run", overrides=keys)

        step = Trainer.step

        def interrupted(self: Trainer) -> dict[str, torch.Tensor]:
            if self.steps_done == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Trainer, "step", interrupted)
            with pytest.raises(Interrupted):
                pipeline().run()
        whole = pipeline()
        Image.new("RGB", (6, 4), (200, 10, 10)).save(folder / "picture.png")
        with whole.session():
            whole.finetune()
            for each in whole.followers:
                each.pictures("finetune", 6, {"confusion": folder / "picture.png"})
        yield folder, names


def told(folder: Path) -> dict[tuple[str, int], float]:
    """What metrics.jsonl says, by name and step."""
    return {
        (f"{stage}/{name}", line["step"]): value
        for stage in ("pretrain", "finetune")
        for line in map(json.loads, (folder / "run" / stage / "metrics.jsonl").read_text().splitlines())
        for name, value in line.items()
        if name != "step"
    }


def results(folder: Path) -> dict[str, float]:
    return {
        f"{stage}/result/{name}": value
        for stage in ("pretrain", "finetune")
        for name, value in json.loads((folder / "run" / stage / "result.json").read_text())["metrics"].items()
    }


def kept(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "run" / "trackers.json").read_text())[name]


def needs(run: Run, name: str) -> Path:
    if name not in run[1]:
        pytest.skip(f"{name} is not installed")
    return run[0]


def test_the_weights_are_those_of_a_run_that_nobody_follows(run: Run) -> None:
    folder, _ = run
    keys = [*FEW_STEPS, "engine.log_every=2", "finetune.start=pretrain"]
    alone = Pipeline(folder / "model", folder / "images", folder / "alone", overrides=keys).finetune()
    assert json.loads((folder / "run/finetune/result.json").read_text())["weights"] == alone.weights


def test_tensorboard(run: Run) -> None:
    folder = needs(run, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found, final = {}, {}
    for stage in ("pretrain", "finetune"):
        events = EventAccumulator(str(folder / "run" / stage / "tensorboard"))
        events.Reload()
        for name in events.Tags()["scalars"]:
            values = [(event.step, event.value) for event in events.Scalars(name)]
            if name.startswith(f"{stage}/result/"):
                final[name] = values[0][1]
            else:
                assert len(dict(values)) == len(values)  # those after the resumed step are hidden
                found |= {(name, step): value for step, value in values}
    assert found == pytest.approx(told(folder), rel=1e-6)
    assert final == pytest.approx(results(folder), rel=1e-6)
    assert events.Images("finetune/confusion")[0].step == 6
    assert "learning_rate" not in events.Tags()["scalars"] and "config/text_summary" in events.Tags()["tensors"]


def test_wandb(run: Run) -> None:
    folder = needs(run, "wandb")
    found: dict[tuple[str, int], float] = {}
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    files = sorted((folder / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and {path.stem for path in files} == {f"run-{kept(folder, 'wandb')['id']}"}
    for path in files:
        for record in wandb_records(path):
            row = {item.key: json.loads(item.value_json) for item in record.history.item if item.key}
            row |= {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item if item.nested_key}
            for name in row.keys() - {"_step", "_runtime", "_timestamp", "pretrain/step", "finetune/step"}:
                if name != "finetune/confusion":
                    found[name, row[f"{name.partition('/')[0]}/step"]] = row[name]
            summary |= {item.key: json.loads(item.value_json) for item in record.summary.update}
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.run.run_id:
                assert (record.run.display_name, record.run.project) == ("run", "sdfast")
    assert found == pytest.approx(told(folder))
    assert {name: summary[name] for name in results(folder)} == pytest.approx(results(folder))
    assert config["pretrain.batch_size"] == 8 and config["pretrain.mask_ratio"] == 0.75
    assert list((folder / "run" / "wandb").glob("offline-run-*/files/media/images/finetune/confusion*.png"))


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    import struct

    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


def test_mlflow(run: Run) -> None:
    folder = needs(run, "mlflow")
    from mlflow import MlflowClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(f"file://{folder / 'mlflow'}")
    (found,) = client.search_runs([client.get_experiment_by_name("sdfast").experiment_id])
    assert found.info.run_id == kept(folder, "mlflow")["id"]
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["pretrain.batch_size"] == "8"
    history = {
        (name, each.step): each.value
        for name in {name for name, _ in told(folder)}
        for each in client.get_metric_history(found.info.run_id, name)
    }
    assert history == pytest.approx(told(folder))
    assert {name: found.data.metrics[name] for name in results(folder)} == pytest.approx(results(folder))
    assert [each.path for each in client.list_artifacts(found.info.run_id, "finetune")] == ["finetune/confusion-6.png"]


def test_trackio(run: Run) -> None:
    folder = needs(run, "trackio")
    import sqlite3

    (path,) = (folder / "trackio").glob("sdfast*.db")
    with sqlite3.connect(path) as database:
        rows = list(database.execute("select run_name, step, metrics from metrics order by id"))
        configs = [json.loads(text) for (text,) in database.execute("select config from configs")]
    assert {name for name, _, _ in rows} == {kept(folder, "trackio")["id"]}
    assert kept(folder, "trackio")["id"].startswith("run-")
    found: dict[tuple[str, int], Any] = {}
    for _, step, metrics in rows:
        found |= {(name, step): value for name, value in json.loads(metrics).items()}
    assert found.pop(("finetune/confusion", 6))["_type"] == "trackio.image"
    final = {name: found.pop((name, 0)) for name in results(folder)}
    assert found == pytest.approx(told(folder)) and final == pytest.approx(results(folder))
    assert configs[0]["pretrain.batch_size"] == 8


_ALONE = """
import os, sys, time
from pathlib import Path
from sdfast.config import Config
from sdfast.trackers.choose import trackers_of
out = Path(sys.argv[1])
(tracker,) = trackers_of(Config(engine={"tracker": "wandb"}), out)
tracker.begin("pretrain", out / "pretrain", 2, 0)
tracker.record(1, {"loss": 1.0})
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
def living():
    stats = [Path(f"/proc/{each}/stat") for each in children.read_text().split()]
    words = [path.read_text().split() for path in stats if path.exists()]
    return [name for _, name, state, *_ in words if "wandb" in name and state != "Z"]
assert living()
tracker.end()
tracker.finish()
until = time.monotonic() + 60
while living() and time.monotonic() < until:
    time.sleep(0.1)
assert not living(), living()
"""


def test_no_service_is_left(tmp_path: Path) -> None:
    """In a process of its own: where somebody else has loaded wandb, its service may be theirs."""
    pytest.importorskip("wandb")
    if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        pytest.skip("this system does not list the children of a process")
    child = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # that of this process
    child |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run([sys.executable, "-c", _ALONE, str(tmp_path)], env=child, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


class Diary(Tracker):
    """A tracker whose package is a list."""

    name = "diary"

    def __init__(self, tracked: Tracked, fails: str = "") -> None:
        super().__init__(tracked)
        self.said: list[Any] = []
        self.fails = fails

    def _say(self, what: str, *more: Any) -> None:
        if what == self.fails:
            raise ConnectionError("no route to host\nmore")
        self.said.append((what, *more))

    def open(self, root: Path, title: str, kept: str | None) -> str:
        self._say("open", title, kept)
        return kept or f"id{len(self.said)}"

    def log(self, step: int, values: Any) -> None:
        self._say("log", step, *values)

    def sum_up(self, values: Any) -> None:
        self._say("sum up", *values)

    def close(self) -> None:
        self._say("close", self.done)


def tracked(out: Path | None) -> Tracked:
    return Tracked(out, None, "project", {})


def test_a_stage_trained_anew_begins_another_run_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    diary, stage = Diary(tracked(tmp_path / "mine")), tmp_path / "mine" / "pretrain"
    stage.mkdir(parents=True)
    for start in (0, 4, 0):
        diary.begin("pretrain", stage, 9, start)
        diary.record(start + 1, {"loss": 1.0})
        diary.end()
        diary.finish()
    opened = [each for each in diary.said if each[0] == "open"]
    assert opened == [("open", "mine", None), ("open", "mine", "id1"), ("open", "mine", None)]
    assert ("log", 5, "pretrain/loss") in diary.said and ("close", False) in diary.said


def test_stages_of_a_study_are_runs_of_their_own(tmp_path: Path) -> None:
    diary = Diary(tracked(None))
    for name in ("pretrain-1", "distill-2"):
        (tmp_path / name).mkdir()
        diary.begin(name.partition("-")[0], tmp_path / name, 9, 0)
        diary.record(3, {"loss": 1.0})
        (tmp_path / name / "result.json").write_text('{"metrics": {"distance": 2.0}}')
    diary.finish()
    assert [each[:2] for each in diary.said] == [
        ("open", "pretrain-1"),
        ("log", 3),
        ("sum up", "pretrain/result/distance"),
        ("close", True),
        ("open", "distill-2"),
        ("log", 3),
        ("sum up", "distill/result/distance"),
        ("close", True),
    ]


@pytest.mark.parametrize("fails", ["open", "log", "sum up", "close"])
def test_a_tracker_that_fails_is_one_warning(fails: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    diary = Diary(tracked(tmp_path), fails)
    (tmp_path / "pretrain").mkdir()
    diary.begin("pretrain", tmp_path / "pretrain", 9, 0)
    for step in (1, 2):
        diary.record(step, {"loss": 1.0})
    (tmp_path / "pretrain" / "result.json").write_text('{"metrics": {"distance": 2.0}}')
    diary.end()
    diary.finish()
    assert caplog.messages == ["cannot tell diary more, and the run goes on without it: no route to host"]


def test_names_of_trackers() -> None:
    assert set(TRACKERS) == set(get_args(TrackerName))
    for given in ("wandb,tensorboard", "wandb, tensorboard", "[wandb, tensorboard]"):
        assert Config().changed([f"engine.tracker={given}"]).engine.trackers == ("wandb", "tensorboard")
    assert Config().changed(["engine.tracker="]).engine.trackers == ()
    assert Config().changed(["engine.tensorboard=true"]).engine.trackers == ("tensorboard",)
    with pytest.raises(UserError, match=r"no tracker is called 'wandbb'; did you mean wandb\.$"):
        Config().changed(["engine.tracker=mlflow,wandbb"])
    with pytest.raises(UserError, match="there are tensorboard, wandb, mlflow and trackio"):
        Config().changed(["engine.tracker=xyz"])


@pytest.mark.parametrize(("inside", "called"), [(True, "first try"), (False, "pretrain")])
def test_a_run_is_called_by_its_name(
    inside: bool, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    config = Config().changed(["engine.tracker=mlflow", "name=first try"])
    (tracker,) = trackers_of(config, tmp_path if inside else None)
    assert isinstance(tracker, Tracker) and tracker.tracked.title(tmp_path / "pretrain") == called
    assert Tracked(tmp_path, None, "p", {}).title(tmp_path / "pretrain") == tmp_path.name


def test_a_package_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(UserError, match=r'needs the package wandb: pip install "sdfast\[wandb\]"'):
        trackers_of(Config().changed(["engine.tracker=wandb"]), None)
    check_trackers(())
