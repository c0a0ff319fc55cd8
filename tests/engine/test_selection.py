"""The weights that are kept: the best of several times, of equals the earlier, and the same after a stop."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdfast.engine.loop import Trainer
from sdfast.engine.selection import Selection
from sdfast.errors import Interrupted


def scripted(scores: Sequence[float], seen: list[dict[str, Tensor]], first: int = 0) -> Selection:
    """As many times as there are scores; what it was shown is noted."""

    def score(state: dict[str, Tensor]) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in state.items()})
        return {"dev_accuracy": scores[first + len(seen) - 1], "dev_loss": 1.0}

    return Selection(score, "dev_accuracy", len(scores))


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.objective.module.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(("steps", "times"), [(12, 1), (12, 4), (12, 5), (7, 10), (20, 10), (1, 3)])
def test_the_times_are_even_and_the_last_is_at_the_end(steps: int, times: int) -> None:
    selection = Selection(lambda state: {}, "", times)
    due = [step for step in range(1, steps + 1) if selection.due(step, steps)]
    assert due == sorted({math.ceil(number * steps / times) for number in range(1, times + 1)})


@pytest.mark.parametrize(
    ("scores", "kept"), [((0.1, 0.5, 0.4, 0.2), 6), ((0.3, 0.3, 0.2, 0.3), 3), ((0.0, 0.1, 0.2, 0.3), 12)]
)
def test_the_best_is_kept_and_of_equals_the_earlier(
    scores: tuple[float, ...], kept: int, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    plain, trainer = make_trainer("finetune", directory=tmp_path / "plain"), make_trainer("finetune")
    plain.run()
    seen: list[dict[str, Tensor]] = []
    trainer.selection = scripted(scores, seen)
    best = trainer.run().best
    assert best is not None and (best.step, best.scores["dev_accuracy"]) == (kept, max(scores))
    assert len(seen) == 4 and same(weights(trainer), seen[kept // 3 - 1])
    assert same(seen[3], weights(plain))  # looking changes nothing of the training
    assert not same(seen[0], seen[1])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["dev_accuracy"] for line in lines if "dev_accuracy" in line} == dict(
        zip((3, 6, 9, 12), scores, strict=True)
    )


@pytest.mark.parametrize("stop", [2, 3, 7, 10])
def test_a_stopped_stage_keeps_the_same_weights(
    stop: int, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    scores = (0.2, 0.5, 0.1, 0.5)
    seen: list[dict[str, Tensor]] = []
    whole = make_trainer("finetune", directory=tmp_path / "whole")
    whole.selection = scripted(scores, seen)
    whole.run()
    cut = make_trainer("finetune")
    before: list[dict[str, Tensor]] = []
    cut.selection = scripted(scores, before)
    read = cut.read

    def interrupting(rows: Tensor) -> Any:
        if cut.steps_done == stop - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return read(rows)

    cut.read = interrupting
    with pytest.raises(Interrupted):
        cut.run()
    resumed = make_trainer("finetune")
    assert resumed.steps_done == stop and (resumed.best is None) == (stop < 3)
    after: list[dict[str, Tensor]] = []
    resumed.selection = scripted(scores, after, len(before))
    best = resumed.run().best
    assert best is not None and best.step == 6 and len(before) + len(after) == 4
    assert same(weights(resumed), weights(whole)) and same(weights(whole), seen[1])


def test_without_a_selection_a_checkpoint_holds_no_second_model(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    from sdfast.store import checkpoint

    trainer = make_trainer("finetune", checkpoint_steps=8)
    assert trainer.run().best is None
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    assert not [name for name in checkpoint.Checkpoint.open(found).names if name.startswith("best/")]
