"""Make the images of the studies: `recipes/study_images.py {fashion,elpv,digits} ...` (see recipes/README.md)."""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import zipfile
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, count, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bundled_mae import read_idx, write_idx

BUNDLED = slice(0, 2_000)  # rows of Fashion-MNIST's training split that sdfast bundles: what the target trains on
SPARE_TRAIN = slice(2_000, 4_000)
SPARE_TEST = slice(4_000, 6_000)
POOL = slice(6_000, None)
UPPER_BODY = (0, 2, 3, 4, 6)  # t-shirt, pullover, dress, coat, shirt: garments with a neck and sleeves or straps
OTHERS = (1, 5, 7, 8, 9)  # trouser, sandal, sneaker, bag, ankle boot: no outline in common with those
ELPV_SHA256 = "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"
ELPV_MODULE = 60  # cells of a module, of which the list has 44 one after another and does not say where one ends
FRACTIONS = {"train": 0.5, "val": 0.2, "test": 0.3}


@dataclass(frozen=True)
class Rows:
    """Images [n, H, W] uint8 and their labels [n] uint8."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def part(self, which: slice | np.ndarray) -> Rows:
        """The rows that a slice or a mask [n] takes."""
        return Rows(self.images[which], self.labels[which])

    def of_classes(self, classes: Sequence[int]) -> Rows:
        """The rows of these classes, in their order."""
        return self.part(np.isin(self.labels, classes))

    def digests(self) -> list[bytes]:
        """SHA-256 of each image's pixels."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.images]


def without(rows: Rows, *taken: Rows) -> Rows:
    """The rows whose pixels are those of no row of `taken`."""
    seen = {digest for other in taken for digest in other.digests()}
    return rows.part(np.array([digest not in seen for digest in rows.digests()], bool))


def check_apart(sets: Mapping[str, Iterable[Rows]]) -> None:
    """Stop when two sets, each of several parts, share an image.

    Raises:
        SystemExit: the two sets' names and how many images they share.
    """
    digests = {name: {digest for rows in parts for digest in rows.digests()} for name, parts in sets.items()}
    for one, other in combinations(digests, 2):
        if shared := len(digests[one] & digests[other]):
            raise SystemExit(f"{one} and {other} share {shared} images.")


def seeded_split(strata: Sequence[Hashable], seed: int) -> list[str]:
    """ "train", "val" or "test" for each row, in the proportions of `FRACTIONS` within each stratum."""
    members: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row, stratum in enumerate(strata):
        members[stratum].append(row)
    random = np.random.default_rng(seed)
    split = ["test"] * len(strata)
    for stratum in sorted(members, key=repr):
        order = random.permutation(members[stratum])
        train, val = round(FRACTIONS["train"] * len(order)), round(FRACTIONS["val"] * len(order))
        for row in order[:train]:
            split[row] = "train"
        for row in order[train : train + val]:
            split[row] = "val"
    return split


def blocks_of(kinds: Sequence[str]) -> list[int]:
    """The number of each row's block: at most `ELPV_MODULE` rows that follow one another and are of one kind."""
    numbers: list[int] = []
    for _, run in groupby(kinds):
        first = numbers[-1] + 1 if numbers else 0
        numbers += [first + place // ELPV_MODULE for place, _ in enumerate(run)]
    return numbers


def strata_of(blocks: Sequence[int], kinds: Sequence[str], defective: Sequence[bool]) -> list[tuple[str, int]]:
    """Each block's stratum: its kind, and which ten of that kind's blocks it is in, ordered by defective share."""
    members: defaultdict[int, list[bool]] = defaultdict(list)
    for block, bad in zip(blocks, defective, strict=True):
        members[block].append(bad)
    kind_of = dict(zip(blocks, kinds, strict=True))
    order = sorted(members, key=lambda block: (kind_of[block], sum(members[block]) / len(members[block])))
    ranks = {kind: count() for kind in kind_of.values()}
    stratum = {block: (kind_of[block], next(ranks[kind_of[block]]) // 10) for block in order}
    return [stratum[block] for block in sorted(members)]


class Cell(NamedTuple):
    """A row of ELPV's table: `type` is mono or poly, `block` a stretch of the list that is on one side of the split."""

    file_name: str
    label: str
    type: str
    block: int
    split: str


def write_table(path: Path, cells: Sequence[Cell]) -> None:
    """A csv that `--data` takes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Cell._fields)
        table.writerows(cells)
    for split in FRACTIONS:
        labels = Counter(cell.label for cell in cells if cell.split == split)
        if labels:
            print(f"{path}: {labels.total():,} rows of {split} ({labels['defective']:,} defective)")


def write(folder: Path, parts: Mapping[str, Rows], labelled: bool = True) -> None:
    """An IDX folder that `--data` takes, with a pair of files a split (t10k is test)."""
    for prefix, rows in parts.items():
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", rows.images)
        if labelled:
            write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", rows.labels)
        classes = np.bincount(rows.labels)
        counts = ", ".join(f"{label}: {count:,}" for label, count in enumerate(classes) if count)
        print(f"{folder}: {len(rows):,} rows of {prefix} ({counts})")


def read_rows(folder: Path, prefix: str) -> Rows:
    """One split of Fashion-MNIST as its files are published."""
    images, labels = (read_idx(folder / f"{prefix}-{kind}.gz") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return Rows(images, labels)


def write_fashion(
    out: Path, prefix: str, pool: Rows, validation: Mapping[str, Rows], target: Mapping[str, Rows]
) -> None:
    """Pool without labels, validation and target; no image is in two of the three."""
    apart = without(pool, *validation.values(), *target.values())
    if dropped := len(pool) - len(apart):
        print(f"{prefix}pool: {dropped} images that validation or target have too are left out")
    check_apart({"pool": [apart], "validation": validation.values(), "target": target.values()})
    write(out / f"{prefix}pool", {"train": apart}, labelled=False)
    write(out / f"{prefix}validation", validation)
    write(out / f"{prefix}target", target)


def make_fashion(arguments: argparse.Namespace) -> None:
    """Fashion-MNIST as pool to pre-train on, spare rows for choices, and target; the same with shifted classes."""
    source, out = Path(arguments.source), Path(arguments.out) / "fashion"
    rows, test = read_rows(source, "train"), read_rows(source, "t10k")
    pool = rows.part(POOL)
    validation = {"train": rows.part(SPARE_TRAIN), "t10k": rows.part(SPARE_TEST)}
    target = {"train": rows.part(BUNDLED), "t10k": test}
    write_fashion(out, "", pool, validation, target)
    shifted = [{name: part.of_classes(OTHERS) for name, part in parts.items()} for parts in (validation, target)]
    write_fashion(out, "shifted-", pool.of_classes(UPPER_BODY), *shifted)


def make_elpv(arguments: argparse.Namespace) -> None:
    """ELPV's solar cells as tables with a seeded split by blocks, from the package's wheel, read as an archive."""
    wheel, out = Path(arguments.wheel), Path(arguments.out) / "elpv"
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != ELPV_SHA256:
        raise SystemExit(f"{wheel} is not elpv_dataset-1.0.0.post1-py3-none-any.whl: its SHA-256 differs.")
    with zipfile.ZipFile(wheel) as archive:
        lines = [line.split() for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines()]
        contents = {name: archive.read(f"elpv_dataset/data/{name}") for name, _, _ in lines}
    (out / "images").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (out / name).write_bytes(content)
    defective = [float(probability) > 0.5 for _, probability, _ in lines]
    blocks = blocks_of([kind for _, _, kind in lines])
    split = seeded_split(strata_of(blocks, [kind for _, _, kind in lines], defective), arguments.seed)
    rows = [
        Cell(name, "defective" if bad else "functional", kind, block, split[block])
        for (name, _, kind), bad, block in zip(lines, defective, blocks, strict=True)
    ]
    write_table(out / "target.csv", rows)
    as_test = {"train": "train", "val": "test"}
    write_table(
        out / "validation.csv", [row._replace(split=as_test[row.split]) for row in rows if row.split in as_test]
    )


def make_digits(arguments: argparse.Namespace) -> None:
    """scikit-learn's 8x8 digits with a seeded split; 17 grey levels become 0 to 255."""
    with gzip.open(arguments.table, "rt") as file:
        values = np.loadtxt(file, delimiter=",", dtype=np.int64)
    images = np.round(values[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    rows = Rows(images, values[:, -1].astype(np.uint8))
    split = np.array(seeded_split(rows.labels.tolist(), arguments.seed))
    train, val, test = (rows.part(split == name) for name in FRACTIONS)
    check_apart({"train": [train], "val": [val], "test": [test]})
    write(Path(arguments.out) / "digits" / "target", {"train": train, "val": val, "t10k": test})
    write(Path(arguments.out) / "digits" / "validation", {"train": train, "t10k": val})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="study-images", help="folder below which each target has its own")
    commands = parser.add_subparsers(required=True)
    fashion = commands.add_parser("fashion", help=make_fashion.__doc__)
    fashion.add_argument("source", help="folder of the four full Fashion-MNIST .gz files")
    fashion.set_defaults(run=make_fashion)
    elpv = commands.add_parser("elpv", help=make_elpv.__doc__)
    elpv.add_argument("wheel", help="elpv_dataset-1.0.0.post1-py3-none-any.whl")
    elpv.add_argument("--seed", type=int, default=0)
    elpv.set_defaults(run=make_elpv)
    digits = commands.add_parser("digits", help=make_digits.__doc__)
    digits.add_argument("table", help="sklearn/datasets/data/digits.csv.gz")
    digits.add_argument("--seed", type=int, default=0)
    digits.set_defaults(run=make_digits)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
