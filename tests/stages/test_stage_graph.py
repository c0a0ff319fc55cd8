"""Which stages there are, and in which order they are brought up to date."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sdfast.config import Config
from sdfast.stages.graph import distillation, finetuning


def context_of(head_steps: int, *overrides: str) -> Any:
    modality = SimpleNamespace(head_steps=lambda config, model: head_steps)
    return SimpleNamespace(config=Config().changed(overrides), model=None, modality=modality)


@pytest.mark.parametrize("head_steps", [0, 5])
def test_each_stage_comes_once_and_after_what_it_needs(head_steps: int) -> None:
    chain = finetuning(context_of(head_steps, "distill.rounds=3")).chain()
    folders = [stage.folder for stage in chain]
    assert folders == ["head"] * bool(head_steps) + [
        *("pretrain", "distill/round-1", "distill/round-2", "distill", "finetune")
    ]
    for place, stage in enumerate(chain):
        assert set(stage.needs) <= set(chain[:place])
    first = chain[0] if head_steps else None
    assert [stage.start for stage in chain if stage.kind == "distill"] == [first] * 3


def test_as_many_rounds_as_the_configuration_takes() -> None:
    chain = finetuning(context_of(5, "distill.rounds=1000")).chain()
    assert len(chain) == 2 + 1000 + 1 and [stage.round for stage in chain[2:-1]] == list(range(1, 1001))


def test_no_round_hands_the_teacher_on() -> None:
    given = context_of(0, "distill.rounds=0")
    assert [(stage.kind, stage.round) for stage in distillation(given).chain()] == [("pretrain", None), ("distill", 0)]
    assert distillation(given, 0).kind == "pretrain"
