"""A run on texts in two processes under ZeRO 2, one of which is killed, ends with the bits of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import command, finished, killed_in_distill
from safetensors.torch import load_file
from text_fixtures import write_text_model, write_texts

STEPS = 40

pytest.importorskip("deepspeed", reason="deepspeed is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_dies_in_distill_and_the_run_goes_on(killed: int, tmp_path: Path) -> None:
    """With the dropout of the model, and batches that are cut by a budget of tokens."""
    model, data = write_text_model(tmp_path / "model"), write_texts(tmp_path / "texts")
    arguments = ["--stage", "distill", "--model", str(model), "--data", str(data), "pretrain.steps=3"]
    arguments += [f"distill.steps={STEPS}", "pretrain.batch_size=7", "distill.batch_size=7", "data.token_budget=80"]
    cut = [*arguments, "engine.checkpoint_steps=4", "engine.log_every=1"]
    whole = finished(command(2, tmp_path / "whole", arguments))
    assert whole.returncode == 0, whole.stderr
    assert "are longer than 40 tokens and become" in whole.stderr  # their chunks are rows
    killed_in_distill(command(2, tmp_path / "cut", cut), tmp_path / "cut", killed, STEPS // 2)
    again = finished(command(2, tmp_path / "cut", cut))
    assert again.returncode == 0, again.stderr
    assert "distill: resuming at step" in again.stderr
    ends = [load_file(tmp_path / run / "distill" / "model" / "model.safetensors") for run in ("whole", "cut")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
