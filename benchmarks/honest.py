"""The honest baseline: the naive step's mathematics as a careful person would run it on the same Hugging Face modules.

Scaled dot-product attention, one backward call for both parts of the loss, the teacher's CLS tokens read from memory
(no teacher runs), fused AdamW, gradients dropped and not zeroed, pixels on the device; bfloat16 autocast and
torch.compile on request. What it does not have is sdfast's: one pass for both views, and blocks computed for some of
their tokens only. Pixels and labels are given as to the naive step (benchmarks/naive.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from naive import clean_cls, finetuning_optimizer, freeze_positions, layers_of, pretraining_optimizer
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTForImageClassification, ViTMAEForPreTraining


@dataclass(frozen=True)
class Speed:
    """How the modules run. `layers` compiles every transformer layer, `whole` the function from pixels to loss."""

    bf16: bool = False
    compile: Literal["no", "layers", "whole"] = "no"
    options: dict[str, Any] = field(default_factory=dict)  # of torch.compile


class _Step:
    """What the three steps share: compilation, autocast, backward and update."""

    def __init__(self, model: nn.Module, layers: list[nn.Module], optimizer: torch.optim.AdamW, speed: Speed) -> None:
        self.model, self.optimizer, self.speed = model.train(), optimizer, speed
        self.loss: Callable[..., dict[str, Tensor]] = self._loss
        if speed.compile == "layers":
            for layer in layers:
                layer.compile(dynamic=False, **speed.options)
        elif speed.compile == "whole":
            self.loss = torch.compile(self._loss, dynamic=False, **speed.options)

    def _loss(self, *args: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def _update(self, clip: float | None, *args: Any) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device.type
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, torch.bfloat16) if self.speed.bf16 else contextlib.nullcontext():
            parts = self.loss(*args)
        sum(parts.values()).backward()  # type: ignore[union-attr]
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: value.detach().clone() for name, value in parts.items()}  # a CUDA graph reuses its memory


def _mae_layers(model: ViTMAEForPreTraining) -> list[nn.Module]:
    return [*layers_of(model.vit), *model.decoder.decoder_layers]


class HonestPretraining(_Step):
    """One further pre-training step."""

    def __init__(self, model: ViTMAEForPreTraining, lr: float = 1.5e-4, speed: Speed | None = None) -> None:
        freeze_positions(model)
        super().__init__(model, _mae_layers(model), pretraining_optimizer(model, lr, fused=True), speed or Speed())

    def _loss(self, pixels: Tensor, noise: Tensor | None) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss_mae": self.model(pixels, noise=noise).loss}

    def step(self, pixels: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """pixels: [B, C, H, W] normalised; noise: [B, L], decides the masks."""
        return self._update(None, pixels, noise)


class HonestDistillation(_Step):
    """One self-distillation step against cached targets."""

    def __init__(
        self, model: ViTMAEForPreTraining, targets: Tensor, lr: float = 1.5e-4, speed: Speed | None = None
    ) -> None:
        """targets: [n, D], the teacher's CLS token of every row."""
        freeze_positions(model)
        self.targets = targets
        super().__init__(model, _mae_layers(model), pretraining_optimizer(model, lr, fused=True), speed or Speed())

    def _loss(self, pixels: Tensor, rows: Tensor, noise: Tensor | None) -> dict[str, Tensor]:  # type: ignore[override]
        loss_mae = self.model(pixels, noise=noise).loss
        difference = clean_cls(self.model, pixels) - self.targets[rows]
        return {"loss_mae": loss_mae, "loss_distill": difference.square().sum() / len(pixels)}

    def step(self, pixels: Tensor, rows: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """pixels: [B, C, H, W] normalised; rows: [B] int64, of the targets; noise: [B, L], decides the masks."""
        return self._update(None, pixels, rows, noise)


class HonestTexts(_Step):
    """One step of further pre-training on padded texts, or of self-distillation against cached targets."""

    def __init__(
        self, model: PreTrainedModel, targets: Tensor | None = None, lr: float = 1e-4, speed: Speed | None = None
    ) -> None:
        """targets: [B, D], the teacher's CLS token of every text of the batch; None for further pre-training."""
        self.targets = targets
        inner = model.base_model  # ModernBERT's layers are its own
        layers = list(inner.encoder.layer if hasattr(inner, "encoder") else inner.layers)
        super().__init__(model, layers, pretraining_optimizer(model, lr, fused=True), speed or Speed())

    def _loss(self, seen: dict[str, Tensor], labels: Tensor, clean: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        parts = {"loss_mlm": self.model(**seen, labels=labels).loss}
        if self.targets is not None:
            difference = self.model.base_model(**clean).last_hidden_state[:, 0] - self.targets
            parts["loss_distill"] = difference.square().sum() / len(labels)
        return parts

    def step(self, seen: dict[str, Tensor], labels: Tensor, clean: dict[str, Tensor]) -> dict[str, Tensor]:
        """seen, clean: as `naive_text.inputs_of` makes them, of the masked and of the clean texts; labels: [B, N]."""
        return self._update(None, seen, labels, clean)


class HonestFinetuning(_Step):
    """One fine-tuning step."""

    def __init__(self, model: ViTForImageClassification, lr: float = 1e-4, speed: Speed | None = None) -> None:
        super().__init__(model, layers_of(model.vit), finetuning_optimizer(model, lr, fused=True), speed or Speed())

    def _loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss": self.model(pixels, labels=labels).loss}

    def step(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """pixels: [B, C, H, W] normalised; labels: [B] int64."""
        return self._update(1.0, pixels, labels)
