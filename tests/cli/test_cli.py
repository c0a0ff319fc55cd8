"""Exit codes and sentences of the command line."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import yaml
from pipeline_fixtures import FEW_STEPS, write_images, write_model

from sdfast.cli.main import _fail, run
from sdfast.durable import sha256_file
from sdfast.modalities.images.checkpoint import load_mae


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("inputs")
    return ["--model", str(write_model(root / "model")), "--data", str(write_images(root / "images"))]


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `sdfast:` begins."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdfast: ")]
    assert len(lines) == 1
    return lines[0]


def test_train_eval_and_a_second_train(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", *arguments, *FEW_STEPS]) == 0
    out = tmp_path / "runs" / "model-images"  # the default, named after model and data
    printed = capsys.readouterr()
    assert "accuracy" in printed.out and "runs/model-images" in printed.err
    assert (out / "finetune" / "model" / "config.json").is_file()
    assert run(["eval", "--out", str(out)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert run(["train", *arguments, *FEW_STEPS]) == 0
    assert "already done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["pretrain.stepz=3"], "pretrain.steps"),
        (["--stage", "fine"], "--stage fine"),
        (["--stage", "pretrian"], "did you mean 'pretrain'"),
        (["--zero", "4"], "--zero 4"),
        (["--zero", "many"], "'--zero'"),
        (["--nonsense"], "--nonsense"),
        (["--preset", "papers"], "papers"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--resume", "later"], "--resume later"),
        (["engine.attention=flash"], "engine.attention=flash"),
        (["engine.fp32_products=tf32"], "engine.fp32_products=tf32"),
        (["engine.attention=xformers", "--device", "cpu"], "xformers cannot be used here: its kernels are for CUDA"),
        (
            ["engine.attention=native", "engine.precision=fp16", "--device", "cpu"],
            "float32 and bfloat16 on the CPU, not for float16",
        ),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    arguments: list[str], more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *arguments, "--out", str(tmp_path / "run"), *more]) == 2
    assert words in sentence(capsys)


@pytest.mark.parametrize("rank", ["x", "2"])
def test_a_launcher_that_contradicts_itself_is_one_sentence(
    rank: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert "RANK" in sentence(capsys)
    assert run(["config", "presets"]) == 0


def test_bad_inputs_are_one_sentence_and_exit_code_2(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, out = arguments[:2], arguments[2:], ["--out", str(tmp_path / "run")]
    (tmp_path / "empty").mkdir()
    for case, words in (
        ([*model, "--data", str(tmp_path / "absent")], "absent"),
        ([*model, "--data", str(tmp_path / "empty")], "empty"),
        ([*data, "--model", str(tmp_path / "nowhere")], "nowhere"),
        ([*data, "--model", str(tmp_path / "empty")], "empty"),
    ):
        assert run(["train", *case, *out]) == 2
        assert words in sentence(capsys)
    assert run(["eval", "--out", str(tmp_path / "nothing")]) == 2
    assert "nothing" in sentence(capsys)


def test_an_out_that_cannot_be_used(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        assert run(["train", *arguments, "--out", str(out)]) == 2
        assert str(out) in sentence(capsys)
    assert run(["train", *arguments, "--out", ""]) == 2
    assert "out" in sentence(capsys)


def test_the_default_out_is_not_shared_by_sources_of_the_same_name(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(arguments[3], tmp_path / "b" / "images")
    train = ["train", "--stage", "pretrain", *FEW_STEPS, *arguments[:2]]
    assert run([*train, *arguments[2:]]) == 0
    capsys.readouterr()
    assert run([*train, "--data", str(tmp_path / "b" / "images")]) == 2
    assert "--out" in sentence(capsys)


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) in (0, 2)
    printed = capsys.readouterr()
    assert "train" in printed.out + printed.err and "sdfast: " not in printed.err


def test_config_and_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "seed=5"]) == 0
    assert "seed: 5" in capsys.readouterr().out
    assert run(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]
    assert run(["config", "presets"]) == 0
    assert "paper-vit" in capsys.readouterr().out
    assert run(["env"]) == 0
    assert "torch" in capsys.readouterr().out
    assert run(["--version"]) == 0


def test_a_mistyped_word_is_answered_with_the_nearest(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (
        (["trian"], "train"),
        (["cache", "verfy"], "verify"),
        (["eval", "--dta", "x"], "--data"),
        (["config", "shw"], "show"),
        (["study", "comprae"], "compare"),
        (["train", "--preset", "text-dmo"], "text-demo"),
    ):
        assert run(command) == 2
        assert words in sentence(capsys).split("(see")[0]


def test_config_show_says_what_is_of_the_bundled_data_alone(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    asked = ["data.limit=7", "data.labelled_limit=7"]
    for name, more in (("bundled", []), ("own", ["--data", "photos"]), ("asked", asked)):
        for preset in ("demo", "text-demo"):
            assert run(["config", "show", "--preset", preset, *more]) == 0
            shown[name] = capsys.readouterr().out
            of_bundled, value = {"demo": ("labelled_limit", 100), "text-demo": ("limit", 500)}[preset]
            limit = yaml.safe_load(shown[name])["data"][of_bundled]
            assert limit == {"bundled": value, "own": None, "asked": 7}[name]
            assert (f"data.{of_bundled}={value} is of the bundled data alone" in shown[name]) == (name == "bundled")


def test_study_compare(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    assert run(["study", "compare", *arguments, "--out", str(out), "--seeds", "2", *FEW_STEPS]) == 0
    printed = capsys.readouterr().out
    for method in ("fine-tuning", "further pre-training", "self-distillation"):
        assert method in printed
    assert (out / "compare.csv").read_text().count("\n") == 1 + 9 * 2  # nine methods
    arms = json.loads((out / "compare.json").read_text())["data"][0]["arms"]
    assert len(arms) == 9 and {len(arm["runs"]) for arm in arms} == {2}
    assert all((Path(run["model"]) / "config.json").is_file() for arm in arms for run in arm["runs"])
    assert run(["study", "table9", *arguments, "--out", str(out)]) == 2


def command(arguments: list[str], out: Path, *more: str) -> list[str]:
    steps = (
        "pretrain.steps=30",
        "distill.steps=30",
        "finetune.steps=30",
        "pretrain.batch_size=8",
        "distill.batch_size=8",
    )
    every = ("engine.checkpoint_steps=4", "engine.log_every=1", "finetune.batch_size=8")
    return [sys.executable, "-m", "sdfast", "train", *arguments, "--out", str(out), *steps, *every, *more]


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }


def wait_for_line(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)


# The command, with a thread that kills the process a moment after a given step of a given stage has begun.
KILLED_AT = """
import os, signal, sys, threading, time
from sdfast.engine.loop import Trainer
stage, step, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
one_step = Trainer.step
def kill():
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)
def counted(self):
    if self.stage == stage and self.steps_done == step:
        threading.Thread(target=kill, daemon=True).start()
    return one_step(self)
Trainer.step = counted
from sdfast.cli.main import _fail, run
run(sys.argv[4:])
time.sleep(10 * delay)
"""


def test_a_killed_run_ends_with_the_same_bits(arguments: list[str], tmp_path: Path) -> None:
    """SIGKILL in each stage, at a random moment, then the same command again."""
    seed = time.time_ns()
    random = Random(seed)
    print("seed", seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(arguments, whole), check=True, env=environment(), capture_output=True)
    for stage in ("pretrain", "distill", "finetune"):
        moment = [stage, str(random.randrange(5, 28)), str(random.uniform(0, 0.05))]
        code = [sys.executable, "-c", KILLED_AT, *moment, *command(arguments, killed)[3:]]
        assert subprocess.run(code, env=environment(), capture_output=True).returncode == -signal.SIGKILL
    last = subprocess.run(command(arguments, killed), check=True, env=environment(), capture_output=True, text=True)
    assert "resuming at step" in last.stderr or "already done" in last.stderr
    for stage in ("pretrain", "distill", "finetune"):
        name = Path(stage) / "model" / "model.safetensors"
        assert sha256_file(whole / name) == sha256_file(killed / name), stage


def test_sigterm_saves_and_exits_with_its_code(arguments: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(command(arguments, tmp_path / "run", "pretrain.steps=100000"), env=environment(),
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_for_line(tmp_path / "run" / "pretrain" / "metrics.jsonl", 4, process)  # type: ignore[arg-type]
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in err and "Traceback" not in err
    assert list((tmp_path / "run" / "pretrain" / "checkpoints").glob("step-*"))


def test_the_bundled_model_and_data_are_used_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--stage", "distill", "pretrain.steps=2", "distill.steps=2"]) == 0
    said = capsys.readouterr().err
    assert "bundled small ViT-MAE" in said and "bundled Fashion-MNIST" in said and "2000 train, 2000 test" in said
    model = load_mae(str(tmp_path / "runs" / "bundled" / "distill" / "model"))
    assert model.shape.image_size == (28, 28)


def test_the_bundled_texts_have_a_preset_and_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["pretrain.steps=2", "distill.steps=2", "finetune.steps=2", "data.limit=64"]
    assert run(["train", "--preset", "text-demo", *settings]) == 0
    said = capsys.readouterr().err
    assert "8,000 words" in said and "bundled WordNet glosses" in said and "2000 train, 1000 test" in said
    lines = (tmp_path / "runs" / "bundled-text-bundled" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss_mlm"] < math.log(8000) - 2  # it has been pre-trained


def test_start_up_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "datasets", "pydantic")
    code = f"import sys, sdfast, sdfast.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a file: two\n   lines \n", "a file: two lines."),
        ("a name  with blanks.", "a name  with blanks."),
        ("x " * 2500, f"{'x ' * 500} [...]."),
        ("x" * 5000, f"{'x' * 300}...{'x' * 100}."),
    ],
)
def test_what_is_refused_is_one_line_that_ends(said: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What a library says of a file may be many lines, or without an end."""
    assert _fail(said, 2) == 2
    assert capsys.readouterr().err == f"sdfast: {shown}\n"
