"""What no model gives on the rows of a study: a linear classifier on their raw input, computed once for each sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdfast.config import Config
from sdfast.context import Context
from sdfast.durable import read_json, write_json
from sdfast.errors import UserError, of_the_system
from sdfast.inference.raw import named, raw_metrics, sample_of
from sdfast.log import log
from sdfast.studies.store import Store
from sdfast.studies.units import Unit, columns_of

FOLDER = "raw"
_DIGITS = 12  # of a fingerprint, in a file's name


@dataclass(frozen=True)
class RawScore:
    """What a linear classifier scores on one sample of rows.

    Attributes:
        x: where on the study's axis, where that is one of sizes.
        name: of the classifier, in words.
        metrics: on the rows that fine-tuning is evaluated on.
        rows: `train` and `test`.
        limits: sentences where these are fewer than fine-tuning has.
        fingerprint: of all that decides the metrics.
        units: folds or chains that are trained on these rows, as a record has them; empty where there are none.
    """

    x: float | None
    name: str
    metrics: dict[str, float]
    rows: dict[str, int]
    limits: Sequence[str]
    fingerprint: str
    units: Sequence[Mapping[str, int]] = ()


def raw_scores(cells: Iterable[tuple[float | None, Config, Unit | None]], store: Store) -> list[RawScore]:
    """The scores of the samples of rows that cells are trained on, kept in `raw/<fingerprint>.json`.

    Args:
        cells: the `x` of each, its configuration, and the fold or chain that it is of.
        store: of the study.

    Returns:
        One for each sample and point, in the order of the cells; none where nothing in the rows can be compared.
    """
    opened: dict[tuple[float | None, str], RawScore | None] = {}
    found: dict[tuple[float | None, str], RawScore] = {}
    for x, config, unit in cells:
        key = x, config.data.model_dump_json()
        if key not in opened:
            with store.opened(config) as context:
                opened[key] = _score(context, x, store.out / FOLDER)
        if (score := opened[key]) is not None:
            known, columns = found.setdefault((x, score.fingerprint), score), columns_of(unit)
            if columns and columns not in known.units:
                found[x, score.fingerprint] = replace(known, units=[*known.units, columns])
    return list(found.values())


def _score(context: Context, x: float | None, folder: Path) -> RawScore | None:
    modality, config = context.modality, context.config
    sample = sample_of(context.pack, config)
    fingerprint, name = sample.fingerprint(modality, config), named(context.pack.problem, modality)
    path = folder / f"{fingerprint[:_DIGITS]}.json"
    metrics = _kept(path, fingerprint)
    if metrics is None:
        try:
            metrics = raw_metrics(sample, modality, config, modality.companions(context.model))
        except UserError as error:
            if of_the_system(error):
                raise
            log.info("without %s: %s", name, error)
            return None
        folder.mkdir(exist_ok=True)
        write_json(path, {"fingerprint": fingerprint, "metrics": metrics})
    rows = {"train": len(sample.train), "test": len(sample.test)}
    return RawScore(x, name, metrics, rows, sample.limits, fingerprint)


def _kept(path: Path, fingerprint: str) -> dict[str, float] | None:
    """The metrics in a file; None where it is absent, or of something else."""
    kept: Any = read_json(path)
    try:
        if kept["fingerprint"] == fingerprint:
            return {str(name): float(value) for name, value in kept["metrics"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    return None
