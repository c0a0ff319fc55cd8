"""Further pre-training and self-distillation: one masked view, with or without a teacher to match."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.models.base import Layer, MaskedModel, Tokens
from sdfast.objectives.base import ALL_SHORTCUTS, Objective, Shortcuts
from sdfast.teacher.targets import Targets, Teacher

NO_TARGETS = Targets(None)


@dataclass(frozen=True)
class MaskedRows:
    """Some rows of a batch, as an objective that masks sees them.

    Attributes:
        clean: the rows unmasked, on the device: [b, C, H, W] pixels, or a `TokenBatch`.
        mask: their masks, with what the encoder sees of them on the device.
        drawn: the masks of all of this process's rows of the batch.
        batch: the address of the batch.
    """

    clean: Any
    mask: Any
    drawn: Any
    batch: Batch


@dataclass(frozen=True)
class Match:
    """What of a student is drawn to which targets, and the weight of their distance, a mean over what is matched."""

    student: Tensor | None = None
    targets: Targets = NO_TARGETS
    weight: float = 0.0


class MaskedViews(Protocol):
    """What images or texts give to the objectives that mask them: two views, and the loss of reconstruction.

    Attributes:
        part: the name of the reconstruction's part of the loss.
        head: the part of a module that reconstructs, and `after_blocks` those of its encoder that follow the blocks.
    """

    part: str
    head: str
    after_blocks: tuple[str, ...]

    @property
    def static(self) -> bool:
        """Whether the masked view's shapes follow from the batch's size."""

    def draw(self, module: Any, seed: int, batch: Batch) -> Any:
        """The masks of a batch, on the CPU, where their counts are known without waiting for a device."""

    def clean(self, inputs: Any, rows: Tensor, epoch: int) -> Any:
        """What student and teacher see of some rows, unmasked: see `MaskedRows`."""

    def encode(
        self, module: Any, rows: MaskedRows, masked: bool, match: tuple[Tokens, Layer] | None, taken: Shortcuts
    ) -> tuple[Any, Tensor | None]:
        """Send one view or both through a module.

        Args:
            module: the encoder's.
            rows: what is encoded.
            masked: whether the masked view is wanted.
            match: which tokens after which layer are wanted of the clean view; None for none.
            taken: which shortcuts are.

        Returns:
            the reconstruction, None without the masked view; and the matched tokens, [B, D] or [B, N, D] (of all tokens
            of texts [T, D]), None without the clean one.
        """

    def losses(
        self, module: Any, rows: MaskedRows, predicted: Any, weight: float, match: Match
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The loss of a reconstruction (None for none), as a share of the whole batch's, and of matched features.

        Returns:
            the weighted sum of both, with gradient; the reconstruction's share; and the mean distance of the features.
        """

    def distances(
        self,
        modules: tuple[Any, Any],
        predicted: tuple[Any, Any],
        rows: MaskedRows,
        compared: str,
        reduction: str,
        weights: tuple[float, float],
        tail: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The distance of a student's reconstruction from a teacher's, and the student's own loss.

        Args:
            modules: student and teacher.
            predicted: the reconstruction of each.
            rows: what both reconstructed.
            compared, reduction: see `PredictionMatching`.
            weights: of the reconstruction's loss and of the distance.
            tail: whether what is not masked is left out of the reconstruction's loss.

        Returns:
            as `losses`, with the distance's share of the whole batch's.
        """


class MaskedTraining(Objective):
    """Minimise `mae_weight * L_MAE + weight * L_Distill` (equations 2 and 3; fidelity 9.5, and 3.2 and 3.3 of texts).

    L_MAE is the reconstruction of what is masked: of pixels, or of words (then called `loss_mlm`). Without a teacher
    this is further pre-training. With one, the student's encoder also sees the clean input, and the chosen tokens of
    the chosen layer are drawn to the teacher's: squared distance, summed over features (of texts over tokens too), mean
    over the batch. Masks are keyed by (seed, epoch, row).
    """

    def __init__(
        self,
        module: MaskedModel,
        views: MaskedViews,
        seed: int,
        teacher: Teacher | None = None,
        tokens: Tokens = "cls",
        layer: Layer = "last",
        mae_weight: float = 1.0,
        weight: float = 1.0,
        head_only: bool = False,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
    ) -> None:
        """Set up the objective.

        Args:
            module: what is trained.
            views: what images or texts give: `MaskedImages` or `MaskedTexts`.
            seed: of the masks.
            teacher: where the targets come from; None for none, as where `weight` is 0.
            tokens, layer: what is matched.
            mae_weight, weight: of the two losses.
            head_only: train a new head alone; the encoder, which is frozen, stays as it is.
            shortcuts: which are taken.
        """
        self.module: MaskedModel = module
        self.views, self.seed = views, seed
        self.teacher, self.tokens, self.layer = teacher if weight else None, tokens, layer
        self.mae_weight, self.weight = mae_weight, weight
        self.head_only, self.shortcuts = head_only, shortcuts
        if head_only:
            module.encoder.requires_grad_(False)

    @property
    def static(self) -> bool:
        """Neither masks nor targets have sizes or places of their own."""
        return self.views.static and (self.teacher is None or self.teacher.static)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Encoder and head; only as far as the matched layer when the masked part is switched off."""
        unused: tuple[str, ...] = () if self.mae_weight else (f"{self.views.head}.",)
        if unused and self.layer != "last":
            after = range(self.layer, len(self.module.encoder.blocks))
            unused += (*self.views.after_blocks, *(f"encoder.blocks.{number}." for number in after))
        if self.head_only:
            unused = ("encoder.",)
        for name, parameter in self.module.named_parameters():
            if not name.startswith(unused):
                yield name, parameter

    def announce(self, batch: Batch) -> None:
        """The teacher may fetch its targets meanwhile."""
        if self.teacher is not None:
            self.teacher.announce(batch.rows, batch.epoch)

    def draw(self, batch: Batch) -> Any:
        """The masks of the batch."""
        return self.views.draw(self.module, self.seed, batch)

    def loss(self, inputs: Any, batch: Batch, drawn: Any, part: slice) -> dict[str, Tensor]:
        """The rows' share of the batch's loss; the parts are `loss_mae` (of texts `loss_mlm`) and `loss_distill`."""
        rows = self._rows(inputs, batch, drawn, part)
        wanted = None if self.teacher is None else (self.tokens, self.layer)
        predicted, student = self.views.encode(self.module, rows, bool(self.mae_weight), wanted, self.shortcuts)
        match, share = Match(), 0.0
        if student is not None and self.teacher is not None:
            targets = self.teacher.targets(rows.clean, batch.rows[part], batch.epoch)
            # The mean over rows that the loss takes becomes the sum over this part's, as a share of the batch's.
            share = len(student) / batch.count
            match = Match(student, targets, self.weight * share)
        loss, masked, distance = self.views.losses(self.module, rows, predicted, self.mae_weight, match)
        parts = {"loss": loss}
        if masked is not None:
            parts[self.views.part] = masked
        if student is not None:
            parts["loss_distill"] = distance * share
        return parts

    def _rows(self, inputs: Any, batch: Batch, drawn: Any, part: slice) -> MaskedRows:
        clean = self.views.clean(inputs, batch.rows[part], batch.epoch)
        return MaskedRows(clean, drawn[part].seen_on(clean.device), drawn, batch)
