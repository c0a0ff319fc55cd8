"""Classify the rows of a new source, with labels or without, with a run's fine-tuned model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdfast import __version__
from sdfast.config import Config
from sdfast.durable import explain_os_error, recover_directory, write_json
from sdfast.errors import UserError
from sdfast.evaluation.scoring import SCORING
from sdfast.evaluation.votes import answers_of
from sdfast.inference.parts import Parts, made_parts, put_file, remove_parts
from sdfast.inference.places import PLAN, begin, check_writable, noted_source, parts_folder, source_of, stem_for
from sdfast.inference.rows import Held, NewRows
from sdfast.inference.table import CSV_COLUMNS, Layout, csv_columns, csv_rows, csv_writer
from sdfast.log import log
from sdfast.stages.evaluate import FineTuned, fine_tuned, for_labels

if TYPE_CHECKING:
    import pandas as pd

_FORMATS = (".parquet", ".csv")


@dataclass(frozen=True)
class Predictions:
    """What a model says of the rows of a source.

    Attributes:
        files: with the predictions: parquet, csv or both.
        rows: in them.
        skipped: items of the source that cannot be used and are left out.
        classes: names of the model's classes, or of its numbers.
    """

    files: tuple[Path, ...]
    rows: int
    skipped: int
    classes: tuple[str, ...]

    def to_pandas(self) -> pd.DataFrame:
        """The table, a row for each row of the data; from the parquet file where there is one."""
        import pandas as pd

        path = self.files[0]
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def predict_run(
    out: Path,
    config: Config,
    device: torch.device,
    data: str,
    to: Path | None = None,
    top: int = 3,
    probabilities: bool | None = None,
    read_only: bool = False,
) -> Predictions:
    """Classify all rows of a source. Neither the run's first model nor its data need to be there any more.

    Rows are read, classified and written some at a time; what is done is kept, so that the same command goes on after
    it was stopped.

    Args:
        out: the run directory.
        config: of the run; its `data` section says how the source is read.
        device: where to compute.
        data: the source; labels that it may have are written beside the predictions.
        to: file for the predictions, `.csv` or `.parquet`; both in `predict/` of the run directory when None.
        top: how many of the likeliest classes are named.
        probabilities: whether a csv file has the probability of each class; where there are at most 20 when None.
        read_only: the run directory cannot be written.

    Raises:
        UserError: there is no fine-tuned model, the source cannot be read as the model's rows, or `to` cannot be
            written.
        Interrupted: by Ctrl-C; what is done is kept.
    """
    if top < 1:
        raise UserError(f"--top {top} is not possible; use 1 or more.")
    if not read_only:
        recover_directory(out / "finetune" / "model")
    tuned = fine_tuned(out)
    targets = _targets(out, data, to, read_only)
    rows = NewRows(data, tuned.modality, for_labels(config, tuned.problem), tuned.classifier)
    layout = Layout(tuned.problem, tuned.classifier.names, tuned.threshold, top, len(rows.splits) > 1)
    work, folder = _work(tuned, rows, layout, config, device), parts_folder(targets[0])
    begin(folder, data)
    identity = ["predictions", tuned.stored.weights, tuned.threshold, top, config.data.chunk_stride, __version__]
    parts = made_parts(folder, rows, identity, work, "predict")
    _write(parts, folder, targets, probabilities, layout)
    if to is None:
        write_json(targets[0].with_suffix(".json"), _manifest(data, tuned, parts, rows))
    remove_parts(folder)
    for path in targets:
        log.info("predictions: %s", path)
    return Predictions(targets, parts.rows, parts.skipped, tuple(tuned.classifier.names))


def _targets(out: Path, data: str, to: Path | None, read_only: bool) -> tuple[Path, ...]:
    """The files to write, parquet first."""
    if to is not None:
        if to.suffix not in _FORMATS:
            raise UserError(f"--to {to}: predictions are written as .csv or .parquet; end the name with one of them.")
        if to.is_dir():
            raise UserError(f"--to {to} is a folder; name a file.")
        check_writable(to.absolute().parent, f"--to {to}")
        return (to,)
    if read_only:
        raise UserError(f"{out} cannot be written; give a file for the predictions by --to.")
    folder = out / "predict"

    def taken(stem: str) -> str | None:
        target = folder / f"{stem}.parquet"
        noted = noted_source(folder / f"{stem}.json")
        if noted is None:
            noted = noted_source(parts_folder(target) / PLAN)
        return "" if noted is None and target.exists() else noted

    stem = stem_for(data, taken)
    return tuple(folder / f"{stem}{ending}" for ending in _FORMATS)


def _work(tuned: FineTuned, rows: NewRows, layout: Layout, config: Config, device: torch.device) -> Any:
    """From rows in memory to their predictions."""
    modality, classifier, voted = tuned.modality, tuned.classifier, SCORING[tuned.problem].voted
    module = classifier.module.to(device)

    def answers(seen: Any, chosen: torch.Tensor) -> torch.Tensor:
        return modality.predict(module, classifier.companions, seen, chosen, modality.reader(seen, device))

    def work(held: Held) -> Any:
        if held.split is None:
            return layout.table(held, torch.zeros(0, len(classifier.names)), rows.source)
        voting = modality.voting(rows.builder, held.split, config)
        outputs = answers_of(held.split, torch.arange(len(held.names)), voting, answers, voted)
        return layout.table(held, outputs, rows.source)

    return work


def _write(parts: Parts, folder: Path, targets: tuple[Path, ...], probabilities: bool | None, layout: Layout) -> None:
    """Put the parts together, a part in memory at a time."""
    for target in targets:
        staged = folder / f"out{target.suffix}"
        with explain_os_error(staged):
            if target.suffix == ".parquet":
                _write_parquet(parts, staged, layout)
            else:
                wanted = len(layout.names) <= CSV_COLUMNS if probabilities is None else probabilities
                _write_csv(parts, staged, wanted)
        put_file(staged, target)


def _write_parquet(parts: Parts, path: Path, layout: Layout) -> None:
    import pyarrow.parquet as pq

    writer = None
    about = {b"classes": json.dumps(list(layout.names)).encode()}
    for table in parts.tables():
        table = table.replace_schema_metadata(about)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _write_csv(parts: Parts, path: Path, probabilities: bool) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer, header = csv_writer(file), None
        for table in parts.tables():
            if header is None:
                header = csv_columns(table.column_names, probabilities)
                writer.writerow(header)
            writer.writerows(csv_rows(table.select(header)))


def _manifest(data: str, tuned: FineTuned, parts: Parts, rows: NewRows) -> dict[str, Any]:
    """What the predictions are of."""
    return {
        "source": source_of(data),
        "content": parts.source,
        "rows": parts.rows,
        "skipped": {"count": parts.skipped, "first": parts.broken},
        "weights": tuned.stored.weights,
        "problem_type": tuned.problem,
        "classes": list(tuned.classifier.names),
        "threshold": tuned.threshold if tuned.problem == "multi_label_classification" else None,
        "kind": rows.source.kind,
        "sdfast": __version__,
    }
