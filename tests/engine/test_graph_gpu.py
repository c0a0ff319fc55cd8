"""On a GPU: the captured step gives what the step gives, reads the rate from its tensor, and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdfast.engine.graph import GraphedStep
from sdfast.engine.loop import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
def test_captured_and_plain_train_alike(stage: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    device = torch.device("cuda")
    plain = make_trainer(stage, directory=tmp_path / "plain", device=device, cuda_graph=False, precision="fp32")
    graphed = make_trainer(stage, directory=tmp_path / "graphed", device=device, precision="fp32")
    assert isinstance(graphed.engine._computed, GraphedStep)
    for trainer in (plain, graphed):
        trainer.run()
    assert graphed.engine._computed._replay is not None, "the step was not captured"
    for name, value in plain.engine.parameters.items():
        if not name.endswith("qkv.bias"):  # the key's part has no gradient but noise
            torch.testing.assert_close(value, graphed.engine.parameters[name], atol=2e-5, rtol=1e-3)


def test_a_step_waits_for_nothing(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer("distill", device=torch.device("cuda"))
    for _ in range(5):
        trainer._one_step()
        trainer.step += 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer._one_step()
            trainer.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
