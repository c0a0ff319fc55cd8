"""The seam between the loop and a method."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor, nn

from sdfast.config import EngineConfig
from sdfast.data.order import Batch
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull

DecayRule = Literal["pretrain", "finetune"]  # which parameters weight decay acts on: see `sdfast.engine.optim`


@dataclass(frozen=True)
class Shortcuts:
    """What a step leaves out because it cannot change the result; each can be switched off to see that it does not.

    Attributes:
        packed: the masked and the clean view go through the encoder together, and their patches are embedded once.
        cls_tail: where only the CLS token is used, the encoder's last block computes nothing for the others.
        masked_tail: the decoder's last block and the pixel head compute nothing for visible patches (masks of a fixed
            count); for texts the encoder's last block and the language-model head nothing for visible tokens.
    """

    packed: bool = True
    cls_tail: bool = True
    masked_tail: bool = True


ALL_SHORTCUTS = Shortcuts()
SHORTCUTS = tuple(field.name for field in fields(Shortcuts))


def shortcuts(engine: EngineConfig) -> Shortcuts:
    """Those that are on; each has a key of its name."""
    return Shortcuts(**{name: getattr(engine, name) for name in SHORTCUTS})


class Objective(ABC):
    """A loss over batches of uint8 images or of token sequences, and the module that it trains.

    Attributes:
        module: what is trained and saved.
        decay_rule: which of its parameters are decayed.
        regularizer: what acts on the optimiser or after its step.
    """

    module: nn.Module
    decay_rule: DecayRule = "pretrain"
    regularizer: Pull | Mars | None = None

    @property
    def static(self) -> bool:
        """Whether `loss` can be captured as a graph: its shapes follow from the batch's size, its tensors stay where
        they are, and with batch and draw on the device it neither reads from it nor copies to it."""
        return False

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The named parameters that receive gradients: all."""
        yield from self.module.named_parameters()

    def announce(self, batch: Batch) -> None:  # noqa: B027 (most have nothing to fetch)
        """Say which batch will be asked for soon, so that what it needs can be fetched meanwhile."""

    @abstractmethod
    def draw(self, batch: Batch) -> Any:
        """What is random in this process's rows of a batch (masks, flips), drawn from their address."""

    @abstractmethod
    def loss(self, inputs: Any, batch: Batch, drawn: Any, part: slice, /) -> dict[str, Tensor]:
        """The contribution of some rows; those of all parts, over all processes, sum to the whole batch's loss.

        Args:
            inputs: the part's rows on the module's device: [b, H, W, C] uint8, or a `TokenBatch`.
            batch: the address of this process's rows.
            drawn: what `draw` returned for them.
            part: which of them.

        Returns:
            `loss` (0-D, with gradient) and the parts to log (0-D, detached).
        """


def micro_slices(batch_size: int, micro_batches: int) -> list[slice]:
    """Nearly equal consecutive parts of range(batch_size), none empty."""
    parts = min(micro_batches, batch_size)
    bounds = [batch_size * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
