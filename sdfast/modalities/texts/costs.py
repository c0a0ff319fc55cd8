"""What a step on texts asks of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from sdfast.costs.measure import flops_of_one, once
from sdfast.costs.task import Flops, Step, Task, hollow, weights_of
from sdfast.data.order import Batch
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.masking import TokenMask, TokenMasking
from sdfast.modalities.texts.model import NO_DROPOUT, Dropouts, TextShape
from sdfast.modalities.texts.modern import masked_model, text_classifier
from sdfast.modalities.texts.objectives import LabelledTexts, MaskedTexts
from sdfast.objectives.choose import classifier_objective, masked_objective

_TOKEN_BYTES = 4  # of an id in a pack
_TEXT = 64  # tokens of a text of which memory is measured: it grows with all tokens, whatever texts they are of


@dataclass(frozen=True)
class TextTask(Task):
    """A stage on texts; the largest have the greatest length that is allowed, masked at the run's rate.

    Attributes:
        dropouts: of the model before `finetune`, which has a setting of its own.
    """

    shape: TextShape
    dropouts: Dropouts = NO_DROPOUT
    features = 1

    @override
    def step(self, examples: int) -> Step:
        return text_step(self, [self.size] * examples, [max(1, self._masked(self.size))] * examples)

    @property
    @override
    def size(self) -> int:
        return min(_TEXT, self.shape.longest)

    @property
    @override
    def tokens(self) -> int:
        return min(self.config.data.max_length, self.shape.longest)

    @override
    def flops(self, checkpointing: bool = False) -> Flops:
        return text_flops(self, [self.tokens], [self._masked(self.tokens)], checkpointing)

    @property
    @override
    def example(self) -> int:
        return _TOKEN_BYTES * self.tokens

    def _masked(self, tokens: int) -> int:
        return round(self.config.pretrain.word_ratio * tokens)

    @property
    @override
    def more(self) -> str:
        return repr(self.dropout)

    @property
    def dropout(self) -> Dropouts:
        """Dropout in this stage, as far as something is kept of it: see `flash`."""
        own = self.config.finetune.dropout
        given = Dropouts(own, own) if self.stage == "finetune" else self.dropouts
        return replace(given, attention=0.0) if self.flash else given


def text_step(task: TextTask, lengths: Sequence[int], masked: Sequence[int] = ()) -> Step:
    """A step on texts of so many tokens each, of which so many are masked (none in `finetune`)."""
    shape, config, batch = task.shape, task.config, Batch(0, torch.arange(len(lengths)))
    texts = TokenBatch(torch.zeros(sum(lengths), dtype=torch.int64), torch.tensor(lengths))
    if task.stage == "finetune":
        classifier = hollow(text_classifier, shape, task.classes, task.dropout)
        labels = torch.zeros(len(lengths), dtype=torch.int64)
        return Step(classifier_objective(classifier, LabelledTexts(), labels, task.unanchored, 0), texts, None, batch)
    rows = len(texts.ids) if config.distill.tokens == "all" else len(texts)
    teacher = task.teacher(masked_model, rows, shape.encoder.width)
    module = hollow(masked_model, shape, task.dropout)
    masking = TokenMasking(0, shape.vocabulary, (), config.pretrain.word_ratio)
    views = MaskedTexts(lambda rows: (texts.ids, texts.lengths), masking, config.pretrain.mean)
    objective = masked_objective(module, views, config, task.stage, 0, teacher)
    places = [first + torch.arange(some) for first, some in zip(texts.first.tolist(), masked, strict=True)]
    labels = torch.zeros(sum(masked), dtype=torch.int64)
    mask = TokenMask(texts, torch.cat(places), labels, torch.tensor(masked))
    return Step(objective, texts, mask, batch, weights_of(teacher, task))


def text_flops(task: TextTask, lengths: Sequence[int], masked: Sequence[float], checkpointing: bool = False) -> Flops:
    """FLOPs of a step on some texts together.

    Of blocks with a window the pairs within it are counted, but for the last block and an inner layer's features.

    Args:
        task: what is measured.
        lengths: tokens of each text, L.
        masked: masked tokens of each, or their mean, m; not for `finetune`.
        checkpointing: see `Task.flops`.
    """
    tokens, hidden = np.asarray(lengths, float), np.asarray(masked if len(masked) else np.zeros(len(lengths)), float)
    of_texts = _text_terms(tokens, hidden) @ _text_polynomial(task, checkpointing)
    how, depth = task.shape.pre_norm, task.shape.encoder.depth
    local = 0 if how is None else sum(how.is_local(block) for block in range(depth - 1))
    if how is not None and local and tokens.size and tokens.max() > how.window + 1:
        further = [_text_polynomial(task.of_depth(each), checkpointing) for each in (depth + 1, depth)]
        beyond = (tokens - how.window - 1).clip(min=0) * (tokens - how.window)  # pairs that do not see each other
        of_texts = of_texts - local * beyond[:, None] * (further[0] - further[1])[2]
    return Flops(*of_texts.sum(axis=0).tolist())


def _text_polynomial(task: TextTask, checkpointing: bool) -> NDArray[np.float64]:
    """[5, 2], the two FLOPs of a text: factors of `_text_terms`, which are whole numbers, from so many texts."""
    roomy = replace(task, shape=replace(task.shape, positions=task.shape.positions + 4))  # a table costs no FLOP
    masks = task.stage != "finetune"

    def count(length: int, some: int) -> NDArray[np.int64]:
        return flops_of_one(roomy, lambda task, n: text_step(task, [length] * n, [some] * n), checkpointing)

    def find() -> NDArray[np.float64]:
        points = [(2, 1), (3, 1), (4, 1), (2, 2), (4, 2)] if masks else [(2, 0), (3, 0), (4, 0)]
        found = np.array([count(*at) for at in points], float)
        terms = _text_terms(*np.array(points, float).T)[:, : len(points)]
        return np.pad(np.linalg.solve(terms, found).round(), ((0, 5 - len(points)), (0, 0)))

    return once(("flops", task.key, checkpointing), find)


def _text_terms(tokens: NDArray[np.float64], masked: NDArray[np.float64]) -> NDArray[np.float64]:
    """[texts, 5]: what the FLOPs of a text of L tokens, of which m are masked, are a sum of."""
    return np.stack([np.ones_like(tokens), tokens, tokens**2, masked, masked * tokens], axis=1)
