"""Data that are drawn and held in memory: what stages are timed and counted on, where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.problem import SINGLE, ProblemType
from sdfast.modalities.images.bands import WHITE
from sdfast.modalities.texts.tokenization import Tokenization


@dataclass(frozen=True)
class DrawnSplit:
    """Rows as the stages see them, all of one split; labels take turns.

    Attributes:
        count: of the rows.
        classes: of their labels.
    """

    count: int
    classes: int

    def __len__(self) -> int:
        return self.count

    @property
    def labels(self) -> NDArray[np.int64]:
        """A class for each row: [n] int64."""
        return np.arange(self.count) % self.classes

    @property
    def digests(self) -> NDArray[np.uint8]:
        """[n, 32] uint8: one number a row."""
        return np.arange(32 * self.count, dtype=np.int64).astype(np.uint8).reshape(self.count, 32)

    def limited(self, limit: int | None, seed: int) -> NDArray[np.int64]:
        """[n] int64: the first `limit` rows; None gives all."""
        return np.arange(self.count if limit is None else min(limit, self.count))


@dataclass(frozen=True)
class DrawnImages(DrawnSplit):
    """Images of drawn pixels.

    Attributes:
        images: [n, H, W, C], in the type of a pack.
    """

    images: NDArray[Any]

    @classmethod
    def of(
        cls, count: int, size: tuple[int, int], channels: int, classes: int = 10, kind: str = "uint8"
    ) -> DrawnImages:
        """Every pixel by itself, the same in every process; `kind` is the type of a pixel."""
        pixels = torch.randint(
            0, 256, (count, *size, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        drawn = pixels.numpy()
        return cls(count, classes, drawn if kind == "uint8" else (drawn * (WHITE[kind] / 255)).astype(kind))


@dataclass(frozen=True)
class DrawnTexts(DrawnSplit):
    """Texts of drawn words.

    Attributes:
        ids: [T] int64, one text after the other.
        lengths: [n] int64, tokens of each; their sum is T.
    """

    ids: Tensor
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, lengths: Sequence[int], words: tuple[int, int], classes: int = 10) -> DrawnTexts:
        """Every word by itself, from a range of ids."""
        ids = torch.randint(*words, (sum(lengths),), generator=torch.Generator().manual_seed(1))
        return cls(len(lengths), classes, ids, np.asarray(lengths, dtype=np.int64))

    def tokens(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """ids [T] int64 and lengths [B] int64 of some texts, rows [B] int64."""
        texts = self.ids.split(self.lengths.tolist())
        return torch.cat([texts[row] for row in rows.tolist()]), torch.from_numpy(self.lengths)[rows]


@dataclass(frozen=True)
class DrawnPack:
    """A pack of one split.

    Attributes:
        train: its rows.
        tokenization: of texts.
        problem: what the labels are.
        manifest: names no data set of the paper.
    """

    train: DrawnSplit
    tokenization: Tokenization | None = None
    levels: None = None
    problem: ProblemType = SINGLE
    manifest: dict[str, Any] = field(default_factory=lambda: {"source": {"name": "drawn", "kind": "drawn"}})

    @property
    def splits(self) -> dict[str, DrawnSplit]:
        """The splits by name: `train` alone."""
        return {"train": self.train}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes: their numbers."""
        return [str(label) for label in range(self.train.classes)]

    def split(self, name: str) -> DrawnSplit:
        """The split of that name."""
        return self.splits[name]
