"""The loss inside a Lightning module, its parts logged apart: `python examples/loss_lightning.py`."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

try:
    import lightning
except ModuleNotFoundError:
    import pytorch_lightning as lightning

from sdfast.losses import MaeDistillLoss


class FurtherPretraining(lightning.LightningModule):
    """A toy masked auto-encoder over 8 x 8 patches that keeps near to where it started."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, width, kernel_size=8, stride=8)
        self.decoder = nn.Linear(width, 8 * 8 * 3)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.objective = MaeDistillLoss(patch_size=8, distill_weight=0.5)
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        (pixels,) = batch
        mask = torch.rand(len(pixels), 16, device=pixels.device).argsort(1) < 12
        hidden = self.encoder(pixels).flatten(2).transpose(1, 2)  # [B, 16, width]
        with torch.no_grad():
            target = self.teacher(pixels).flatten(2).transpose(1, 2)
        seen = (hidden * ~mask[..., None]).sum(1, keepdim=True) / 4  # what the visible patches say
        pred = self.decoder(torch.where(mask[..., None], seen, hidden))
        out = self.objective(pred, pixels, mask, hidden, target)  # all tokens, live teacher
        self.log_dict({"loss/mae": out.mae, "loss/distill": out.distill})
        self.losses.append(float(out.loss))
        return out.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([*self.encoder.parameters(), *self.decoder.parameters()], lr=3e-3)


def main(steps: int = 60) -> list[float]:
    """Train for some steps; the loss of every step."""
    lightning.seed_everything(0, verbose=False)
    images = torch.randn(64, 3, 8, 8).repeat(1, 1, 4, 4)  # 64 pictures of 4 x 4 equal patches
    module = FurtherPretraining()
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(images), batch_size=16, shuffle=True))
    print(f"loss {module.losses[0]:.3f} -> {module.losses[-1]:.3f}")
    return module.losses


if __name__ == "__main__":
    main()
