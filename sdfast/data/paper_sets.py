"""The data sets of Lee et al. (2023), known by their layout or by the names of public copies, and their sizes."""

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
        modality: what its items are.
        rows: of each split that the paper used.
        classes: how many.
        metric: the key in `result.json` of what the paper reports.
        names: of its folder or hub id, the owner left out, in small letters and digits alone.
        layout: the kind of source that is this set whatever its name.
        held_out: test is no published split: it was held out of all images.
    """

    title: str
    modality: Literal["images", "texts"]
    rows: Mapping[str, int]
    classes: int
    metric: Literal["accuracy", "macro_f1", "micro_f1"]
    names: frozenset[str] = frozenset()
    layout: str | None = None
    held_out: bool = False


def _texts(
    title: str,
    names: tuple[str, ...],
    rows: tuple[int, int, int],
    classes: int,
    metric: Literal["macro_f1", "micro_f1"],
) -> PaperSet:
    counts = dict(zip(("train", "val", "test"), rows, strict=True))
    return PaperSet(title, "texts", counts, classes, metric, frozenset(names))


def _images(
    title: str, layout: str, train: int, test: int, classes: int, names: tuple[str, ...] = (), held_out: bool = False
) -> PaperSet:
    rows = {"train": train, "test": test}
    return PaperSet(title, "images", rows, classes, "accuracy", frozenset(names), layout, held_out)


PAPER_SETS = (
    _images("Aircraft", "FGVC-Aircraft", 6667, 3333, 100),
    _images("CUB", "CUB-200-2011", 5994, 5794, 200, ("cub2002011",)),
    _images("Chest-Xray", "Chest X-ray", 5216, 624, 2, ("chestxraypneumonia",)),
    _images("DTD", "DTD", 4230, 1410, 47, held_out=True),
    _images("Dogs", "Stanford Dogs", 12000, 8580, 120),
    _images("Flower", "Oxford Flowers 102", 2040, 6149, 102),
    _images("CIFAR-100", "CIFAR-100", 50000, 10000, 100, ("cifar100",)),
    _texts("SCIERC", ("sciie", "scierc"), (3219, 455, 974), 7, "macro_f1"),
    _texts("ACL-ARC", ("citationintent", "aclarc"), (1688, 114, 139), 6, "macro_f1"),
    _texts("Chemprot", ("chemprot",), (4169, 2427, 3469), 13, "micro_f1"),
    _texts("Twitter-Emotion", ("tweetevalemotion",), (3257, 374, 1421), 4, "macro_f1"),
)


def paper_set(name: str, kind: str, modality: Literal["images", "texts"]) -> PaperSet | None:
    """The paper's data set of that layout or name, or None.

    Args:
        name, kind: of a source. `emotion` is the paper's in TweetEval's layout only; others have that name too.
        modality: what the source's items are.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower().rpartition("/")[2])
    if kind == "TweetEval":
        plain = f"tweeteval{plain.removeprefix('tweeteval')}"
    candidates = [found for found in PAPER_SETS if found.modality == modality]
    return next((found for found in candidates if kind == found.layout or plain in found.names), None)


def compare_with_paper(source: Source) -> None:
    """Warn when a source is one of the paper's data sets by its layout or name and has other splits or classes.

    Splits that the paper did not use do not count.
    """
    found = paper_set(source.name, source.kind, "images" if source.modality.content == "image" else "texts")
    if found is None:
        return
    wanted = {"train": sum(found.rows.values())} if found.held_out and set(source.splits) == {"train"} else found.rows
    rows = {split: len(source.splits[split]) if split in source.splits else 0 for split in wanted}
    classes = len(source.class_names or ())
    if rows == wanted and classes == found.classes:
        return
    here, there = (_described(counts, number) for counts, number in ((rows, classes), (wanted, found.classes)))
    what = "layout" if source.kind == found.layout else "name"
    source.warnings.append(
        f"{source.name} has the {what} of the paper's {found.title} but another size: {here}; the paper's has {there}."
    )


def _described(rows: Mapping[str, int], classes: int) -> str:
    return f"{', '.join(f'{count:,} {split}' for split, count in rows.items())} and {classes} classes"
