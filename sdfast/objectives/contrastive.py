"""Supervised contrastive training (Khosla et al., NeurIPS 2020) with a classifier beside it (fidelity 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.errors import UserError
from sdfast.models.text import TextClassifier
from sdfast.models.vit import View, ViTClassifier
from sdfast.objectives.base import ALL_SHORTCUTS, Normalise, Shortcuts
from sdfast.objectives.classification import Classification
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull
from sdfast.rng import STREAM_FLIP, philox_bits

VIEWS = 2
WHOLE_BATCH = (
    "finetune.objective=supcon compares each image or text with all others of the batch: run finetune in one process,"
    " with engine.accumulate=1 and without data.token_budget."
)
_BASE_TEMPERATURE = 0.07


class SupervisedContrastive(Classification):
    """Minimise the supervised contrastive loss of two views of each image, and the classifier's cross-entropy.

    A view is the image, mirrored or not. The contrastive loss trains the encoder through a projection of the CLS
    token; the cross-entropy, a mean over images and views, trains the classifier alone: its CLS token carries no
    gradient. Each image is compared with all others, so a batch is computed as a whole.
    """

    def __init__(
        self,
        module: ViTClassifier,
        normalise: Normalise,
        labels: Tensor,
        flip: float,
        seed: int,
        temperature: float = _BASE_TEMPERATURE,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
        regularizer: Pull | Mars | None = None,
    ) -> None:
        """Set up.

        Args:
            module: the classifier, with a projection from `add_projection`.
            temperature: of the softmax.
            normalise, labels, flip, seed, shortcuts, regularizer: see `Classification`.
        """
        super().__init__(module, normalise, labels, flip, seed, shortcuts, regularizer=regularizer)
        self.temperature = temperature

    def draw(self, batch: Batch) -> Tensor:
        """[B, 2] bool: which views are mirrored; the first as plain fine-tuning's."""
        words = philox_bits(self.seed, batch.epoch, batch.rows, VIEWS, STREAM_FLIP)
        return words < int(self.flip * 2**32)

    def loss(self, images: Tensor, batch: Batch, drawn: Tensor, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_contrastive` and `loss_task`.

        Raises:
            UserError: these are not all of the batch's rows.
        """
        if len(images) != batch.count:
            raise UserError(WHOLE_BATCH)
        module, shortcuts = self.module, self.shortcuts
        flipped = drawn[part].t().flatten().to(images.device, non_blocking=True)[:, None, None, None]
        pixels = self.normalise(images).repeat(VIEWS, 1, 1, 1)  # all images, and then all again
        pixels = torch.where(flipped, pixels.flip(-1), pixels)
        encoded = module.encoder.encode(View(module.encoder.embed(pixels), cls_only=shortcuts.cls_tail))[0]
        cls = encoded if shortcuts.cls_tail else encoded[:, 0]
        labels = self.labels[batch.rows[part].to(images.device, non_blocking=True)].repeat(VIEWS)
        projected = module.get_submodule("projection")(cls)
        return contrastive_losses(projected, module.classifier(cls.detach()), labels, self.temperature)


def contrastive_losses(projected: Tensor, logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Tensor]:
    """The contrastive loss of all views of a batch, and beside it the classifier's cross-entropy.

    Args:
        projected: [N, P], what is compared.
        logits: [N, C], of what carries no gradient into the encoder.
        labels: [N] int64.
        temperature: see `supervised_contrastive_loss`.

    Returns:
        `loss` and its parts `loss_contrastive` and `loss_task`: see `Objective.loss`.
    """
    contrastive = supervised_contrastive_loss(projected, labels, temperature)
    task = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
    return {"loss": contrastive + task, "loss_contrastive": contrastive.detach(), "loss_task": task.detach()}


def supervised_contrastive_loss(features: Tensor, labels: Tensor, temperature: float = _BASE_TEMPERATURE) -> Tensor:
    """Draw features of one class together, against all others.

    Features are brought to length 1. For each, the log-probability of the others of its class, in the softmax over all
    but itself of the products by `temperature`, is averaged; one that has no other of its class counts as 0. The mean
    over all features is negated, and multiplied by temperature / 0.07 as in the authors' code.

    Args:
        features: [N, D], any floating dtype; computed in float32 at least.
        labels: [N] int64, there too.
        temperature: above 0.

    Returns:
        0-D.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.to(dtype), dim=1)
        logits = unit @ unit.t() / temperature
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    others = logits.masked_fill(itself, torch.finfo(dtype).min)
    log_p = logits - others.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    mean = log_p.where(positive, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return -(temperature / _BASE_TEMPERATURE) * mean.mean()


def add_projection(module: ViTClassifier | TextClassifier, width: int, seed: int) -> None:
    """Give a classifier a projection of its CLS or first token, D -> D -> ReLU -> `width`, new for `seed`.

    It is initialised as torch does it.
    """
    generator = torch.Generator().manual_seed(seed)
    inside = module.shape.encoder.width
    head = nn.Sequential(nn.Linear(inside, inside), nn.ReLU(), nn.Linear(inside, width)).to(module.classifier.weight)
    with torch.no_grad():
        for parameter in head.parameters():
            drawn = torch.empty(parameter.shape).uniform_(-(inside**-0.5), inside**-0.5, generator=generator)
            parameter.copy_(drawn)
    module.add_module("projection", head)


def drop_projection(module: ViTClassifier | TextClassifier) -> None:
    """Leave the classifier without the projection, if it has one."""
    if hasattr(module, "projection"):
        del module.projection


def without_projection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `drop_projection` leaves of a classifier's tensors."""
    return {name: value for name, value in state.items() if not name.startswith("projection.")}
