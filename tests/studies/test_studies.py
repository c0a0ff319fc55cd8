"""Studies that are run: what they share, what they leave, and what happens when something goes wrong."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import write_images, write_model
from text_fixtures import write_text_model, write_texts

from sdfast.cli.main import run
from sdfast.config import Config
from sdfast.errors import UserError
from sdfast.locks import locked
from sdfast.modalities.images.checkpoint import load_mae, save_encoder
from sdfast.regular import read_regular
from sdfast.rundir import Result
from sdfast.studies.declared import STUDIES, Arm, configured
from sdfast.studies.plan import Node, Plan, Target, Task
from sdfast.studies.schedule import _Crew, _Worker, train
from sdfast.studies.store import Shared

STEPS = [
    *(f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("steps=3", "batch_size=8")),
    "engine.threads=1",
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": str(write_model(root / "model")), "data": str(write_images(root / "images"))}


def study(inputs: dict[str, str], out: Path, name: str, *more: str) -> int:
    return run(["study", name, "--model", inputs["model"], "--data", inputs["data"], "--out", str(out), *STEPS, *more])


def stages(out: Path) -> Counter[str]:
    """How many folders of each stage there are."""
    return Counter(path.name.split("-")[0] for path in (out / "stages").iterdir())


def weights(out: Path, name: str) -> dict[tuple[str, int], str]:
    """Digest of each classifier of a study."""
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    runs = [(arm["title"], run) for arm in found["data"][0]["arms"] for run in arm["runs"]]
    return {(title, run["seed"]): run["weights"] for title, run in runs}


def planned(inputs: dict[str, str], out: Path, name: str, *more: str, **options: Any) -> tuple[Target, list[Node]]:
    config = Config(model=inputs["model"]).changed([f"data.source={inputs['data']}", *STEPS, *more])
    plan = Plan(STUDIES[name], **{"seeds": [0, 1], **options})
    return plan.target(config, out), list(plan.nodes.values())


@pytest.fixture(scope="module")
def serial(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ablations, then the methods, in one folder; one seed."""
    out = tmp_path_factory.mktemp("serial")
    assert study(inputs, out, "table3", "--seeds", "1") == 0
    assert stages(out) == {"pretrain": 2, "distill": 5, "finetune": 7}
    assert study(inputs, out, "table1", "--seeds", "1") == 0
    return out


def test_studies_in_one_folder_share_what_coincides(
    serial: Path, inputs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    # one teacher, five students and one longer teacher; of the methods, four start from the model as given
    assert stages(serial) == {"pretrain": 2, "distill": 5, "finetune": 7 + 4}
    assert len(list((serial / "packs").iterdir())) == 1
    ablations, methods = weights(serial, "table3"), weights(serial, "table1")
    assert ablations["full model", 0] == methods["self-distillation", 0]
    assert ablations["without L_distill", 0] == methods["further pre-training", 0]
    assert len(set(ablations.values()) | set(methods.values())) >= 10  # MARS may not act in three steps
    before = {path: path.stat().st_mtime_ns for path in (serial / "stages").rglob("result.json")}
    capsys.readouterr()
    assert study(inputs, serial, "table1", "--seeds", "1") == 0
    printed = capsys.readouterr()
    assert "8 of 8 stages are done" in printed.err
    assert printed.out.startswith((serial / "table1.md").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in (serial / "stages").rglob("result.json")}


def test_what_a_study_leaves(serial: Path, inputs: dict[str, str]) -> None:
    assert {f"table1.{ending}" for ending in ("md", "csv", "json", "png", "svg")} <= {
        path.name for path in serial.iterdir()
    }
    rows = list(csv.DictReader((serial / "table1.csv").open()))
    assert [row["arm"] for row in rows] == [arm.title for arm in STUDIES["table1"].arms]
    assert all((Path(row["model"]) / "config.json").is_file() for row in rows)
    record = json.loads((serial / "table1.json").read_text())
    assert record["seeds"] == [0] and record["versions"]["torch"] and record["config"][0]["pretrain"]["steps"] == 3
    assert record["data"][0]["digests"]["model"] == load_mae(inputs["model"]).digest


def test_an_interrupted_parallel_study_goes_on_and_ends_where_a_serial_one_does(
    serial: Path, inputs: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["study", "table3", "--model", inputs["model"], "--data", inputs["data"], "--out", str(out), *STEPS]
    command += ["--seeds", "1", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdfast", *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if re.match(r"1/\d+ ", line):
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "the same command continues from here" in said[-1] and "Traceback" not in "".join(said)
    assert sum(stages(out).values()) < 14
    assert run(command) == 0
    assert weights(out, "table3") == weights(serial, "table3")
    assert stages(out) == {"pretrain": 2, "distill": 5, "finetune": 7}


_DIE = """
import os, signal, sys
from sdfast.cli.main import run
from sdfast.engine.loop import Trainer

step, left = Trainer.step, [int(sys.argv[1])]

def one_step(self):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)

Trainer.step = one_step
run(sys.argv[2:])
"""


def test_a_killed_study_loses_nothing_that_was_saved(serial: Path, inputs: dict[str, str], tmp_path: Path) -> None:
    arguments = [
        "study",
        "table1",
        "--model",
        inputs["model"],
        "--data",
        inputs["data"],
        "--out",
        str(tmp_path / "out"),
    ]
    arguments += [*STEPS, "--seeds", "1", "--methods", "self-distillation", "engine.checkpoint_steps=1"]
    ended = subprocess.run([sys.executable, "-c", _DIE, "5", *arguments], capture_output=True)
    assert ended.returncode == -signal.SIGKILL  # in the second step of distill, whose first is saved
    assert stages(tmp_path / "out") == {"pretrain": 1, "distill": 1}
    assert run(arguments) == 0
    assert "distill: resuming at step 1 of 3" in (tmp_path / "out" / "log.txt").read_text()
    assert weights(tmp_path / "out", "table1") == {
        ("self-distillation", 0): weights(serial, "table1")["self-distillation", 0]
    }


def test_when_a_stage_fails_the_others_go_on(
    inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ("--methods", "fine-tuning,self-distillation", "--seeds", "1")
    assert study(inputs, tmp_path, "compare", *methods, "distill.lr=1e30") == 1
    printed = capsys.readouterr()
    assert "| fine-tuning " in printed.out and "| self-distillation | -" in printed.out
    assert "2 stages failed" in printed.err and "lower distill.lr" in printed.err
    assert "distill, which it needs, failed" in printed.err and "Traceback" not in printed.err
    assert (tmp_path / "compare.png").is_file()


@pytest.mark.parametrize("name", ["data/image.png", None])
def test_a_stage_that_the_disk_fails_is_one_sentence(
    name: str | None,
    inputs: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(task: Task, shared: Shared) -> Result:
        raise OSError(errno.EIO, os.strerror(errno.EIO), name)

    monkeypatch.setattr("sdfast.studies.worker.perform", failing)
    assert study(inputs, tmp_path, "compare", "--methods", "fine-tuning", "--seeds", "1") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"sdfast: 1 stages failed: finetune (fine-tuning, seed 0): {name or 'finetune'}: input/output error."


def test_checkpoints_of_a_done_stage_are_swept(serial: Path, inputs: dict[str, str]) -> None:
    """Also what is left of one that a kill left half removed."""
    folders = [folder / "checkpoints" for folder in (serial / "stages").glob("pretrain-*")]
    for folder in folders:
        (folder / ".old-step-00000001").mkdir(parents=True)
        (folder / ".old-step-00000001" / "state-00000.safetensors").touch()
    assert study(inputs, serial, "table3", "--seeds", "1") == 0
    assert len(folders) == 2 and not any(folder.exists() for folder in folders)


def test_a_worker_that_dies_fails_its_stage_alone(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker ends before it has read its stage, pretrain; what does not need that is trained."""
    _, nodes = planned(inputs, tmp_path, "table5", seeds=[0])
    hire = _Crew._hire

    def first_one_ends(crew: _Crew, number: int) -> _Worker:
        with pytest.MonkeyPatch.context() as patch:
            if not crew.busy:
                patch.setattr(sys, "executable", "/bin/false")
            return hire(crew, number)

    monkeypatch.setattr(_Crew, "_hire", first_one_ends)
    train(nodes, tmp_path, 2, "cpu", Shared())
    failures = {node.task.stage: node.failure or "" for node in nodes if node.task.start != "init" or node.failure}
    assert "its worker ended with exit code 1" in failures["pretrain"]
    assert all(said.endswith("which it needs, failed") for stage, said in failures.items() if stage != "pretrain")
    assert {node.failure for node in nodes if node.task.stage == "finetune" and node.task.start == "init"} == {None}
    assert sum(node.result is not None for node in nodes) == 2


def test_a_worker_that_dies_while_idle_is_replaced(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nodes = planned(inputs, tmp_path, "table5", seeds=[0])
    answer, killed = _Crew._answer, list[int]()

    def answered(crew: _Crew, worker: _Worker) -> None:
        answer(crew, worker)
        if not killed:
            worker.process.kill()
            killed.append(worker.process.wait())

    monkeypatch.setattr(_Crew, "_answer", answered)
    train(nodes, tmp_path, 2, "cpu", Shared())
    assert killed == [-signal.SIGKILL] and all(node.result is not None for node in nodes)


def test_a_worker_is_gone_whatever_it_left_running() -> None:
    """A program that it started, and that outlives it with all that is inherited, does not hold its pipe."""
    dies = (
        "import os, subprocess, sys; from sdfast.studies import worker;"
        "worker.attempt = lambda *_: (subprocess.Popen(['sleep', '60'], close_fds=False), os.kill(os.getpid(), 9));"
        "worker.main(int(sys.argv[1]), 0, os.getppid())"
    )
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-c", dies, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
    try:
        ours.send(None)
        assert process.wait() == -signal.SIGKILL and ours.poll(10)
        with pytest.raises((EOFError, OSError)):
            ours.recv()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_record_says_what_all_arms_began_with(inputs: dict[str, str], tmp_path: Path) -> None:
    """Wherever model and data lie: their content alone."""
    began = planned(inputs, tmp_path / "a", "compare")[0].digests
    assert list(began) == ["model", "train", "test"] and began["model"] == load_mae(inputs["model"]).digest
    copies = {name: str(shutil.copytree(path, tmp_path / name)) for name, path in inputs.items()}
    assert planned(copies, tmp_path / "b", "compare", "data.limit=8")[0].digests == began
    next(Path(copies["data"]).rglob("*.png")).unlink()
    changed = planned(copies, tmp_path / "c", "compare")[0].digests
    assert changed["model"] == began["model"] and {**changed, "model": ""} != {**began, "model": ""}


def test_whole_chains_have_a_seed_each(inputs: dict[str, str], tmp_path: Path) -> None:
    target, nodes = planned(inputs, tmp_path, "table4", protocol="full")
    assert Counter(node.task.stage for node in nodes) == {"pretrain": 2, "distill": 2, "finetune": 4}
    assert [cell.config.seed for cell in target.cells] == [0, 1, 0, 1]
    target, once = planned(inputs, tmp_path, "table4")
    assert Counter(node.task.stage for node in once) == {"pretrain": 1, "distill": 1, "finetune": 4}
    assert {cell.config.seed for cell in target.cells} == {0}
    assert {node.key for node in once if node.task.seed == 0} <= {node.key for node in nodes}


def test_rounds_and_sizes_share_their_stages(inputs: dict[str, str], tmp_path: Path) -> None:
    _, nodes = planned(inputs, tmp_path, "figure4", seeds=[0])
    assert Counter(node.task.stage for node in nodes) == {"pretrain": 1, "distill": 4, "finetune": 5}
    assert [node.task.config.distill.rounds for node in nodes if node.task.stage == "distill"] == [1, 2, 3, 4]
    target, nodes = planned(inputs, tmp_path, "figure3", seeds=[0], points=[8, 12, 99])
    assert Counter(node.task.stage for node in nodes) == {"pretrain": 2, "distill": 2, "finetune": 6}
    assert target.notes == ["Left out, because there are 24 training rows: 99."]


def test_classes_that_cannot_be_learned_are_counted(inputs: dict[str, str], tmp_path: Path) -> None:
    data = {**inputs, "data": str(write_images(tmp_path / "images", classes=6, train=4))}
    target, _ = planned(data, tmp_path / "out", "figure3", seeds=[0], points=[4, 24])
    assert target.notes == ["At n = 4 2 of 6 classes have no training row."]
    target, _ = planned(data, tmp_path / "out", "table4", "data.limit=5", seeds=[0])
    assert target.notes == ["1 of 6 classes have no training row."]


def test_an_arm_that_is_refused_is_not_available_and_the_others_are(inputs: dict[str, str], tmp_path: Path) -> None:
    target, nodes = planned(inputs, tmp_path, "table5", "engine.accumulate=2")
    assert [*target.unavailable] == ["supervised contrastive"]
    assert "engine.accumulate=1" in target.unavailable["supervised contrastive"]
    assert len(target.cells) == 6 and all(node.wanted_by for node in nodes)


def test_a_disk_that_fails_leaves_no_arm_out(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arm is not available where the settings do not allow it, not where its files could not be read just then."""
    later = False

    def read(path: Path, limit: int) -> bytes:
        if later and path.name == "config.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_regular(path, limit)

    def configured_before(config: Config, arm: Arm) -> Config:
        nonlocal later
        later = arm.title == "self-distillation"
        return configured(config, arm)

    monkeypatch.setattr("sdfast.models.weights.read_regular", read)
    monkeypatch.setattr("sdfast.studies.plan.configured", configured_before)
    with pytest.raises(UserError, match=r"config\.json cannot be read: input/output error\.$"):
        planned(inputs, tmp_path, "compare", seeds=[0])


def test_a_new_language_model_head_is_trained_once(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "model")
    from test_text_pipeline import without_head

    inputs = {"model": str(without_head({"roberta": model}, tmp_path / "headless"))}
    inputs["data"] = str(write_texts(tmp_path / "texts"))
    target, nodes = planned(inputs, tmp_path / "out", "table2", "pretrain.head_steps=2")
    assert Counter(node.task.stage for node in nodes)["head"] == 1 and nodes[2].task.stage != "head"
    assert target.metric == "macro_f1" and not target.unavailable
    train([node for node in nodes if node.task.stage != "finetune"], tmp_path, 1, "cpu", Shared())
    _, nodes = planned(inputs, tmp_path / "out", "table2", "pretrain.head_steps=2")
    assert {node.task.stage for node in nodes if node.result} == {"head", "pretrain", "distill"}


def test_a_new_decoder_is_the_same_for_all_arms(tmp_path: Path) -> None:
    """However long they are pre-trained; plain fine-tuning has none."""
    loaded, model = load_mae(str(write_model(tmp_path / "model"))), tmp_path / "encoder"
    save_encoder(loaded.module, model, loaded.processor)
    inputs = {"model": str(model), "data": str(write_images(tmp_path / "images"))}
    _, nodes = planned(inputs, tmp_path / "out", "table3")
    tasks = [node.task for node in nodes]
    assert (
        Counter(task.stage for task in tasks)["head"] == 1 and len({task.config.pretrain.steps for task in tasks}) > 1
    )
    assert len({task.config.pretrain.head_steps for task in tasks}) == 1


def test_cost_takes_its_times_from_runs_of_its_own(
    serial: Path, inputs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = stages(serial)
    assert study(inputs, serial, "cost") == 0
    (place,) = (serial / "cost").iterdir()
    assert stages(serial) == before and stages(place) == dict.fromkeys(("pretrain", "distill", "finetune"), 1)
    rows = json.loads((serial / "cost.json").read_text())["rows"]["images"]
    assert [row["stage"] for row in rows] == ["pretrain", "teacher bank", "distill", "finetune"]
    assert all(row["seconds"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "5:13:22 | 9.70" in printed and "--jobs 1" in printed


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("table9", (), "no study 'table9'; choose table1,"),
        ("table2", (), "study table2 is of texts"),
        ("table1", ("--points", "4"), "no points to choose"),
        ("figure3", ("--points", "a"), "--points a must be whole numbers"),
        ("figure3", ("--points", "900"), "is within the 24 training rows"),
        ("compare", ("--methods", "RecAdan,fine-tuning"), "did you mean 'recadam'"),
        ("compare", ("--methods", "MARS"), "compares with fine-tuning"),
        ("figure4", ("--methods", "MARS"), "no methods to choose"),
        ("cost", ("--jobs", "2"), "use --jobs 1"),
        ("cost", ("--jobs", "2", "--methods", "self-distillation"), "use --jobs 1"),
        ("table1", ("--protocol", "half"), "use paper or full"),
        ("table1", ("pretrain.stepz=1",), "pretrain.steps"),
    ],
)
def test_one_sentence(
    inputs: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    more: tuple[str, ...],
    words: str,
) -> None:
    assert study(inputs, tmp_path, name, *more) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("sdfast: ") and words in said[0]
    assert not (tmp_path / "stages").exists()


def test_unlabelled_data_and_a_folder_in_use(
    inputs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = {**inputs, "data": inputs["data"] + "/train/class0"}
    assert study(flat, tmp_path, "compare") == 2
    assert "has no labels" in capsys.readouterr().err
    with locked(tmp_path):
        assert study(inputs, tmp_path, "compare") == 2
    assert "another sdfast process is working" in capsys.readouterr().err
