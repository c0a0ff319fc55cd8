"""Which tokens see which: sequences form groups, and groups lie one after the other; a window keeps to what is near."""

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
            out at a padded query is arbitrary but finite. `reference` and `sdpa` take [B, queries, keys] too, whose
            queries each see a key.
        places: [B, queries] int64 on the CPU, where the queries stand among their sequence's tokens, for a window; None
            where query n stands at place n.
    """

    batch: int
    queries: int
    keys: int
    valid: Tensor | None = None
    places: Tensor | None = None

    @property
    def rows(self) -> tuple[int, int]:
        """Rows of all its queries, and of all its keys."""
        return self.batch * self.queries, self.batch * self.keys

    @property
    def longest(self) -> tuple[int, int]:
        """Largest number of queries and of keys of a sequence."""
        return self.queries, self.keys

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        """[B] int64 each, on the CPU: queries and keys of every sequence, padding included."""
        return torch.full((self.batch,), self.queries), torch.full((self.batch,), self.keys)

    @property
    def starts(self) -> tuple[Tensor, Tensor]:
        """[B] int64 each, on the CPU: the first query and the first key of every sequence, among the group's."""
        index = torch.arange(self.batch)  # no sum over the counts, which torch 2.14's inductor does not take
        return index * self.queries, index * self.keys


class Ragged:
    """Sequences of any length, one after the other, without padding.

    Attributes:
        counts: [B] int64 each, on the CPU: tokens of every sequence that ask (there may be none), and that are seen
            (at least one).
        rows: of all its queries, and of all its keys.
        longest: largest number of queries and of keys of a sequence.
        places: [queries] int64 on the CPU, see `Group`; None where a sequence attends to itself.
    """

    valid = None

    def __init__(self, keys: Tensor, queries: Tensor | None = None, places: Tensor | None = None) -> None:
        """keys, queries: the counts [B]; without `queries` every sequence attends to itself."""
        self.counts, self.places = (keys if queries is None else queries, keys), places
        self.rows = (int(self.counts[0].sum()), int(keys.sum()))
        self.longest = (int(self.counts[0].max()), int(keys.max())) if len(keys) else (0, 0)

    @property
    def starts(self) -> tuple[Tensor, Tensor]:
        """[B] int64 each, on the CPU: the first query and the first key of every sequence, among all of these."""
        queries, keys = self.counts
        return queries.cumsum(0) - queries, keys.cumsum(0) - keys


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of sequences: group g's queries are the rows that follow those of the groups before it, and so its keys.

    Made once for a batch and shared by all blocks, so that what backends derive from it is derived once.

    Attributes:
        groups: the sequences.
        window: a query sees the keys of its sequence that are at most so many places away; None for all.
    """

    groups: tuple[Group | Ragged, ...]
    window: int | None = None
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def query_sizes(self) -> list[int]:
        """Rows of each group's queries."""
        return [group.rows[0] for group in self.groups]

    @property
    def key_sizes(self) -> list[int]:
        """Rows of each group's keys."""
        return [group.rows[1] for group in self.groups]

    @property
    def padded(self) -> bool:
        """Whether some sequence has padding."""
        return any(group.valid is not None for group in self.groups)

    @property
    def of_themselves(self) -> bool:
        """Whether all tokens ask, so that queries and keys are the same tokens."""
        return all(group.places is None and group.rows[0] == group.rows[1] for group in self.groups)

    @property
    def windowed(self) -> bool:
        """Whether some sequence is so long that the window keeps a token from another."""
        return self.window is not None and self.longest[1] > self.window + 1

    @property
    def shape(self) -> tuple[tuple[int, int, int], ...] | None:
        """(batch, queries, keys) of each group, by which a calibration is remembered; None where some are ragged."""
        made = tuple((g.batch, g.queries, g.keys) for g in self.groups if isinstance(g, Group))
        return made if len(made) == len(self.groups) else None

    @property
    def longest(self) -> tuple[int, int]:
        """Largest number of queries and of keys of a sequence."""
        return max(g.longest[0] for g in self.groups), max(g.longest[1] for g in self.groups)

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
            self._once(f"queries on {device}", lambda: self._offsets(device, 0)),
            self._once(f"keys on {device}", lambda: self._offsets(device, 1)),
        )

    def lengths(self, kind: str) -> list[int]:
        """Tokens of every sequence, padding included; `kind` is `queries` or `keys`."""
        which = ("queries", "keys").index(kind)
        return [length for group in self.groups for length in group.counts[which].tolist()]

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
            queries, keys = group.counts
            q, k = (first + start for first, start in zip((q_first, k_first), group.starts, strict=True))
            seen = keys if group.valid is None else group.valid.sum(dim=1)
            itself = group.valid is not None and group.longest[0] == group.longest[1]
            asked = seen if itself else queries
            parts.append(torch.stack((q, q + asked, k, k + seen), dim=1))
            q_first, k_first = q_first + group.rows[0], k_first + group.rows[1]
        return torch.cat(parts).contiguous()

    def _offsets(self, device: torch.device, which: int) -> Tensor:
        parts, first = [], 0
        for group in self.groups:
            if isinstance(group, Group):  # made on the device: a captured step copies nothing to it
                length = group.longest[which]
                parts.append(first + length * torch.arange(group.batch, dtype=torch.int32, device=device))
            else:
                parts.append((first + group.starts[which]).int().to(device, non_blocking=True))
            first += group.rows[which]
        parts.append(torch.full((1,), first, dtype=torch.int32, device=device))
        return torch.cat(parts)
