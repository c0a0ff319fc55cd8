"""The examples of the losses run as they are, and train."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def losses_of(name: str, steps: int) -> list[float]:
    losses = runpy.run_path(str(EXAMPLES / name))["main"](steps)
    assert len(losses) > 2
    return losses


def falls(losses: list[float]) -> bool:
    third = max(1, len(losses) // 3)
    return sum(losses[-third:]) < 0.95 * sum(losses[:third])


def test_plain_pytorch() -> None:
    assert falls(losses_of("loss_plain_pytorch.py", 60))


def test_plain_pytorch_is_thirty_lines() -> None:
    main = runpy.run_path(str(EXAMPLES / "loss_plain_pytorch.py"))["main"]
    assert len(inspect.getsource(main).splitlines()) <= 30


def test_hugging_face_trainer() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    assert falls(losses_of("loss_hf_trainer.py", 15))


def test_hugging_face_trainer_of_texts() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    assert falls(losses_of("loss_hf_trainer_texts.py", 15))


@pytest.mark.filterwarnings("ignore")
def test_lightning() -> None:
    if not any(map(installed, ("lightning", "pytorch_lightning"))):
        pytest.skip("neither lightning nor pytorch_lightning is installed")
    assert falls(losses_of("loss_lightning.py", 60))


def installed(package: str) -> bool:
    try:
        __import__(package)
    except ModuleNotFoundError:
        return False
    return True
