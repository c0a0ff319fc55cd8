"""Several processes that do one job together: who does what, and how they agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from sdfast.errors import Interrupted, RunError, SdfastError, UserError, shortened

_Out = TypeVar("_Out")

_control: Any = None


def talk_in(group: Any) -> None:
    """Have words between processes go through a group of their own; None for torch's."""
    global _control
    _control = group


def control_group() -> Any:
    """The group for words between processes, which waits as long as it takes; None before there is one."""
    return _control


@dataclass(frozen=True)
class Ranks:
    """Which process this is, and how the processes talk.

    Attributes:
        rank: of this process, from 0.
        world: how many there are.
        exchange: each process gives it a value and gets those of all, in the order of their ranks.
    """

    rank: int = 0
    world: int = 1
    exchange: Callable[[Any], list[Any]] = field(default=lambda value: [value])

    @classmethod
    def current(cls) -> Ranks:
        """Those of torch.distributed where it is initialised, else one process alone; they talk as `talk_in` says."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        group = control_group()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), lambda v: _all_gather(v, group))

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks for all."""
        return self.rank == 0

    def share(self, work: list[int]) -> list[int]:
        """This process's part of a list that all have: consecutive, nearly as long as the others'."""
        return work[self.part(len(work))]

    def part(self, count: int) -> slice:
        """This process's part of range(count), by the same rule."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def agree(self, work: Callable[[], _Out]) -> list[_Out]:
        """Do some work in every process and get what it gave in each; none goes on when one has failed.

        Raises:
            SdfastError: what went wrong here, or in another process.
        """
        try:
            given = [None, work()]
        except BaseException as error:
            self.exchange([_described(error), None])
            raise
        results = self.exchange(given)
        for rank, (failure, _) in enumerate(results):
            if failure is not None:
                raise _raised(rank, *failure)
        return [result for _, result in results]

    def first(self, work: Callable[[], _Out]) -> _Out:
        """Do some work in process 0 alone, while the others wait; all get what it gave.

        Raises:
            SdfastError: what went wrong there.
        """
        return self.agree(lambda: work() if self.is_first else None)[0]  # type: ignore[return-value]

    def rank0_then_others(self, work: Callable[[], _Out]) -> _Out:
        """Do some work in every process, but in process 0 before the others: they find what it left on the disk.

        Raises:
            SdfastError: what went wrong here, or in another process.
        """
        mine: list[_Out] = []

        def do() -> None:
            mine.append(work())

        self.agree(do if self.is_first else _nothing)
        self.agree(_nothing if self.is_first else do)
        return mine[0]

    def check_same(self, values: Callable[[], Mapping[str, Any]]) -> None:
        """Whether all processes have the same values, by name; those that are absent are None.

        Args:
            values: gives them; called when there are several processes.

        Raises:
            SdfastError: in every process: of the first that differs, or what went wrong in giving them.
        """
        if self.world == 1:
            return
        first, *others = self.agree(values)
        for rank, other in enumerate(others, 1):
            for name in {**first, **other}:
                if first.get(name) != other.get(name):
                    one, two = shortened(first.get(name)), shortened(other.get(name))
                    error = UserError(
                        f"{name} is {one} in process 0 of this job and {two} in process {rank}; all have to get the"
                        " same arguments, model, data and code."
                    )
                    error.everywhere = True
                    raise error


def _nothing() -> None:
    pass


@contextlib.contextmanager
def explain_lost_process(ranks: Ranks) -> Iterator[None]:
    """Turn what torch.distributed says when another process has died or hangs into one sentence.

    Raises:
        RunError: in place of its RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or not _is_lost(error):
            raise
        raise RunError(_LOST) from error


_LOST = (
    "another process of this job died or did not answer in time (engine.timeout_seconds), so all of it ends; what is"
    " done is saved, and the same command continues from there."
)


def _is_lost(error: RuntimeError) -> bool:
    kinds = ("DistBackendError", "DistNetworkError", "DistStoreError")
    text = str(error).lower()
    return type(error).__name__ in kinds or any(word in text for word in ("gloo", "nccl", "connection closed"))


def _all_gather(value: Any, group: Any) -> list[Any]:
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    with explain_lost_process(Ranks(world=len(gathered))):
        torch.distributed.all_gather_object(gathered, value, group=group)
    return gathered


def _described(error: BaseException) -> list[Any]:
    """An error as built-in values: its kind, its number and its sentence."""
    kind = "user" if isinstance(error, UserError) else "run" if isinstance(error, RunError) else "other"
    if isinstance(error, Interrupted):
        return ["signal", error.exit_code - 128, str(error)]
    return [kind, 0, str(error) or type(error).__name__]


def _raised(rank: int, kind: str, number: int, text: str) -> SdfastError:
    if kind == "signal":
        return Interrupted(text, number)
    if kind == "other":
        return RunError(f"process {rank} of this job failed: {text}.")
    return UserError(text) if kind == "user" else RunError(text)
