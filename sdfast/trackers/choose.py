"""The table of trackers, and those that a run asks for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdfast.config import Config
from sdfast.config.sections import TrackerName
from sdfast.engine.followers import Follower
from sdfast.errors import UserError
from sdfast.trackers.tracker import Tracked


@dataclass(frozen=True)
class Row:
    """One value of `engine.tracker`.

    Attributes:
        module: with the class, which is loaded when it is asked for.
        kind: the class's name.
        needs: packages, by the names that they are imported by.
    """

    module: str
    kind: str
    needs: tuple[str, ...]


TRACKERS: Mapping[TrackerName, Row] = {
    "tensorboard": Row("sdfast.trackers.tensorboard", "TensorBoard", ("tensorboard",)),
    "wandb": Row("sdfast.trackers.wandb", "WeightsAndBiases", ("wandb",)),
    "mlflow": Row("sdfast.trackers.mlflow", "MLflow", ("mlflow", "sqlalchemy", "alembic")),
    "trackio": Row("sdfast.trackers.trackio", "Trackio", ("trackio",)),
}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Whether their packages are installed; none is loaded.

    Raises:
        UserError: one is not.
    """
    for name in names:
        for package in TRACKERS[name].needs:
            if importlib.util.find_spec(package) is None:
                raise UserError(f'engine.tracker={name} needs the package {package}: pip install "sdfast[{name}]".')


def trackers_of(config: Config, out: Path | None) -> tuple[Follower, ...]:
    """The trackers that a configuration asks for.

    Args:
        config: resolved.
        out: the run directory; None where each stage is a run of the tracker, as in a study.

    Raises:
        UserError: the package of one is not installed.
    """
    check_trackers(config.engine.trackers)
    name = None if out is None else config.name
    tracked = Tracked(out, name, config.engine.tracker_project, config.flat())
    rows = [TRACKERS[each] for each in config.engine.trackers]
    return tuple(getattr(importlib.import_module(row.module), row.kind)(tracked) for row in rows)
