"""The data sets of Lee et al. (2023), known by their layout or by the names of public copies, and their sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sdfast.data.items import Source
from sdfast.data.modality import ModalityName


@dataclass(frozen=True)
class PaperSet:
    """One data set as the paper used it.

    Attributes:
        title: as the paper calls it.
        modality: what its items are.
        rows: of each split that the paper used. Its Tables 7 and 8 print those of train (see `misprint`; CIFAR-100's
            are in neither), and those of the other splits are the publishers'.
        classes: how many.
        metric: the key in `result.json` of what the paper reports.
        names: of its folder or hub id, the owner left out, in small letters and digits alone.
        layout: the kind of source that is this set whatever its name.
        held_out: test is no published split: it was held out of all images.
        misprint: in a clause, what the paper prints instead of what stands here, and why that does; None where it
            prints the same.
    """

    title: str
    modality: ModalityName
    rows: Mapping[str, int]
    classes: int
    metric: Literal["accuracy", "macro_f1", "micro_f1"]
    names: tuple[str, ...] = ()
    layout: str | None = None
    held_out: bool = False
    misprint: str | None = None


PAPER_SETS = (
    PaperSet("Aircraft", "images", {"train": 6667, "test": 3333}, 100, "accuracy", layout="FGVC-Aircraft"),
    PaperSet(
        "CUB",
        "images",
        {"train": 5994, "test": 5794},
        200,
        "accuracy",
        ("cub2002011",),
        "CUB-200-2011",
        misprint="Table 7 prints 5,594 train, and the published split has 5,994",
    ),
    PaperSet(
        "Chest-Xray", "images", {"train": 5216, "test": 624}, 2, "accuracy", ("chestxraypneumonia",), "Chest X-ray"
    ),
    PaperSet("DTD", "images", {"train": 4230, "test": 1410}, 47, "accuracy", layout="DTD", held_out=True),
    PaperSet("Dogs", "images", {"train": 12000, "test": 8580}, 120, "accuracy", layout="Stanford Dogs"),
    PaperSet("Flower", "images", {"train": 2040, "test": 6149}, 102, "accuracy", layout="Oxford Flowers 102"),
    PaperSet("CIFAR-100", "images", {"train": 50000, "test": 10000}, 100, "accuracy", ("cifar100",), "CIFAR-100"),
    PaperSet("SCIERC", "texts", {"train": 3219, "val": 455, "test": 974}, 7, "macro_f1", ("sciie", "scierc")),
    PaperSet("ACL-ARC", "texts", {"train": 1688, "val": 114, "test": 139}, 6, "macro_f1", ("citationintent", "aclarc")),
    PaperSet("Chemprot", "texts", {"train": 4169, "val": 2427, "test": 3469}, 13, "micro_f1", ("chemprot",)),
    PaperSet(
        "Twitter-Emotion",
        "texts",
        {"train": 3257, "val": 374, "test": 1421},
        4,
        "macro_f1",
        ("tweetevalemotion",),
        misprint="Table 8 prints 4,230 train and 47 classes, which are DTD's; the paper's F1 fits TweetEval's emotion",
    ),
)


def paper_set(name: str, kind: str, modality: ModalityName) -> PaperSet | None:
    """The paper's data set of that layout or name, or None, by the name, kind and modality of a source.

    `emotion` is the paper's in TweetEval's layout only; others have that name too.
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
    corrected = f" ({found.misprint})" if found.misprint else ""
    source.warnings.append(
        f"{source.name} has the {what} of the paper's {found.title} but another size: {here}; the paper's has"
        f" {there}{corrected}."
    )


def _described(rows: Mapping[str, int], classes: int) -> str:
    return f"{', '.join(f'{count:,} {split}' for split, count in rows.items())} and {classes} classes"
