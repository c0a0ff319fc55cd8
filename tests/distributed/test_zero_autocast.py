"""The loss is computed in the precision that is asked for, under DeepSpeed's own autocast on a pretended GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sdfast.config import EngineConfig, PretrainConfig, ZeroConfig
from sdfast.data.order import Batch
from sdfast.engine import zero
from sdfast.engine.machine import autocast as precision_autocast
from sdfast.engine.zero import Sharing

CUDA = torch.device("cuda")


@pytest.fixture
def torch_autocast(monkeypatch: pytest.MonkeyPatch) -> Any:
    """DeepSpeed's module, which takes the accelerator to be a GPU; torch autocasts for one without having it."""
    monkeypatch.setenv("DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR", "cpu"))
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    from deepspeed.runtime import torch_autocast

    monkeypatch.setattr(torch_autocast, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
    monkeypatch.setattr(torch_autocast.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    return torch_autocast


class Objective:
    """Writes down how its loss is computed."""

    decay_rule, regularizer = "pretrain", None

    def __init__(self) -> None:
        self.module = nn.Linear(2, 1)
        self.seen: list[Any] = []

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.module.named_parameters())

    def loss(self, images: torch.Tensor, batch: Batch, drawn: Any, part: slice) -> dict[str, torch.Tensor]:
        self.seen.append(torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.float32)
        return {"loss": self.module.weight.sum()}


class DeepSpeed:
    """The engine, as far as the forward pass: the module inside of DeepSpeed's own autocast."""

    def __init__(self, module: nn.Module, optimizer: Any, options: dict[str, Any], torch_autocast: Any) -> None:
        self.module, self.optimizer, self.options = module, optimizer, options
        self.autocast_if_enabled = torch_autocast.autocast_if_enabled

    def torch_autocast_enabled(self) -> bool:
        return self.options.get("torch_autocast", {}).get("enabled", False)

    def torch_autocast_dtype(self) -> torch.dtype:
        return getattr(torch, self.options["torch_autocast"]["dtype"])

    def __call__(self, *inputs: Any) -> Any:
        with self.autocast_if_enabled(self):
            return self.module(*inputs)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None: ...

    def step(self) -> None: ...


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("auto", torch.bfloat16),
        ("bf16-weights", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp32", torch.float32),
        ("tf32", torch.float32),
    ],
)
def test_the_loss_is_computed_in_this_precision(
    precision: str, dtype: torch.dtype, torch_autocast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed switches off the autocast that it finds outside of its forward pass, where a GPU is its accelerator.

    In fp16 it autocasts by itself, and we do not.
    """

    def initialize(model: nn.Module, optimizer: Any, config: dict[str, Any]) -> tuple[DeepSpeed]:
        return (DeepSpeed(model, optimizer, config, torch_autocast),)

    asked: list[str] = []

    def autocast(requested: str, device: torch.device) -> Any:
        asked.append(requested)
        return precision_autocast(requested, device)

    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(zero, "autocast", autocast)
    monkeypatch.setattr(zero, "import_deepspeed", lambda device: SimpleNamespace(initialize=initialize))
    objective = Objective()
    settings = EngineConfig(precision=precision)  # type: ignore[arg-type]
    sharing = Sharing(zero=ZeroConfig(stage=3))
    engine = zero.ZeroEngine(objective, "pretrain", PretrainConfig(batch_size=4), settings, CUDA, sharing)  # type: ignore[arg-type]
    engine.step(torch.zeros(4, 1), Batch(0, torch.arange(4)), None, 0.1)
    assert objective.seen == [dtype] and asked == ["fp32" if precision == "fp16" else precision]
    assert not torch.is_autocast_enabled("cuda")
