"""Tables that are hostile or unlucky, of images and of texts."""

from __future__ import annotations

import struct
from collections.abc import Callable

from stress.hostile_files import MB, SPECIAL, Inputs, Write, bytes_of, repeated, special_file


def parquets(column: str) -> Inputs:
    """The good file that `scenes` has written, damaged."""

    def damaged(change: Callable[[bytes], bytes]) -> Write:
        good = f"parquet/{column}.parquet"
        return lambda folder: (folder / "evil.parquet").write_bytes(change((folder / good).read_bytes())) and None

    def flipped(place: int) -> Callable[[bytes], bytes]:
        return lambda good: good[:-place] + bytes([good[-place] ^ 16]) + good[len(good) - place + 1 :]

    ways: dict[str, Callable[[bytes], bytes]] = {
        "footer of 2^31 - 1 bytes": lambda good: good[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1",
        "footer of all there is": lambda good: good[:-8] + struct.pack("<I", len(good) - 8) + b"PAR1",
        "nothing but its marks": lambda good: b"PAR1PAR1",
        "cut in half": lambda good: good[: len(good) // 2],
        "zeros": lambda good: bytes(len(good)),
    } | {f"bit flipped {place} bytes before the end": flipped(place) for place in (9, 20, 60, 120, 200, 300)}
    return {f"parquet: {how}": ("evil.parquet", damaged(change)) for how, change in ways.items()}


def tables(first: str, value: str, header: str = "label") -> Inputs:
    """Tables of comma-separated values, which images and texts share."""
    head = f"{first},{header}\n".encode()
    row = f"{value},a\n".encode()
    many = ",".join(f"c{number}" for number in range(100_000)).encode()
    ways: dict[str, Write] = {
        "empty": bytes_of("evil.csv", b""),
        "a header alone": bytes_of("evil.csv", head),
        "NULs": bytes_of("evil.csv", head + row.replace(b",a", b",a\0") * 9),
        "nothing but NULs": bytes_of("evil.csv", bytes(MB)),
        "lone carriage returns": bytes_of("evil.csv", (head + row * 9).replace(b"\n", b"\r")),
        "UTF-16": bytes_of("evil.csv", (head + row * 9).decode().encode("utf-16")),
        "invalid UTF-8": bytes_of("evil.csv", head + b"\xff\xfe\xfa,a\n" * 9),
        "100,000 columns": bytes_of("evil.csv", head[:-1] + b"," + many + b"\n" + row[:-1] + b"," * 100_000 + b"\n"),
        "a column twice": bytes_of("evil.csv", head[:-1] + b"," + head + row * 9),
        "a quote that never ends": repeated("evil.csv", b"x" * MB, 60, head + b'"'),
        "a line of 100 MB": repeated("evil.csv", b"word " * (MB // 5), 100, head, b",a\n"),
        "a field too many": bytes_of("evil.csv", head + row.replace(b"\n", b",b,c\n") * 9),
        "a path with NUL": bytes_of("evil.csv", head + b"a\0b.png,a\n" * 9),
        "a path of 5,000 letters": bytes_of("evil.csv", head + b"a" * 5000 + b".png,a\n"),
        "a path of 2,000 folders": bytes_of("evil.csv", head + b"a/" * 2000 + b"b.png,a\n"),
        "device paths": bytes_of("evil.csv", head + b"/dev/zero,a\n/dev/urandom,b\n/proc/kmsg,a\n/dev/stdin,b\n" * 5),
        "links of the web": bytes_of("evil.csv", head + b"https://example.invalid/a.png,a\n" * 9),
        "a label of 1 MB": bytes_of("evil.csv", head + value.encode() + b"," + b"l" * MB + b"\n" + row * 9),
        "20,000 labels": bytes_of("evil.csv", head + b"".join(f"{value},{n}\n".encode() for n in range(20_000))),
        "a label of a line break": bytes_of("evil.csv", head + f'{value},"a\nb"\n'.encode() * 5 + row * 5),
    }
    special: dict[str, Write] = {target: special_file("evil.csv", target) for target in SPECIAL if target != "x"}
    return {f"csv: {how}": ("evil.csv", write) for how, write in (ways | special).items()}
