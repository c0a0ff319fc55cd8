"""Processes of one job that were told different things: noticed before anything is trained, in every process."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launching import child_environment, command
from pipeline_fixtures import write_images, write_model

from sdfast.config import valid_keys
from sdfast.errors import RunError, SdfastError, UserError
from sdfast.pipeline import Pipeline
from sdfast.ranks import Ranks


def two(others: Any) -> Ranks:
    """As process 0 of two, where the other gives this."""
    return Ranks(0, 2, lambda mine: [mine, others])


def test_the_first_value_that_differs_is_named_with_both() -> None:
    same = {"seed": 1, "steps": 5}
    two([None, dict(same)]).check_same(lambda: same)
    Ranks().check_same(lambda: pytest.fail("one process has nobody to differ from"))
    with pytest.raises(UserError, match="steps is 5 in process 0 of this job and 6 in process 1; all have to get"):
        two([None, {**same, "steps": 6}]).check_same(lambda: same)
    with pytest.raises(UserError, match="seed is 1 in process 0 of this job and None in process 1"):
        two([None, {"steps": 5}]).check_same(lambda: same)
    with pytest.raises(UserError, match=r"more is None in process 0 of this job and x{80}\.\.\. in process 1"):
        two([None, {**same, "more": "x" * 500}]).check_same(lambda: same)
    with pytest.raises(RunError, match="disk full"):
        two([["run", 0, "disk full."], None]).check_same(lambda: same)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", "seed is 0 in process 0 of this job and 1 in process 1"),
        ("pretrain.batch_size=3", "pretrain.batch_size is "),
        ("finetune.lr=0.5", "finetune.lr is "),
        ("finetune.betas=[0.1,0.2]", "finetune.betas is "),
        ("data.limit=9", "data.limit is "),
        ("data.source=elsewhere", "data.source is None in process 0 of this job and elsewhere in process 1"),
        ("engine.threads=1", "engine.threads is None in process 0 of this job and 1 in process 1"),
        ("deepspeed.steps_per_print=1", "deepspeed.steps_per_print is None in process 0 of this job and 1 in"),
        ("distill.predictions.patches=masked", "distill.predictions.patches is all in process 0 of"),
    ],
)
def test_any_key_that_differs(override: str, words: str, tmp_path: Path) -> None:
    mine, theirs = (Pipeline(out=tmp_path, preset="paper-vit", overrides=more)._told() for more in ([], [override]))
    with pytest.raises(UserError) as caught:
        two([None, theirs]).check_same(lambda: mine)
    assert words in str(caught.value)


def test_all_keys_are_compared_and_the_content_of_a_file_of_options_in_place_of_its_path(tmp_path: Path) -> None:
    told = Pipeline(out=tmp_path)._told()
    assert set(valid_keys()) - set(told) == {"zero.nvme_path", "deepspeed"}
    for name, value in (("a.json", 1), ("b.json", 1), ("c.json", 2)):
        (tmp_path / name).write_text(json.dumps({"steps_per_print": value}))
    a, b, c = (
        Pipeline(out=tmp_path, zero=2, overrides=[f"zero.config={tmp_path / name}"])._told()
        for name in ("a.json", "b.json", "c.json")
    )
    two([None, b]).check_same(lambda: a)
    with pytest.raises(UserError, match=r"zero\.config is {'steps_per_print': 1} in process 0"):
        two([None, c]).check_same(lambda: a)


def test_what_one_process_cannot_read_ends_all() -> None:
    """The others would wait for it otherwise."""
    said: list[Any] = []

    def answers(value: Any) -> list[Any]:
        said.append(value)
        failed = [["user", 0, "the pack is not here."], None]
        return [[None, None], [None, None]] if len(said) == 1 else [value, failed]

    with pytest.raises(SdfastError, match="the pack is not here"):
        Ranks(0, 2, answers).rank0_then_others(lambda: "made")


@pytest.mark.parametrize("differs", ["a setting", "the model"])
def test_two_processes_end_with_code_2_and_one_sentence(differs: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    images = write_images(tmp_path / "images")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    tasks = []
    for rank in range(2):
        folder = tmp_path / f"machine-{rank}"
        write_model(folder / "model", **({"seed": rank} if differs == "the model" else {}))
        lr = f"pretrain.lr={1e-3 * (1 + rank)}" if differs == "a setting" else "pretrain.lr=0.001"
        words = command(
            1, tmp_path / "run", ["--model", "model", "--data", str(images), "pretrain.steps=2", lr], zero=0
        )
        environment = child_environment(**meeting, RANK=str(rank), LOCAL_RANK=str(rank))
        tasks.append(
            subprocess.Popen(
                words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    said = [task.communicate(timeout=120)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [2, 2], said
    both = "".join(said)
    wanted = "pretrain.lr is 0.001 in process 0" if differs == "a setting" else "the digest of --model model is "
    assert both.count("sdfast: ") == 1 and f"sdfast: {wanted}" in both and "Traceback" not in both
    assert not (tmp_path / "run" / "pretrain").exists()
    assert (tmp_path / "run").exists() == (differs == "the model")  # settings are compared before anything is made
