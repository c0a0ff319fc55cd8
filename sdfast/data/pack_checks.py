"""What a person has to know about the images of a pack: broken ones, shared ones, unexpected ones, unlabelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data import decode
from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.rows import duplicate_rows
from sdfast.errors import UserError

_FEW = 3  # names in a warning
_NOTES = {
    decode.ANIMATED: "Images with several frames, of which the first is used",
    decode.ROTATED: "Images with an EXIF rotation",
    decode.TRANSPARENT: "Images with transparent pixels, whose colours are kept without the transparency",
}
_ROTATION = {
    "ignore": ", which is not applied (data.exif_rotation=apply does)",
    "apply": ", which is applied (data.exif_rotation=ignore leaves them as stored)",
}


@dataclass(frozen=True)
class Rows:
    """The rows of one split beside their pixels.

    Attributes:
        names: [n].
        labels: [n] int64, -1 where there is none.
        digests: [n, 32] uint8.
    """

    names: list[str]
    labels: NDArray[np.int64]
    digests: NDArray[np.uint8]

    @property
    def labelled(self) -> bool:
        """Whether any row has a label."""
        return bool(np.any(self.labels >= 0))

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """These rows only."""
        return Rows([self.names[row] for row in rows], self.labels[rows], self.digests[rows])


@dataclass
class Tally:
    """What is counted while the images are decoded, over all splits."""

    total: int
    done: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)


def check_broken(source: Source, splits: Mapping[str, Rows], tally: Tally, options: DataConfig) -> None:
    """Compare the skipped images with what is allowed.

    Raises:
        UserError: more than `options.max_broken` of all images, or all of a split.
    """
    skipped = len(tally.skipped)
    if skipped > options.max_broken * tally.total:
        first = tally.skipped[0]
        raise UserError(
            f"{source.name}: {skipped:,} of {tally.total:,} images cannot be used, more than data.max_broken="
            f"{options.max_broken:g} allows; the first is {first['name']}: {first['reason']}. "
            "Repair or remove them, or raise data.max_broken."
        )
    for split, rows in splits.items():
        if not rows.names:
            why = next(
                (f": {entry['name']} is {entry['reason']}" for entry in tally.skipped if entry["split"] == split), ""
            )
            raise UserError(f"{source.name}: no image of {split} is left{why}.")


def check_duplicates(splits: Mapping[str, Rows], tally: Tally, options: DataConfig) -> tuple[dict[str, Any], list[str]]:
    """Look for equal decoded content in train and a held-out split, and in val and test.

    Returns:
        record: for the manifest.
        warnings: sentences.

    Raises:
        UserError: train shares an image with test or val and `options.duplicates` is "error".
    """
    record: dict[str, Any] = {"policy": options.duplicates, "dropped_from_train": tally.dropped, "shared": {}}
    warnings = []
    if tally.dropped:
        where = " and ".join(sorted({entry["also_in"] for entry in tally.dropped}))
        warnings.append(
            f"Images of train that are also in {where} and were left out of train: {len(tally.dropped):,} "
            f"({_first([entry['name'] for entry in tally.dropped])})."
        )
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        if one not in splits or other not in splits:
            continue
        pairs = duplicate_rows(splits[one].digests, splits[other].digests)
        record["shared"][f"{one}, {other}"] = len(pairs)
        if not pairs:
            continue
        first = f"{splits[one].names[pairs[0][0]]} ({one}) and {splits[other].names[pairs[0][1]]} ({other})"
        if one == "train" and options.duplicates == "error":
            more = f"; in all, {len(pairs):,} images of {one} are in {other}" if len(pairs) > 1 else ""
            raise UserError(
                f"{first} are the same image{more}; remove them, or set data.duplicates=drop to leave them out of "
                "train or data.duplicates=keep to train on them."
            )
        warnings.append(f"Images of {one} that are also in {other}: {len(pairs):,} (the first: {first}).")
    return record, warnings


def skipped_warning(tally: Tally) -> list[str]:
    """One sentence when images were skipped."""
    if not tally.skipped:
        return []
    named = [f"{entry['name']} ({entry['reason']})" for entry in tally.skipped]
    return [f"Skipped {len(named):,} of {tally.total:,} images, which cannot be used: {_first(named)}."]


def note_warnings(tally: Tally, options: DataConfig) -> list[str]:
    """One sentence for each kind of image that a person may expect to be treated in another way."""
    return [
        f"{what}{_ROTATION[options.exif_rotation] if note == decode.ROTATED else ''}: "
        f"{len(tally.notes[note]):,} ({_first(sorted(tally.notes[note]))})."
        for note, what in _NOTES.items()
        if note in tally.notes
    ]


def label_warnings(splits: Mapping[str, Rows]) -> list[str]:
    """One sentence for each split in which some images have a label and some have none."""
    sentences = []
    for split, rows in splits.items():
        missing = [name for name, label in zip(rows.names, rows.labels, strict=True) if label < 0]
        if missing and rows.labelled:
            sentences.append(
                f"Images of {split} without a label, which take no part in fine-tuning: {len(missing):,} of "
                f"{len(rows.names):,} ({_first(missing)})."
            )
    return sentences


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW:,} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more
