"""What outputs are scored by, shown with and written as, for each kind of labels."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.config import ModalityName
from sdfast.data.pack_checks import first_names
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, ProblemType
from sdfast.evaluation.classification import (
    baseline_note,
    class_tables,
    classification_metrics,
    dev_metric,
    reported_metrics,
)
from sdfast.evaluation.votes import Means

HALF = 0.5  # the threshold where no split chose one
_THRESHOLDS = [percent / 100 for percent in range(1, 100)]


class Scoring(ABC):
    """One kind of labels.

    Attributes:
        voted: what the rows of one item, as tiles of a picture, are averaged in: see `sdfast.evaluation.votes.vote`.
        dev_scores: those of `metrics` that are kept of the val split with `finetune.best_dev`.
    """

    voted: ClassVar[Means]
    dev_scores: ClassVar[Sequence[str]]

    @abstractmethod
    def dev_metric(self, paper_metric: str | None, modality: ModalityName) -> str:
        """The metric that is reported first, and by which weights are chosen; the larger the better."""

    @abstractmethod
    def metrics(self, outputs: Tensor, labels: Tensor, threshold: float = HALF) -> dict[str, float]:
        """Everything that is known of some rows, with their mean `loss`.

        Args:
            outputs: [n, C] float32, on the CPU.
            labels: of the same rows, as `sdfast.data.problem` says, n > 0.
            threshold: probability from which on a class applies, where a row has several.
        """

    @abstractmethod
    def reported(self, scores: Mapping[str, float], classes: int) -> dict[str, float]:
        """Those of `metrics` that a stage and an evaluation report; the loss is `test_loss`."""

    @abstractmethod
    def tables(self, outputs: Tensor, labels: Tensor, names: Sequence[str], threshold: float = HALF) -> dict[str, Any]:
        """What comes out for each class or number, by the keys of `Result`."""

    @abstractmethod
    def note(self, labels: Tensor, names: Sequence[str]) -> str:
        """A sentence on what the scores are to be compared with."""

    @abstractmethod
    def columns(self, names: Sequence[str]) -> list[str]:
        """The header of the predictions, behind the name of the row."""

    @abstractmethod
    def cells(self, outputs: Tensor, labels: Tensor, names: Sequence[str], threshold: float) -> list[list[str]]:
        """The cells of the predictions, for each row."""

    def threshold(self, outputs: Tensor, labels: Tensor) -> float | None:
        """The threshold that does best on some rows; None where labels have none."""
        return None

    def predictions(
        self, files: Sequence[str], outputs: Tensor, labels: Tensor, names: Sequence[str], threshold: float
    ) -> str:
        """CSV with a row for each of `files`: its name, its label, and what is predicted."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file_name", *self.columns(names)])
        for file, cells in zip(files, self.cells(outputs, labels, names, threshold), strict=True):
            writer.writerow([file, *cells])
        return text.getvalue()


class OneClass(Scoring):
    """Rows of one class each."""

    voted = "softmax"
    dev_scores = ("accuracy", "macro_f1", "micro_f1", "loss")

    def dev_metric(self, paper_metric: str | None, modality: ModalityName) -> str:
        """The paper's, or accuracy of images and macro-F1 of texts."""
        return dev_metric(paper_metric, modality)

    def metrics(self, outputs: Tensor, labels: Tensor, threshold: float = HALF) -> dict[str, float]:
        """Those of `classification_metrics`."""
        return classification_metrics(outputs, labels)

    def reported(self, scores: Mapping[str, float], classes: int) -> dict[str, float]:
        """Those of `reported_metrics`."""
        return reported_metrics(scores, classes)

    def tables(self, outputs: Tensor, labels: Tensor, names: Sequence[str], threshold: float = HALF) -> dict[str, Any]:
        """Those of `class_tables`."""
        return class_tables(outputs, labels, names)

    def note(self, labels: Tensor, names: Sequence[str]) -> str:
        """That of `baseline_note`."""
        return baseline_note(labels, names)

    def columns(self, names: Sequence[str]) -> list[str]:
        """The class, the likeliest one, and its probability."""
        return ["label", "predicted", "probability"]

    def cells(self, outputs: Tensor, labels: Tensor, names: Sequence[str], threshold: float) -> list[list[str]]:
        """Names, and the probability with six digits."""
        probabilities, predicted = outputs.softmax(dim=1).max(dim=1)
        found = zip(labels.tolist(), predicted.tolist(), probabilities.tolist(), strict=True)
        return [[names[label], names[guess], f"{p:.6f}"] for label, guess, p in found]


class SeveralClasses(Scoring):
    """Rows of several classes each: labels [n, C] uint8, and a logit for each class."""

    voted = "sigmoid"
    dev_scores = ("mean_average_precision", "macro_f1", "micro_f1", "loss")

    def dev_metric(self, paper_metric: str | None, modality: ModalityName) -> str:
        """Mean average precision, which needs no threshold."""
        return "mean_average_precision"

    def metrics(self, outputs: Tensor, labels: Tensor, threshold: float = HALF) -> dict[str, float]:
        """Scores in [0, 1].

        Returns:
            `mean_average_precision`, the mean of that of each class which has a row; `macro_f1` over the classes that
            have a row or are predicted, `macro_f1_classes` of them; `micro_f1`; `subset_accuracy`, the share of rows of
            which all classes are right; `threshold`; and `loss`, the mean binary cross-entropy over rows and classes.
        """
        from torchmetrics.functional import classification as each

        labels, count = labels.long(), labels.shape[1]
        chosen, having = (outputs.double().sigmoid() >= threshold).long(), labels.any(dim=0)
        precisions, occurring = self._average_precisions(outputs, labels), self._occurring(chosen, labels)
        return {
            "mean_average_precision": float(precisions[having].mean()) if having.any() else 0.0,
            "macro_f1": self._macro_f1(chosen, labels),
            "micro_f1": float(each.multilabel_f1_score(chosen, labels, count, average="micro")),
            "subset_accuracy": float((chosen == labels).all(dim=1).double().mean()),
            "threshold": threshold,
            "loss": float(F.binary_cross_entropy_with_logits(outputs, labels.to(outputs.dtype))),
            "macro_f1_classes": float(occurring.sum()),
        }

    def reported(self, scores: Mapping[str, float], classes: int) -> dict[str, float]:
        """All; of macro-F1's classes only fewer."""
        names = ["mean_average_precision", "macro_f1", "micro_f1", "subset_accuracy", "threshold"]
        names += ["macro_f1_classes"] * (scores["macro_f1_classes"] < classes)
        return {**{name: scores[name] for name in names}, "test_loss": scores["loss"]}

    def tables(self, outputs: Tensor, labels: Tensor, names: Sequence[str], threshold: float = HALF) -> dict[str, Any]:
        """`per_class`, by name: `precision`, `recall` and `f1` at the threshold, `average_precision`, and `support`."""
        from torchmetrics.functional import classification as each

        chosen, labels, count = (outputs.double().sigmoid() >= threshold).long(), labels.long(), len(names)
        scores = zip(
            each.multilabel_precision(chosen, labels, count, average="none").reshape(-1).tolist(),
            each.multilabel_recall(chosen, labels, count, average="none").reshape(-1).tolist(),
            each.multilabel_f1_score(chosen, labels, count, average="none").reshape(-1).tolist(),
            self._average_precisions(outputs, labels).tolist(),
            labels.sum(dim=0).tolist(),
            strict=True,
        )
        keys = ("precision", "recall", "f1", "average_precision", "support")
        found = {name: dict(zip(keys, values, strict=True)) for name, values in zip(names, scores, strict=True)}
        return {"per_class": found}

    def note(self, labels: Tensor, names: Sequence[str]) -> str:
        """What guessing gives, and which classes have no row."""
        shares = labels.double().mean(dim=0)
        having = shares > 0
        note = f"by chance: mean average precision {float(shares[having].mean()) if having.any() else 0:.4f}"
        absent = [name for name, there in zip(names, having.tolist(), strict=True) if not there]
        if not absent:
            return note
        return f"{note}; it is over fewer classes, as {len(absent)} of {len(names)} have no row: {first_names(absent)}"

    def columns(self, names: Sequence[str]) -> list[str]:
        """The classes, those predicted, and the probability of each of all."""
        return ["labels", "predicted", *names]

    def cells(self, outputs: Tensor, labels: Tensor, names: Sequence[str], threshold: float) -> list[list[str]]:
        """Classes as JSON lists, probabilities with six digits."""
        probabilities = outputs.double().sigmoid()

        def listed(row: Sequence[bool]) -> str:
            return json.dumps([name for name, there in zip(names, row, strict=True) if there], ensure_ascii=False)

        found = zip(labels.bool().tolist(), (probabilities >= threshold).tolist(), probabilities.tolist(), strict=True)
        return [[listed(row), listed(guess), *(f"{p:.6f}" for p in each)] for row, guess, each in found]

    def threshold(self, outputs: Tensor, labels: Tensor) -> float | None:
        """That of 0.01, 0.02, ... 0.99 with the highest macro-F1; of equal ones the nearest to 0.5."""
        probabilities, labels = outputs.double().sigmoid(), labels.long()
        scores = {each: self._macro_f1((probabilities >= each).long(), labels) for each in _THRESHOLDS}
        return max(scores, key=lambda each: (scores[each], -abs(each - HALF)))

    @staticmethod
    def _occurring(chosen: Tensor, labels: Tensor) -> Tensor:
        """[C] bool: which classes have a row or are predicted."""
        return (chosen | labels).bool().any(dim=0)

    def _macro_f1(self, chosen: Tensor, labels: Tensor) -> float:
        """That of predictions and labels [n, C] int64, over the classes that occur."""
        from torchmetrics.functional.classification import multilabel_f1_score

        occurring = self._occurring(chosen, labels)
        each = multilabel_f1_score(chosen, labels, labels.shape[1], average="none").reshape(-1)
        return float(each[occurring].mean()) if occurring.any() else 0.0

    @staticmethod
    def _average_precisions(outputs: Tensor, labels: Tensor) -> Tensor:
        """[C]: of each class, 0 for one without a row."""
        from torchmetrics.functional.classification import binary_average_precision

        probabilities = outputs.double().sigmoid()
        found = [
            binary_average_precision(p, own).item() if own.any() else 0.0
            for p, own in zip(probabilities.t(), labels.long().t(), strict=True)
        ]
        return torch.tensor(found, dtype=torch.float64)


class Numbers(Scoring):
    """Rows of numbers: labels and outputs [n, K], in the units of the data."""

    voted = "output"
    dev_scores = ("r2", "mse", "mae", "spearman", "loss")

    def dev_metric(self, paper_metric: str | None, modality: ModalityName) -> str:
        """R2."""
        return "r2"

    def metrics(self, outputs: Tensor, labels: Tensor, threshold: float = HALF) -> dict[str, float]:
        """Means over the numbers of what `tables` has for each; `loss` is `mse`."""
        each = self._scores(outputs, labels)
        found = {name: float(values.mean()) for name, values in each.items()}
        return {**found, "loss": found["mse"]}

    def reported(self, scores: Mapping[str, float], classes: int) -> dict[str, float]:
        """All."""
        return {**{name: value for name, value in scores.items() if name != "loss"}, "test_loss": scores["loss"]}

    def tables(self, outputs: Tensor, labels: Tensor, names: Sequence[str], threshold: float = HALF) -> dict[str, Any]:
        """`per_output`, by name: `mse`, `rmse`, `mae`, and of at least two rows `r2` and `spearman`.

        R2 of rows with one number is 0, or 1 where they are met; the rank correlation of constant outputs is 0.
        """
        each = self._scores(outputs, labels)
        return {
            "per_output": {
                name: {score: float(values[place]) for score, values in each.items()}
                for place, name in enumerate(names)
            }
        }

    def note(self, labels: Tensor, names: Sequence[str]) -> str:
        """What always answering the mean gives."""
        return (
            f"always the mean of the test rows: mse {float(labels.double().var(dim=0, correction=0).mean()):.6g}, r2 0"
        )

    def columns(self, names: Sequence[str]) -> list[str]:
        """Label and prediction of each number; the names where there are several."""
        if len(names) == 1:
            return ["label", "predicted"]
        return [f"{what}_{name}" for what in ("label", "predicted") for name in names]

    def cells(self, outputs: Tensor, labels: Tensor, names: Sequence[str], threshold: float) -> list[list[str]]:
        """Numbers with up to nine digits: those of float32."""
        found = zip(labels.tolist(), outputs.tolist(), strict=True)
        return [[f"{value:.9g}" for value in (*label, *output)] for label, output in found]

    @staticmethod
    def _scores(outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """[K] float64 of each score."""
        from torchmetrics.functional import regression as each

        guess, right = outputs.double(), labels.double()
        count = right.shape[1]
        mse = (guess - right).square().mean(dim=0)
        found = {"mse": mse, "rmse": mse.sqrt(), "mae": (guess - right).abs().mean(dim=0)}
        if len(right) < 2:
            return found
        spread = right.std(
            dim=0, correction=0
        )  # torchmetrics takes small numbers for equal: it is given standardised ones
        near, wanted = ((part - right.mean(dim=0)) / torch.where(spread > 0, spread, 1.0) for part in (guess, right))
        r2 = each.r2_score(near, wanted, multioutput="raw_values").reshape(count)
        ranks = [
            float(each.spearman_corrcoef(guess[:, place], right[:, place]))
            if min(len(guess[:, place].unique()), len(right[:, place].unique())) > 1
            else 0.0
            for place in range(count)
        ]
        return {**found, "r2": r2, "spearman": torch.tensor(ranks, dtype=torch.float64)}


SCORING: Mapping[ProblemType, Scoring] = {SINGLE: OneClass(), SEVERAL: SeveralClasses(), REGRESSION: Numbers()}
