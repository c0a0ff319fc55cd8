"""TweetEval's layout: `train_text.txt`, `train_labels.txt` (a line each), `val_...`, `test_...` and `mapping.txt`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sdfast.data.columns import text_reader
from sdfast.data.config import DataConfig
from sdfast.data.items import SPLITS, Item, Items, Source
from sdfast.data.labels import check_labels, compare_classes
from sdfast.data.lines import read_lines
from sdfast.data.modality import TEXTS
from sdfast.errors import UserError

_MAPPING = "mapping.txt"
_MOST_CLASSES = 100_000


def is_tweet_eval(names: Collection[str]) -> bool:
    """Whether a folder with entries of these names has the layout."""
    return {"train_text.txt", "train_labels.txt"} <= set(names)


def open_tweet_eval(path: Path, options: DataConfig) -> Source:
    """Open a folder of TweetEval's layout; without `mapping.txt` the classes are called by their numbers.

    Raises:
        UserError: a split with other numbers of texts and labels, a label that is no number or has no name, a class of
            test that train lacks, or a file that is not of `options.encoding`.
    """
    texts: dict[str, list[str]] = {}
    numbers: dict[str, list[int | None]] = {}
    for split in SPLITS:
        file = path / f"{split}_text.txt"
        if file.is_file():
            texts[split] = [text.strip() for _, text in read_lines(file, encoding=options.encoding)]
            numbers[split] = _read_labels(path / f"{split}_labels.txt", file, len(texts[split]), options.encoding)
    names = _read_mapping(path / _MAPPING, options.encoding)
    if names is None:
        names = [
            str(number) for number in range(1 + max((n for part in numbers.values() for n in part if n), default=0))
        ]
    source = Source(path.name, "TweetEval", names, {}, modality=TEXTS)
    for split, labels in numbers.items():
        checked = check_labels(labels, names, f"{source.name} ({split})")
        source.splits[split] = Items(
            Item(f"{split}_text.txt:{line}", label, text_reader(text), held=len(text))
            for line, (text, label) in enumerate(zip(texts[split], checked, strict=True), start=1)
        )
    compare_classes(source, strict=True, unseen=options.unseen)
    return source


def _read_labels(file: Path, of: Path, count: int, encoding: str) -> list[int | None]:
    if not file.is_file():
        raise UserError(f"{of} has no {file.name} beside it.")
    labels: list[int | None] = []
    for line, text in read_lines(file, encoding=encoding):
        try:
            labels.append(int(text))
        except ValueError:
            raise UserError(f"{file} line {line} is not the number of a class.") from None
        if labels[-1] is not None and labels[-1] >= _MOST_CLASSES:
            raise UserError(f"{file} line {line} has the number {text.strip()[:20]}, which is no class's.")
    if len(labels) != count:
        raise UserError(f"{file} has {len(labels):,} labels for the {count:,} texts of {of.name}.")
    if not count:
        raise UserError(f"{of} holds no documents.")
    return labels


def _read_mapping(file: Path, encoding: str) -> list[str] | None:
    """The class names in the order of their numbers: lines of number, tab, name."""
    if not file.is_file():
        return None
    names: dict[int, str] = {}
    for line, text in read_lines(file, encoding=encoding):
        number, _, name = text.strip().partition("\t")
        if not (number or name):
            continue
        if not number.strip().isdecimal() or len(number) > 20 or not name.strip():
            raise UserError(f"{file} line {line} is not a number, a tab and the name of a class.")
        names[int(number)] = name.strip()
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{file} does not number its classes from 0 without a gap.")
    return [names[number] for number in range(len(names))]
