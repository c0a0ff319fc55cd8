"""Baselines, ablations, kinds of models, the choice of the best weights on texts: two processes end where one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_zero_trajectories import ENGINES, FACTOR, PARTITIONED, distance
from zero_worker import train

from sdfast.ranks import Ranks

pytest.importorskip("deepspeed", reason="deepspeed is not installed")

PREDICTIONS = {"match": "predictions", "weight": 0.1}
WORK: dict[str, dict[str, Any]] = {
    "predictions": {"stage": "distill", "objective": PREDICTIONS},
    "masked-predictions": {
        "stage": "distill",
        "objective": {**PREDICTIONS, "weight": 10.0, "compared": "masked", "reduction": "mean", "mae_weight": 0.0},
    },
    "weights": {"stage": "distill", "objective": {"match": "weights-mars", "weight": 0.01}},
    "without-words": {"stage": "distill", "objective": {"mae_weight": 0.0}},  # the head gets no gradient
    "electra": {"stage": "distill", "objective": {"kind": "electra"}},  # a layer between embeddings and blocks
    "distilbert": {"stage": "distill", "objective": {"kind": "distilbert"}},
    "modernbert": {"stage": "distill", "objective": {"kind": "modernbert"}},
    "eurobert": {"stage": "distill", "objective": {"kind": "eurobert"}},  # a head with a matrix of its own
    "r3f": {"stage": "finetune", "r3f": {"eps": 0.0}},  # noise is each process's own; here its two passes are one
    "recadam": {"stage": "finetune", "regularizer": "recadam"},
    "mars": {"stage": "finetune", "regularizer": "mars"},
    "best": {"stage": "finetune", "select": [0.1, 0.5, 0.4, 0.2]},
}
CASES = [("predictions", PARTITIONED), ("masked-predictions", "zero-2"), ("weights", "zero-2")]
CASES += [
    ("without-words", PARTITIONED),
    ("electra", "zero-2"),
    ("electra", PARTITIONED),
    ("distilbert", "zero-2"),
    ("modernbert", "zero-2"),
    ("eurobert", "zero-2"),
    ("eurobert", PARTITIONED),
    ("r3f", "zero-2"),
    ("r3f", PARTITIONED),
    ("recadam", "zero-0"),
    ("mars", "zero-0"),
    ("best", "zero-2"),
    ("best", PARTITIONED),
]


LONG = [("electra", "zero-2"), ("eurobert", "zero-2"), ("r3f", "zero-2"), ("best", "zero-2"), ("distilbert", "zero-2")]


@pytest.fixture(scope="module")
def trained(run_cases: Callable[..., Path], chosen: Callable[..., list[Any]]) -> Path:
    wanted = chosen("work", "engine")
    return run_cases(2, [{"name": f"{w}-{e}", "text": True, **WORK[w], **ENGINES[e]} for w, e in wanted])


@pytest.mark.parametrize(
    ("work", "engine"), [pytest.param(*case, marks=pytest.mark.slow if case in LONG else ()) for case in CASES]
)
def test_two_processes_of_texts_end_where_one_does(work: str, engine: str, trained: Path, tmp_path: Path) -> None:
    assert json.loads((trained / f"{work}-{engine}.json").read_text()) == [{}, {}]
    case = {"text": True, **WORK[work]}
    truth = train(case, tmp_path / "64", Ranks(), torch.float64)
    own_error = distance(train(case, tmp_path / "32", Ranks()), truth)
    weights = load_file(trained / f"{work}-{engine}.safetensors")
    assert set(weights) == set(truth) and 0 < distance(weights, truth) <= FACTOR * own_error
    if work in ("recadam", "mars", "best"):
        plain = train({"stage": "finetune", "text": True}, tmp_path / "plain", Ranks(), torch.float64)
        assert distance(truth, plain) > 100 * own_error
