"""Texts that are hostile or unlucky."""

from __future__ import annotations

import json
from pathlib import Path

from stress.hostile_files import MB, SPECIAL, Inputs, Write, bytes_of, repeated, special_file, zip_file
from stress.hostile_tables import parquets, tables


def _lines(text: str) -> Inputs:
    """JSON Lines."""
    good = b"".join(json.dumps({"text": text, "label": f"l{n % 2}"}).encode() + b"\n" for n in range(16))
    ways: dict[str, Write] = {
        "deep lists": bytes_of("evil.jsonl", good + b"[" * 200_000 + b"]" * 200_000 + b"\n"),
        "deep objects": bytes_of("evil.jsonl", good + b'{"text":' * 200_000 + b"\n"),
        "a line of words of 100 MB": repeated(
            "evil.jsonl", b"word " * (MB // 5), 100, good + b'{"text": "', b'", "label": "l0"}\n'
        ),
        "a word of 200 MB": repeated("evil.jsonl", b"w" * MB, 200, good + b'{"text": "', b'", "label": "l0"}\n'),
        "a line that never ends": repeated("evil.jsonl", b"w" * MB, 200, good + b'{"text": "'),
        "100 MB of line breaks": repeated("evil.jsonl", b"\n" * MB, 100, good),
        "a lone surrogate in a text": bytes_of("evil.jsonl", good + b'{"text": "a \\ud800 b", "label": "l0"}\n'),
        "a lone surrogate in a label": bytes_of("evil.jsonl", good + b'{"text": "a b", "label": "\\ud800"}\n' * 6),
        "a number of 100,000 digits": bytes_of(
            "evil.jsonl", good + b'{"text": "a", "label": ' + b"1" * 100_000 + b"}\n"
        ),
        "labels of every kind": bytes_of(
            "evil.jsonl",
            good
            + b"".join(
                b'{"text": "a", "label": %s}\n' % each
                for each in (b"1", b"1.0", b"true", b"null", b"[]", b"{}", b"NaN", b"1e999", b'""')
            ),
        ),
        "texts of every kind": bytes_of(
            "evil.jsonl",
            good
            + b"".join(
                b'{"text": %s, "label": "l0"}\n' % each
                for each in (b"1", b"true", b"null", b"[]", b"{}", b"NaN", b'""')
            ),
        ),
        "lines of every kind": bytes_of("evil.jsonl", good + b'1\nnull\n[]\n"a"\n{}\n'),
        "NULs": bytes_of("evil.jsonl", good + bytes(1000)),
        "a key twice": bytes_of("evil.jsonl", good + b'{"text": "a", "text": "b", "label": "l0", "label": "l1"}\n'),
        "UTF-16": bytes_of("evil.jsonl", good.decode().encode("utf-16")),
        "control characters": bytes_of(
            "evil.jsonl", good + b'{"text": "\\u0000\\u001b[2J\\u202e", "label": "\\u001b[31m"}\n' * 6
        ),
    }
    special: dict[str, Write] = {target: special_file("evil.jsonl", target) for target in SPECIAL if target != "x"}
    return {f"jsonl: {how}": ("evil.jsonl", write) for how, write in (ways | special).items()}


def text_inputs() -> Inputs:
    """Everything that --data may be, of texts."""
    found = tables("text", "word1 word2") | parquets("text") | _lines("word1 word2 word3")

    def folder_of(name: str, write: Write) -> Write:
        def both(folder: Path) -> None:
            for label in ("a", "b"):
                (folder / "evil" / label).mkdir(parents=True)
                for number in range(10):
                    (folder / f"evil/{label}/{number}.txt").write_text(f"word{number} {label}\n")
            write(folder)

        return both

    for target in SPECIAL:
        name = f"evil/a/{'x' if target == 'x' else 'x.txt'}"
        found[f"txt: {target}"] = ("evil", folder_of(name, special_file(name, target)))
    for how, data in {"empty": b"", "binary": bytes(range(256)) * 100, "a zip file": zip_file()}.items():
        found[f"txt: {how}"] = ("evil", folder_of("", bytes_of("evil/a/x.txt", data)))
    found["txt: a word of 100 MB"] = ("evil", folder_of("", repeated("evil/a/x.txt", b"w" * MB, 100)))
    return found
