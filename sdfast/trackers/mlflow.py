"""MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.log import log
from sdfast.trackers.tracker import Tracker

_PARAMETERS = 100  # in one call, as MLflow allows
_VALUE = 6000  # characters of one


class MLflow(Tracker):
    """One run of MLflow, in the store that MLFLOW_TRACKING_URI names; MLflow's own choice without it.

    The history of a metric can only be added to: of a run that is resumed, records after the resumed step stand there
    twice, at the same steps.
    """

    name = "mlflow"
    _client: Any = None
    _id = ""

    def open(self, root: Path, title: str, kept: str | None) -> str:
        """Start a run, or go on with one."""
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._client, project = MlflowClient(), self.tracked.project
        if kept is not None:
            try:
                self._client.update_run(kept, status="RUNNING")
                self._id = kept
            except MlflowException:  # of another store
                kept = None
        if kept is None:
            found = self._client.get_experiment_by_name(project)
            experiment = self._client.create_experiment(project) if found is None else found.experiment_id
            self._id = self._client.create_run(experiment, run_name=title).info.run_id
            parameters = [Param(name, str(value)[:_VALUE]) for name, value in self.tracked.config.items()]
            for start in range(0, len(parameters), _PARAMETERS):
                self._client.log_batch(self._id, params=parameters[start : start + _PARAMETERS])
        log.info("mlflow: run %s of experiment %s", self._id, project)
        return self._id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics at a step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def sum_up(self, values: Mapping[str, float]) -> None:
        """Metrics of step 0."""
        self.log(0, values)

    def show(self, step: int, files: Mapping[str, Path]) -> None:
        """Images, as artefacts."""
        import mlflow

        for name, path in files.items():
            self._client.log_image(self._id, mlflow.Image(str(path)), artifact_file=f"{name}-{step}.png")

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FINISHED" if self.done else "KILLED")
