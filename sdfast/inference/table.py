"""Predictions as a table: a row for each row of the data, the same columns in parquet and in csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sdfast.data.items import Source
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, ProblemType
from sdfast.inference.rows import Held, label_words

if TYPE_CHECKING:
    import pyarrow as pa

MOST_COLUMNS = 1000  # of probabilities in a parquet file; of more classes it has one column with a list
CSV_COLUMNS = 20  # of probabilities in a csv file where nobody asks for them
PROBABILITY = "probability_"


@dataclass(frozen=True)
class Layout:
    """What columns there are.

    Attributes:
        problem: of the model.
        names: of its classes, or of its numbers.
        threshold: probability from which on a class applies, where a row has several.
        top: how many of the likeliest classes are named, where a row has one.
        split: whether the source has several splits.
    """

    problem: ProblemType
    names: Sequence[str]
    threshold: float
    top: int
    split: bool

    def table(self, held: Held, outputs: Tensor, source: Source) -> pa.Table:
        """Some rows.

        Args:
            held: the rows.
            outputs: [n, C] float32, what the model gives.
            source: of the rows.
        """
        import pyarrow as pa

        return pa.table({**known_columns(held, source, self.split), **self._predicted(outputs)})

    def _predicted(self, outputs: Tensor) -> dict[str, Any]:
        import pyarrow as pa

        if self.problem == REGRESSION:
            titles = ["predicted"] if len(self.names) == 1 else [f"predicted_{name}" for name in self.names]
            return {title: pa.array(outputs[:, place].numpy()) for place, title in enumerate(titles)}
        if self.problem == SEVERAL:
            probabilities = outputs.double().sigmoid()
            chosen = [_above(row, self.threshold) for row in probabilities.tolist()]
            named = [[self.names[place] for place in row] for row in chosen]
            shares = [
                [row[place] for place in places] for row, places in zip(probabilities.tolist(), chosen, strict=True)
            ]
            found = {"predicted": pa.array(named, pa.list_(pa.string()))}
            found["confidence"] = pa.array(shares, pa.list_(pa.float32()))
            return found | self._probabilities(probabilities.float())
        probabilities = outputs.softmax(dim=1)
        most = probabilities.topk(min(self.top, len(self.names)), dim=1)
        found = {}
        for place in range(most.values.shape[1]):
            ending = "" if place == 0 else f"_{place + 1}"
            guesses = [self.names[number] for number in most.indices[:, place].tolist()]
            found[f"predicted{ending}"] = pa.array(guesses, pa.string())
            found[f"confidence{ending}"] = pa.array(most.values[:, place].numpy())
        return found | self._probabilities(probabilities)

    def _probabilities(self, probabilities: Tensor) -> dict[str, Any]:
        import pyarrow as pa

        if len(self.names) <= MOST_COLUMNS:
            each = probabilities.t().contiguous()
            return {f"{PROBABILITY}{name}": pa.array(each[place].numpy()) for place, name in enumerate(self.names)}
        flat = pa.array(probabilities.contiguous().flatten().numpy())
        return {"probabilities": pa.FixedSizeListArray.from_arrays(flat, len(self.names))}


def known_columns(held: Held, source: Source, split: bool) -> dict[str, Any]:
    """What is known of rows beforehand: their names, their splits where there are several, labels where there are any.

    Args:
        held: the rows.
        source: of them.
        split: whether the source has several splits.
    """
    import pyarrow as pa

    text = pa.string()
    columns: dict[str, Any] = {"name": pa.array([_clean(name) for name in held.names], text)}
    if split:
        columns["split"] = pa.array(held.splits, text)
    if source.class_names is not None:
        number = pa.float32() if len(source.class_names) == 1 else pa.list_(pa.float32())
        kind = {SINGLE: text, SEVERAL: pa.list_(text), REGRESSION: number}[source.problem]
        columns["label"] = pa.array([label_words(source, label) for label in held.labels], kind)
    return columns


def _above(row: list[float], threshold: float) -> list[int]:
    """The classes that apply, the likeliest first."""
    return sorted((place for place, value in enumerate(row) if value >= threshold), key=lambda place: -row[place])


def _clean(name: str) -> str:
    """A name that parquet can hold: bytes of a file's name that are no UTF-8 are shown as such."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def csv_columns(names: Sequence[str], probabilities: bool) -> list[str]:
    """Those of a table that go into a csv file."""
    return [name for name in names if probabilities or not name.startswith("probabilit")]


def csv_rows(table: pa.Table) -> Iterator[list[str]]:
    """The cells of a table: probabilities with six digits, numbers with nine, lists as JSON."""
    cells = []
    for name in table.column_names:
        digits = "{:.6f}" if name.startswith(("confidence", "probabilit")) else "{:.9g}"
        cells.append([_cell(value, digits) for value in table.column(name).to_pylist()])
    return map(list, zip(*cells, strict=True))


def _cell(value: Any, digits: str) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return digits.format(value)
    if isinstance(value, list):
        parts = [float(digits.format(part)) if isinstance(part, float) else part for part in value]
        return json.dumps(parts, ensure_ascii=False)
    return str(value)


def csv_writer(file: Any) -> Any:
    """As all csv files of sdfast are written."""
    return csv.writer(file, lineterminator="\n")
