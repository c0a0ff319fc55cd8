"""Fine-tuning: cross-entropy on the CLS token's linear head, horizontal flips as the only augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.engine.optim import DecayRule
from sdfast.models.vit import ViTClassifier
from sdfast.objectives.base import ALL_SHORTCUTS, Normalise, Shortcuts
from sdfast.rng import STREAM_FLIP, philox_bits


class Classification:
    """Minimise the mean cross-entropy over the batch (equation 1; fidelity 1.3). Flips are keyed by row."""

    decay_rule: DecayRule = "finetune"

    def __init__(
        self,
        module: ViTClassifier,
        normalise: Normalise,
        labels: Tensor,
        flip: float,
        seed: int,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
    ) -> None:
        """labels: [n] int64 on the module's device, by row of the pack."""
        self.module, self.normalise, self.labels, self.flip, self.seed = module, normalise, labels, flip, seed
        self.shortcuts = shortcuts

    @property
    def static(self) -> bool:
        """See `Objective.static`."""
        return True

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters, the position embeddings included."""
        yield from self.module.named_parameters()

    def announce(self, batch: Batch) -> None:
        """Nothing to do."""

    def draw(self, batch: Batch) -> Tensor:
        """[B] bool: which images are mirrored."""
        words = philox_bits(self.seed, batch.epoch, batch.rows, 1, STREAM_FLIP)[:, 0]
        return words < int(self.flip * 2**32)

    def loss(self, images: Tensor, batch: Batch, drawn: Tensor, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`."""
        pixels = self.normalise(images)
        flipped = drawn[part].to(images.device, non_blocking=True)[:, None, None, None]
        logits = self.module(torch.where(flipped, pixels.flip(-1), pixels), self.shortcuts.cls_tail)
        labels = self.labels[batch.rows[part].to(images.device, non_blocking=True)]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast gives bfloat16
        return {"loss": F.cross_entropy(logits, labels, reduction="sum") / batch.count}
