"""Who is told how a run goes while it goes: the report that a person has open, and trackers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Follower:
    """One that is told what `metrics.jsonl` is told, in process 0; by itself it does nothing.

    What a follower cannot do is its own affair: its methods say so in the log and raise nothing, as a run is worth more
    than being looked at. They neither draw random numbers nor change anything of the run.
    """

    def begin(self, stage: str, directory: Path, steps: int, start: int) -> None:
        """A stage begins to train.

        Args:
            stage: `pretrain`, `distill`, `finetune` or `head`.
            directory: of the stage, which tells apart stages of one kind.
            steps: it will take.
            start: of them done before, by a process that was interrupted; later records of that one are void.
        """

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """What was logged of the stage that began last, after so many steps."""

    def end(self) -> None:
        """That stage does not train any more: it is at its last step, or was interrupted."""

    def pictures(self, stage: str, step: int, files: Mapping[str, Path]) -> None:
        """Pictures were made of what a stage has come to: PNG files, by a name such as `reconstructions`."""

    def finish(self) -> None:
        """The command has done what it was asked for, or has failed; there may be another in this process."""
