"""The text data sets of Lee et al. (2023), recognised by the names of their public copies, and their sizes there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sdfast.data.items import Source


@dataclass(frozen=True)
class PaperSet:
    """One data set as the paper used it.

    Attributes:
        title: as the paper calls it.
        names: of its folder or hub id, the owner left out, in small letters and digits alone.
        rows: of each split.
        classes: how many.
        metric: the key in `result.json` of what the paper reports.
    """

    title: str
    names: frozenset[str]
    rows: Mapping[str, int]
    classes: int
    metric: Literal["macro_f1", "micro_f1"]


def _rows(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


PAPER_SETS = (
    PaperSet("SCIERC", frozenset(("sciie", "scierc")), _rows(3219, 455, 974), 7, "macro_f1"),
    PaperSet("ACL-ARC", frozenset(("citationintent", "aclarc")), _rows(1688, 114, 139), 6, "macro_f1"),
    PaperSet("Chemprot", frozenset(("chemprot",)), _rows(4169, 2427, 3469), 13, "micro_f1"),
    PaperSet("Twitter-Emotion", frozenset(("tweetevalemotion",)), _rows(3257, 374, 1421), 4, "macro_f1"),
)


def paper_set(name: str, kind: str) -> PaperSet | None:
    """The paper's data set of that name, or None.

    Args:
        name, kind: of a source. `emotion` is the paper's in TweetEval's layout only; others have that name too.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower().rpartition("/")[2])
    if kind == "TweetEval":
        plain = f"tweeteval{plain.removeprefix('tweeteval')}"
    return next((found for found in PAPER_SETS if plain in found.names), None)


def compare_with_paper(source: Source) -> None:
    """Warn when a source has the name of one of the paper's data sets and other splits or classes."""
    found = paper_set(source.name, source.kind)
    if found is None:
        return
    rows = {split: len(source.splits[split]) if split in source.splits else 0 for split in found.rows}
    classes = len(source.class_names or ())
    if rows == found.rows and classes == found.classes:
        return
    here, there = (_described(counts, number) for counts, number in ((rows, classes), (found.rows, found.classes)))
    source.warnings.append(
        f"{source.name} has the name of the paper's {found.title} but another size: {here}; the paper's has {there}."
    )


def _described(rows: Mapping[str, int], classes: int) -> str:
    return f"{', '.join(f'{count:,} {split}' for split, count in rows.items())} and {classes} classes"
