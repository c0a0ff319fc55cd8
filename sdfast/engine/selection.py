"""Which weights of a stage are kept: the last, or those of several times that do best on other rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdfast.store.checkpoint import Checkpoint

_PREFIX = "best/"


@dataclass(frozen=True)
class Selection:
    """How weights are compared.

    Attributes:
        score: from a module's tensors, whole and on the CPU, to its scores by name; all processes call it together, and
            it leaves the tensors as they are.
        by: the score that decides, the larger the better; of equals the earlier is kept.
        times: how often in a stage, evenly; the last time is after the last step.
    """

    score: Callable[[dict[str, Tensor]], Mapping[str, float]]
    by: str
    times: int

    def due(self, step: int, steps: int) -> bool:
        """Whether to look after so many of the stage's steps."""
        return step * self.times // steps > (step - 1) * self.times // steps


@dataclass(frozen=True)
class Best:
    """The best weights so far; a checkpoint holds them beside the newest ones.

    Attributes:
        step: after which they were.
        scores: their metrics on val.
        state: the module's tensors, on the CPU.
    """

    step: int
    scores: Mapping[str, float]
    state: Mapping[str, Tensor]

    @classmethod
    def of(cls, found: Checkpoint) -> Best | None:
        """That of a checkpoint, if it has one; its tensors are copied, for the file goes."""
        kept = found.values.get("best")
        if kept is None:
            return None
        names = [name for name in found.names if name.startswith(_PREFIX)]
        state = {name.removeprefix(_PREFIX): found.read(name).clone() for name in names}
        return cls(kept["step"], kept["scores"], state)

    def values(self) -> dict[str, Any]:
        """What a checkpoint's values hold of it."""
        return {"best": {"step": self.step, "scores": dict(self.scores)}}

    def tensors(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """What a checkpoint's state holds of it: names, and what reads each."""
        for name, value in self.state.items():
            yield f"{_PREFIX}{name}", value.detach
