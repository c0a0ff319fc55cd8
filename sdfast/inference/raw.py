"""What a linear classifier says of the raw input: the score that a model has to be worth more than.

It is taught by the rows that fine-tuning is taught by and scored on those it is evaluated on, and no model is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdfast.config import Config
from sdfast.context import Modality, rows_of
from sdfast.data.problem import REGRESSION, ProblemType
from sdfast.durable import sha256_array, sha256_json
from sdfast.evaluation.classification import evaluation_split, labelled_rows, labels_of
from sdfast.evaluation.scoring import SCORING
from sdfast.inference.linear import linear_classifier

MOST_TRAIN, MOST_TEST = 2000, 10_000  # rows; of more a choice
_ROWS = 1024  # of test at a time
_VERSION = 1  # of what is computed


@dataclass(frozen=True)
class Sample:
    """The rows that teach and the rows that score.

    Attributes:
        pack: that they are in.
        train, test: [n] int64, of its train split and of the split that fine-tuning is evaluated on.
        limits: sentences where these are a choice of the rows that fine-tuning has.
    """

    pack: Any
    train: Tensor
    test: Tensor
    limits: tuple[str, ...]

    def fingerprint(self, modality: Modality, config: Config) -> str:
        """Digest of all that decides the metrics."""
        found: list[Any] = [_VERSION, modality.name, config.data.chunk_votes, self.pack.problem, self.pack.class_names]
        for split, rows in ((self.pack.split("train"), self.train), (evaluation_split(self.pack)[1], self.test)):
            chosen = rows.numpy()
            arrays = split.digests[chosen], split.choice_digests[chosen], labels_of(split)[chosen]
            found += [sha256_array(each) for each in arrays]
        return sha256_json(found)


def sample_of(pack: Any, config: Config) -> Sample:
    """The rows of a run whose train and test split have labels; of large sets a choice, stratified as limits are."""
    train, (_, test) = pack.split("train"), evaluation_split(pack)
    taught, scored, limits = rows_of(train, config, "finetune"), labelled_rows(test), []
    if (count := len(taught)) > MOST_TRAIN:
        taught = labelled_rows(train, torch.from_numpy(train.limited(MOST_TRAIN, config.data.limit_seed)))
        limits.append(f"taught by {len(taught):,} of {count:,} rows")
    if (count := len(scored)) > MOST_TEST:
        scored = labelled_rows(test, torch.from_numpy(test.limited(MOST_TEST, config.data.limit_seed)))
        limits.append(f"scored on {len(scored):,} of {count:,}")
    return Sample(pack, taught, scored, tuple(limits))


def raw_metrics(sample: Sample, modality: Modality, config: Config, companions: Any) -> dict[str, float]:
    """What a linear classifier on the raw input scores (see `linear_classifier`), computed on the CPU.

    Args:
        sample: rows.
        modality: of them.
        config: of the run.
        companions: what lies beside the model (`Classifier.companions`), such as a tokenizer.

    Returns:
        The metrics of `sdfast.evaluation.scoring`, as a stage reports them.

    Raises:
        UserError: nothing in the rows can be compared (see `Modality.raw_input`).
    """
    pack = sample.pack
    train, test, problem, classes = pack.split("train"), evaluation_split(pack)[1], pack.problem, len(pack.class_names)
    raw = modality.raw_input(pack, sample.train, config, companions)
    labels = torch.from_numpy(labels_of(train))[sample.train]
    answer = linear_classifier(
        raw.read(train, sample.train), labels, problem, classes, raw.strength, standardised=False
    )
    outputs = torch.cat([answer(raw.read(test, some)) for some in sample.test.split(_ROWS)])
    scoring = SCORING[problem]
    return scoring.reported(scoring.metrics(outputs, torch.from_numpy(labels_of(test))[sample.test]), classes)


def named(problem: ProblemType, modality: Modality) -> str:
    """What the classifier is called in sentences."""
    return f"{'linear' if problem == REGRESSION else 'logistic'} regression on the {modality.raw}"
