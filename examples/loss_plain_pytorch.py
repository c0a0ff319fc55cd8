"""The masked-pixel and representation loss in a hand-written loop: `python examples/loss_plain_pytorch.py`.

A toy auto-encoder over 8 x 8 patches stands for yours. The teacher is its starting point, kept as a bank of one row for
each image; the loss reads the bank by row index and the pixels as they are.
"""

from __future__ import annotations

import torch
from torch import nn

from sdfast.losses import mae_distill_loss


def main(steps: int = 60) -> list[float]:
    """Train for some steps; the loss of every step."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 8, 8).repeat(1, 1, 4, 4)  # 64 pictures of 4 x 4 equal patches
    encoder, decoder = nn.Conv2d(3, 48, kernel_size=8, stride=8), nn.Linear(48, 8 * 8 * 3)
    with torch.no_grad():
        bank = encoder(images).mean((2, 3))  # [64, 48]: the teacher's features of the clean images
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    losses = []
    for _ in range(steps):
        rows = torch.randint(0, 64, (16,))
        pixels = images[rows]
        mask = torch.rand(16, 16).argsort(1) < 12  # 12 of 16 patches masked
        hidden = encoder(pixels).flatten(2).transpose(1, 2)  # [16, 16, 48]
        seen = (hidden * ~mask[..., None]).sum(1, keepdim=True) / 4  # [16, 1, 48]: what the visible patches say
        pred = decoder(torch.where(mask[..., None], seen, hidden))
        out = mae_distill_loss(pred, pixels, mask, hidden.mean(1), bank, rows=rows, patch_size=8)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} (pixels {out.mae:.3f}, representation {out.distill:.4f})")
    return losses


if __name__ == "__main__":
    main()
