"""What all trackers share: which of their runs a stage belongs to, and that their failures are theirs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdfast import durable
from sdfast.engine.followers import Follower
from sdfast.log import log

_LEDGER = "trackers.json"
_RESULT = "result.json"


@dataclass(frozen=True)
class Tracked:
    """The run that is tracked.

    Attributes:
        out: the run directory, where all stages go into one run of the tracker; None where each stage is one of its
            own, as in a study.
        name: of the run; None for that of its directory.
        project: of the tracker, or its experiment.
        config: the resolved configuration, by dotted keys.
    """

    out: Path | None
    name: str | None
    project: str
    config: Mapping[str, Any]

    def root(self, directory: Path) -> Path:
        """The directory that has one run of the tracker, for a stage's."""
        return self.out or directory

    def title(self, directory: Path) -> str:
        """What that run is called."""
        return self.name or self.root(directory).absolute().name

    def stage(self, stage: str, directory: Path) -> str:
        """What a stage's values are called before the slash: its folder in the run directory."""
        label = directory.relative_to(self.root(directory)).as_posix()
        return stage if label == "." else label


class Tracker(Follower):
    """One run of a tracker for a run directory, gone on with by whoever resumes it; subclasses know one package.

    The run's id is in `trackers.json` of the run directory, with the stages that it has records of: one that is trained
    anew, from its first step, begins another run. After a failure the training goes on without it, and says so once.

    Attributes:
        name: of the tracker, as `engine.tracker` has it.
        tracked: what is tracked.
        label: the stage that began last, as its values are called.
        done: whether that has left a result.
    """

    name: str

    def __init__(self, tracked: Tracked) -> None:
        self.tracked = tracked
        self.label, self.done = "", False
        self._directory: Path | None = None
        self._root: Path | None = None
        self._before: object = None
        self._lost = False

    @property
    def place(self) -> str:
        """What a warning calls it."""
        return self.name

    # What a package does.

    def open(self, root: Path, title: str, kept: str | None) -> str:
        """Open the run of an id that is kept, or a new one of that title, and return its id."""
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log values after so many steps of the stage `label`, by their whole names."""
        raise NotImplementedError

    def sum_up(self, values: Mapping[str, float]) -> None:
        """Keep the final metrics of a stage, by their whole names."""
        raise NotImplementedError

    def show(self, step: int, files: Mapping[str, Path]) -> None:
        """Log PNG files by their whole names."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the run; `done` says whether the stage that began last has come to its end."""
        raise NotImplementedError

    def announce(self) -> None:
        """The stage `label` begins in the open run."""

    # What it is told.

    def begin(self, stage: str, directory: Path, steps: int, start: int) -> None:
        """Open the run, or go on with it."""
        self._unless_lost(self._finish_stage)
        self._unless_lost(lambda: self._begin(stage, directory, start))

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Log what was logged."""
        named = {f"{self.label}/{name}": value for name, value in values.items()}
        self._unless_lost(lambda: self.log(step, named))

    def pictures(self, stage: str, step: int, files: Mapping[str, Path]) -> None:
        """Log the pictures, while a run is open."""
        if self._root is not None:
            self._unless_lost(lambda: self.show(step, {f"{stage}/{name}": path for name, path in files.items()}))

    def finish(self) -> None:
        """Log the final metrics, and close the run."""
        self._unless_lost(self._finish_stage)
        self._close()

    def _begin(self, stage: str, directory: Path, start: int) -> None:
        self._directory, self._before = directory, _state(directory / _RESULT)
        self.label = self.tracked.stage(stage, directory)
        self.enter(self.tracked.root(directory), start)
        self.done = False

    def enter(self, root: Path, start: int) -> None:
        """Open the run in which the stage `label` has its place, where that is not open."""
        ledger = durable.read_json(root / _LEDGER)
        ledger = ledger if isinstance(ledger, dict) else {}
        entry = ledger.get(self.name, {})
        kept, stages = entry.get("id"), list(entry.get("stages", []))
        if start == 0 and self.label in stages:  # it is trained anew, and its records there are of another training
            kept, stages = None, []
        if self._root != root or kept is None:
            self._close()
            self._root = root
            kept = self.open(root, self.tracked.title(root), kept)
        if self.label not in stages:
            entry = {"id": kept, "stages": [*stages, self.label]}
            durable.write_json(root / _LEDGER, {**ledger, self.name: entry})
        self.announce()

    def _finish_stage(self) -> None:
        """Tell the metrics of the stage that began last, where it has left a result since."""
        if self._directory is None:
            return
        path, self._directory = self._directory / _RESULT, None
        if _state(path) in (None, self._before):
            return
        self.done = True
        metrics = (durable.read_json(path) or {}).get("metrics") or {}
        self.sum_up({f"{self.label}/result/{name}": value for name, value in metrics.items()})

    def _close(self) -> None:
        if self._root is not None:
            self._root = None
            try:
                self.close()
            except Exception as error:
                self._give_up(error)

    def _unless_lost(self, tell: Callable[[], None]) -> None:
        """After a failure there is nothing to do; one here is a warning."""
        if not self._lost:
            try:
                tell()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._lost:
            self._lost = True
            words = durable.reason(error) if isinstance(error, OSError) and error.errno else _first_line(error)
            log.warning("cannot tell %s more, and the run goes on without it: %s", self.place, words)


def _state(path: Path) -> tuple[int, int] | None:
    """Which file lies there, as long as it is not written anew; None for none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]
