"""Arms at the points of an axis, and the configurations they stand for."""

from __future__ import annotations

import pytest

from sdfast.config import Config, resolve
from sdfast.errors import UserError
from sdfast.studies.declared import METHODS, STUDIES, Arm, configured, expand, study_named
from sdfast.studies.run import _chosen


def test_sizes_are_nested_limits_of_every_method_and_those_beyond_the_data_are_named() -> None:
    arms, notes = expand(STUDIES["figure3"], Config(), 2000, [100, 50, 900_000])
    assert [(arm.series, arm.x) for arm in arms[:3]] == [
        ("fine-tuning", 50),
        ("further pre-training", 50),
        ("self-distillation", 50),
    ]
    assert [arm.x for arm in arms[3:]] == [100] * 3 and len(notes) == 1 and "900000" in notes[0]
    assert configured(Config(), arms[-1]).data.limit == 100
    arms, notes = expand(STUDIES["figure3"], Config(), 5000, [])
    assert [arm.x for arm in arms[::3]] == [1000, 2500, 5000] and not notes
    with pytest.raises(UserError, match="is within the 999 training rows"):
        expand(STUDIES["figure3"], Config(), 999, [])


def test_rounds_begin_with_the_further_pretrained_model() -> None:
    arms, _ = expand(STUDIES["figure4"], Config(), 10, [])
    assert [arm.start for arm in arms] == ["pretrain"] + ["distill"] * 4
    assert [configured(Config(), arm).distill.rounds for arm in arms[1:]] == [1, 2, 3, 4]
    assert [arm.x for arm in expand(STUDIES["figure5"], Config(), 10, [3])[0]] == [0, 1, 3]


def test_steps_are_shares_of_those_configured_and_none_is_plain_fine_tuning() -> None:
    config = resolve(overrides=["model=m", "pretrain.epochs=3", "pretrain.steps=40"])
    arms, _ = expand(STUDIES["figure1"], config, 10, [])
    assert [arm.x for arm in arms] == [0, 20, 40, 60, 80, 100, 120, None]
    assert arms[0].start == "init" and arms[-1].title == "self-distillation"
    longer = configured(config, arms[3]).pretrain
    assert (longer.steps, longer.epochs) == (60, None)
    with pytest.raises(UserError, match="no points to choose"):
        expand(STUDIES["table1"], config, 10, [1])


def test_twice_as_long_is_in_epochs_where_they_decide() -> None:
    twice = next(arm for arm in STUDIES["table3"].arms if arm.longer == 2)
    assert configured(Config(), twice).pretrain.steps == 40_000
    config = Config().changed(["pretrain.epochs=100"])
    assert configured(config, twice).pretrain.epochs == 200


def test_recadam_keeps_its_proportions_and_what_the_user_set() -> None:
    recadam = METHODS[1]
    paper = configured(Config(), recadam).finetune.recadam
    assert paper == Config().finetune.recadam  # at 10,000 steps and 1e-4
    short = Config().changed(["finetune.steps=500", "finetune.lr=1e-3", "finetune.recadam.k=0.7"])
    given = configured(short, recadam).finetune
    assert (given.recadam.t0, given.recadam.k) == (50, 0.7)
    assert given.lr * given.recadam.gamma == pytest.approx(0.5)
    assert configured(Config().changed(["finetune.lr=2e-5"]), recadam).finetune.recadam.gamma == 5000


def test_unknown_studies_and_keys() -> None:
    with pytest.raises(UserError, match=r"no study 'table7'; choose table1, .*compare, cost"):
        study_named("table7")
    with pytest.raises(UserError, match=r"no study 'compere'; did you mean 'compare'"):
        study_named("compere")
    with pytest.raises(UserError, match=r"pretrain\.steps"):
        configured(Config(), Arm("wrong", "init", ("pretrain.stepz=1",)))


def test_an_arm_is_named_by_its_letters_whatever_is_between_them() -> None:
    wanted = ["Fine tuning", "self-distillation-all-tokens"]
    _, matched = _chosen(STUDIES["compare"], wanted).arms
    assert configured(Config(), matched).distill.tokens == "all"
    assert _chosen(STUDIES["compare"], ["fine-tuning", matched.title]).arms[1] is matched
