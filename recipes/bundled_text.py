"""Make the bundled text set: `python recipes/bundled_text.py WORDNET_FOLDER` (see recipes/README.md)."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
from pathlib import Path

# WordNet's lexicographer files of nouns that are the classes, by the number in its data files (lexnames(5WN)).
CLASSES = {
    "act": 4,
    "animal": 5,
    "artifact": 6,
    "body": 8,
    "communication": 10,
    "food": 13,
    "location": 15,
    "plant": 20,
    "state": 26,
    "substance": 27,
}
FEWEST_WORDS, MOST_WORDS = 8, 60
UNWELCOME = re.compile(r"offensive|obscene|vulgar|slang|slur|disparag|derogat|taboo|sexual|genital|ethnic|racial")
HEADER = "  "  # the licence above the entries is indented


def glosses(data_noun: Path) -> dict[str, list[str]]:
    """The explanations of each class, those that stand under one class alone, without repetitions."""
    name_of = {number: name for name, number in CLASSES.items()}
    class_of: dict[str, set[int]] = {}
    for line in data_noun.read_text(encoding="ascii").splitlines():
        if line.startswith(HEADER):
            continue
        entry, _, gloss = line.partition(" | ")
        class_of.setdefault(" ".join(gloss.split()), set()).add(int(entry.split()[1]))
    found: dict[str, list[str]] = {name: [] for name in CLASSES}
    for gloss, numbers in class_of.items():
        name = name_of.get(next(iter(numbers))) if len(numbers) == 1 else None
        fits = FEWEST_WORDS <= len(gloss.split()) <= MOST_WORDS
        if name is not None and fits and not UNWELCOME.search(gloss.lower()):
            found[name].append(gloss)
    return found


def chosen(texts: list[str], count: int) -> list[str]:
    """`count` of the texts, the same whatever their order; of texts that begin alike, one."""
    by_digest = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    beginnings: set[str] = set()
    kept = []
    for text in by_digest:
        beginning = re.sub(r"[^a-z ]", "", text.lower())[:40]
        if beginning not in beginnings:
            beginnings.add(beginning)
            kept.append(text)
    if len(kept) < count:
        raise SystemExit(f"only {len(kept)} texts of {count}")
    return kept[:count]


def write_json_lines(path: Path, rows: list[tuple[str, str]]) -> None:
    """Gzipped JSON lines of text and label, in an order that mixes the classes; the same bytes every time."""
    rows = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).digest()[::-1])
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode(), 9, mtime=0))


def main() -> None:
    """Write train.jsonl.gz and test.jsonl.gz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wordnet", type=Path, help="folder with data.noun")
    parser.add_argument("--out", type=Path, default=Path("sdfast/bundled/wordnet-glosses"))
    parser.add_argument("--train", type=int, default=200, help="texts of each class")
    parser.add_argument("--test", type=int, default=100, help="texts of each class")
    options = parser.parse_args()
    train, test = [], []
    for name, texts in glosses(options.wordnet / "data.noun").items():
        picked = chosen(texts, options.train + options.test)
        train += [(text, name) for text in picked[: options.train]]
        test += [(text, name) for text in picked[options.train :]]
        print(f"{name}: {len(texts):,} to choose from")
    write_json_lines(options.out / "train.jsonl.gz", train)
    write_json_lines(options.out / "test.jsonl.gz", test)


if __name__ == "__main__":
    main()
