"""Which rows evidence is of: chosen once by content, the same for every stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdfast.context import Context
from sdfast.data.problem import SINGLE, has_label
from sdfast.durable import sha256_array
from sdfast.evaluation.classification import evaluation_split

_SEED = 22  # of the choice


@dataclass(frozen=True)
class Chosen:
    """Some rows of a split.

    Attributes:
        name: of the split.
        split: it.
        items: [n] int64 on the CPU, rows of it.
        seen: what a model sees of it, and [n] int64 `rows` of that: of a picture in tiles the first tile.
    """

    name: str
    split: Any
    items: Tensor
    seen: Any
    rows: Tensor

    def __len__(self) -> int:
        return len(self.items)

    @property
    def digest(self) -> str:
        """SHA-256 of the content of the rows."""
        return sha256_array(self.split.digests[self.items.numpy()])

    @property
    def names(self) -> list[str]:
        """The names of the rows in their source, as far as they can be shown."""
        return [shown_name(self.split.names[item]) for item in self.items.tolist()]

    @property
    def labels(self) -> np.ndarray[Any, Any] | None:
        """The labels of the rows, see `sdfast.data.problem`; None where the split has none."""
        return None if self.split.labels is None else self.split.labels[self.items.numpy()]

    def label_words(self, context: Context) -> list[str | None]:
        """The class of each row; None where it has none, or labels are no single classes."""
        labels, names = self.labels, context.pack.class_names
        if labels is None or names is None or context.pack.problem != SINGLE:
            return [None] * len(self)
        return [names[label] if label >= 0 else None for label in labels.tolist()]


def choose(context: Context, count: int) -> Chosen:
    """So many rows of the split that fine-tuning is evaluated on, or of train where there is none; all if fewer.

    They are stratified by label, and go by content.
    """
    name, split = "train", context.train
    if {"test", "val"} & set(context.pack.splits):
        name, split = evaluation_split(context.pack)
    items = torch.from_numpy(split.limited(count, _SEED))
    return chosen_rows(context, name, split, items)


def labelled(context: Context, most: int) -> Chosen:
    """The rows of the test split that have a label; of more than `most` so many, chosen likewise."""
    name, split = evaluation_split(context.pack)
    known = np.asarray(has_label(split.labels)) if split.labels is not None else np.zeros(len(split), bool)
    items = np.flatnonzero(known)
    if len(items) > most:
        some = split.limited(most, _SEED)
        items = some[known[some]]
    return chosen_rows(context, name, split, torch.from_numpy(items))


def chosen_rows(context: Context, name: str, split: Any, items: Tensor) -> Chosen:
    """Rows of a split, and the first of what a model sees of each."""
    view = context.modality.voting(context.pack, split, context.config)
    if view is None:
        return Chosen(name, split, items, split, items)
    return Chosen(name, split, items, view, torch.from_numpy(np.searchsorted(view.item_of, items.numpy())))


def shown_name(name: str) -> str:
    """A name as text: what a file system has that is no text becomes a question mark."""
    return name.encode("utf-8", "replace").decode("utf-8")
