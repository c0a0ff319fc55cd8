"""The yardstick: the training steps as the paper's authors ran them, on public Hugging Face modules.

Further pre-training is ViTMAE's own forward and backward. Self-distillation runs the masked forward and backward, then
the live teacher on the clean images, then the student on the clean images with a second backward that adds to the
first one's gradients, then one AdamW step (fidelity 1.1 and 1.2, which describe the released code; this text is ours).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification, ViTMAEForPreTraining


def pretraining_optimizer(
    model: nn.Module, lr: float = 1.5e-4, weight_decay: float = 0.01, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.95) and no decay on 1-D tensors and biases."""
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1 and not n.endswith(".bias")]
    spared = [p for n, p in model.named_parameters() if p.requires_grad and (p.ndim <= 1 or n.endswith(".bias"))]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=fused)


def finetuning_optimizer(
    model: nn.Module, lr: float = 1e-4, weight_decay: float = 0.01, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.999) and no decay on biases, position embeddings and the CLS token."""
    spared_names = ("bias", "position_embeddings", "cls_token")
    named = list(model.named_parameters())
    spared = [p for n, p in named if any(part in n for part in spared_names)]
    decayed = [p for n, p in named if not any(part in n for part in spared_names)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def freeze_positions(model: ViTMAEForPreTraining) -> ViTMAEForPreTraining:
    """Fix the sin-cos positions, as ViTMAE means them: `from_pretrained` of transformers 5 makes them trainable."""
    model.vit.embeddings.position_embeddings.requires_grad_(False)
    model.decoder.decoder_pos_embed.requires_grad_(False)
    return model


def layers_of(vit: nn.Module) -> list[nn.Module]:
    """The transformer layers of a ViTMAEModel or ViTModel, by either of the names they had in transformers."""
    return list(vit.layers if hasattr(vit, "layers") else vit.encoder.layer)


def clean_cls(model: ViTMAEForPreTraining, pixels: Tensor) -> Tensor:
    """The CLS token of the unmasked image after the final LayerNorm, [B, D], around ViTMAE's masking."""
    vit = model.vit
    tokens = vit.embeddings.patch_embeddings(pixels) + vit.embeddings.position_embeddings[:, 1:]
    cls = (vit.embeddings.cls_token + vit.embeddings.position_embeddings[:, :1]).expand(len(pixels), -1, -1)
    hidden = torch.cat((cls, tokens), dim=1)
    for layer in layers_of(vit):
        hidden = layer(hidden)
    return vit.layernorm(hidden)[:, 0]


class NaivePretraining:
    """One further pre-training step."""

    def __init__(self, model: ViTMAEForPreTraining, lr: float = 1.5e-4) -> None:
        self.model = freeze_positions(model).train()
        self.optimizer = pretraining_optimizer(self.model, lr)

    def step(self, pixels: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """pixels: [B, C, H, W] normalised; noise: [B, L], decides the masks."""
        self.optimizer.zero_grad()
        loss = self.model(pixels, noise=noise).loss
        loss.backward()
        self.optimizer.step()
        return {"loss_mae": loss.detach()}


class NaiveDistillation:
    """One self-distillation step: two backward calls and a live teacher."""

    def __init__(self, model: ViTMAEForPreTraining, teacher: ViTMAEForPreTraining, lr: float = 1.5e-4) -> None:
        self.model = freeze_positions(model).train()
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.optimizer = pretraining_optimizer(self.model, lr)

    def step(self, pixels: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """pixels: [B, C, H, W] normalised; noise: [B, L], decides the masks."""
        self.optimizer.zero_grad()
        loss_mae = self.model(pixels, noise=noise).loss
        loss_mae.backward()
        with torch.no_grad():
            target = clean_cls(self.teacher, pixels)
        loss_distill = (clean_cls(self.model, pixels) - target).square().sum() / len(pixels)
        loss_distill.backward()
        self.optimizer.step()
        return {"loss_mae": loss_mae.detach(), "loss_distill": loss_distill.detach()}


class NaiveFinetuning:
    """One fine-tuning step: cross-entropy, clipping at 1, AdamW."""

    def __init__(self, model: ViTForImageClassification, lr: float = 1e-4) -> None:
        self.model = model.train()
        self.optimizer = finetuning_optimizer(self.model, lr)

    def step(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """pixels: [B, C, H, W] normalised; labels: [B] int64."""
        self.optimizer.zero_grad()
        loss = self.model(pixels, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {"loss": loss.detach()}
