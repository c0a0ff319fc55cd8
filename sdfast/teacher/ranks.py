"""Several processes that build one bank together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from sdfast.errors import Interrupted, RunError, SdfastError, UserError

_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Ranks:
    """Which process this is, and how the processes talk.

    Attributes:
        rank: of this process, from 0.
        world: how many there are.
        exchange: each process gives it a value (of built-in types) and gets those of all, in the order of their ranks.
    """

    rank: int = 0
    world: int = 1
    exchange: Callable[[Any], list[Any]] = field(default=lambda value: [value])

    @classmethod
    def current(cls) -> Ranks:
        """Those of torch.distributed where it is initialised, else one process alone."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), _all_gather)

    def share(self, work: list[int]) -> list[int]:
        """This process's part of a list that all have: consecutive, nearly as long as the others'."""
        return work[len(work) * self.rank // self.world : len(work) * (self.rank + 1) // self.world]

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


def _all_gather(value: Any) -> list[Any]:
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    try:
        torch.distributed.all_gather_object(gathered, value)
    except RuntimeError as error:
        raise RunError(
            "another process of this build of a teacher bank has gone; what is done is saved, and the same command "
            "continues from here."
        ) from error
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
        return RunError(f"process {rank} of this build of a teacher bank failed: {text}.")
    return UserError(text) if kind == "user" else RunError(text)
