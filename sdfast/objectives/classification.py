"""Fine-tuning: cross-entropy on the CLS token's linear head, horizontal flips as the only augmentation; R3F."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.engine.optim import DecayRule
from sdfast.models.vit import ViTClassifier
from sdfast.objectives.base import ALL_SHORTCUTS, Normalise, Shortcuts
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.r3f import R3F, symmetric_kl
from sdfast.regularizers.recadam import Pull
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
        r3f: R3F | None = None,
        regularizer: Pull | Mars | None = None,
    ) -> None:
        """Set up.

        Args:
            module: the classifier.
            normalise: from uint8 images to its input.
            labels: [n] int64 on the module's device, by row of the pack.
            flip: probability of a horizontal flip.
            seed: of the flips.
            shortcuts: which are taken.
            r3f: noise, and the weight of what it does to the output.
            regularizer: what acts on the optimiser.
        """
        self.module, self.normalise, self.labels, self.flip, self.seed = module, normalise, labels, flip, seed
        self.shortcuts, self.r3f, self.regularizer = shortcuts, r3f, regularizer

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
        """See `Objective.loss`; with R3F the parts are `loss_task` and `loss_r3f`."""
        pixels = self.normalise(images)
        flipped = drawn[part].to(images.device, non_blocking=True)[:, None, None, None]
        pixels = torch.where(flipped, pixels.flip(-1), pixels)
        noise = None
        if self.r3f is not None:
            shape = self.module.shape
            size = (len(images), shape.patches, shape.encoder.width)
            noise = self.r3f.draw(size, pixels.device, pixels.dtype)
        logits = self.module(pixels, self.shortcuts.cls_tail, noise)
        labels = self.labels[batch.rows[part].to(images.device, non_blocking=True)]
        return classification_loss(logits, labels, batch.count, self.r3f)


def classification_loss(logits: Tensor, labels: Tensor, count: int, r3f: R3F | None = None) -> dict[str, Tensor]:
    """Cross-entropy as a share of a batch's mean, and R3F's divergence.

    Args:
        logits: [B, C]; with `r3f` [2B, C], those of the noised input after the others.
        labels: [B] int64.
        count: rows of the whole batch.
        r3f: the weight of what its noise does to the output.

    Returns:
        `loss`, and with `r3f` its parts `loss_task` and `loss_r3f`: see `Objective.loss`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast gives bfloat16
    if r3f is None:
        return {"loss": F.cross_entropy(logits, labels, reduction="sum") / count}
    clean, noised = logits.chunk(2)
    task = F.cross_entropy(clean, labels, reduction="sum") / count
    smooth = r3f.weight * symmetric_kl(clean, noised) / count
    return {"loss": task + smooth, "loss_task": task.detach(), "loss_r3f": smooth.detach()}
