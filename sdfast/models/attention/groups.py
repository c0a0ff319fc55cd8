"""Which tokens see which: sequences of equal length form a group, and groups lie one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """`batch` sequences of equal length.

    Attributes:
        batch: B.
        queries: tokens of a sequence that ask (N).
        keys: tokens of a sequence that are seen; the same ones where a sequence attends to itself.
        valid: [B, keys] bool, False at padding, which follows the valid tokens; None when there is none. What comes
            out at a padded query is arbitrary but finite.
    """

    batch: int
    queries: int
    keys: int
    valid: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of sequences: group g's queries are the rows that follow those of the groups before it, and so its keys.

    Made once for a batch and shared by all blocks, so that what backends derive from it is derived once.
    """

    groups: tuple[Group, ...]
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def query_sizes(self) -> list[int]:
        """Rows of each group's queries."""
        return [group.batch * group.queries for group in self.groups]

    @property
    def key_sizes(self) -> list[int]:
        """Rows of each group's keys."""
        return [group.batch * group.keys for group in self.groups]

    @property
    def ragged(self) -> bool:
        """Whether some sequence has padding."""
        return any(group.valid is not None for group in self.groups)

    @property
    def shape(self) -> tuple[tuple[int, int, int], ...]:
        """(batch, queries, keys) of each group, by which a calibration is remembered."""
        return tuple((group.batch, group.queries, group.keys) for group in self.groups)

    @property
    def longest(self) -> tuple[int, int]:
        """Largest number of queries and of keys of a sequence."""
        return max(g.queries for g in self.groups), max(g.keys for g in self.groups)

    @property
    def bounds(self) -> Tensor:
        """[sequences, 4] int64 on the CPU: first and last row (exclusive) of its queries, then of its keys.

        Padding belongs to no sequence, where queries and keys are the same tokens. Reads `valid`, so it is for groups
        on the CPU.
        """
        return self._once("bounds", self._bounds)

    def offsets(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where sequences begin, for queries and keys: [sequences + 1] int32 each, the last being the end."""
        return (
            self._once(f"queries on {device}", lambda: self._offsets(device, "queries")),
            self._once(f"keys on {device}", lambda: self._offsets(device, "keys")),
        )

    def lengths(self, kind: str) -> list[int]:
        """Tokens of every sequence, padding included; `kind` is `queries` or `keys`."""
        return [getattr(group, kind) for group in self.groups for _ in range(group.batch)]

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returns, remembered; a compiled block makes it in its own graph instead."""
        if torch.compiler.is_compiling():
            return make()
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]

    def _bounds(self) -> Tensor:
        parts, q_first, k_first = [], 0, 0
        for group in self.groups:
            index = torch.arange(group.batch)
            q = q_first + index * group.queries
            k = k_first + index * group.keys
            seen = torch.full((group.batch,), group.keys) if group.valid is None else group.valid.sum(dim=1)
            asked = seen if group.valid is not None and group.queries == group.keys else group.queries
            parts.append(torch.stack((q, q + asked, k, k + seen), dim=1))
            q_first, k_first = q_first + group.batch * group.queries, k_first + group.batch * group.keys
        return torch.cat(parts).contiguous()

    def _offsets(self, device: torch.device, kind: str) -> Tensor:
        parts, first = [], 0
        for group in self.groups:
            length = group.queries if kind == "queries" else group.keys
            parts.append(first + length * torch.arange(group.batch, dtype=torch.int32, device=device))
            first += group.batch * length
        parts.append(torch.full((1,), first, dtype=torch.int32, device=device))
        return torch.cat(parts)
