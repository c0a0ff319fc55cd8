"""Lines of text files: how they are written, where they end, and how long they may be."""

from __future__ import annotations

import codecs
import gzip
import os
from pathlib import Path

import pytest

from sdfast.data import lines as lines_module
from sdfast.data.config import DataConfig
from sdfast.data.lines import fitting_encoding, read_lines
from sdfast.errors import UserError

LETTERS = {
    "cp1252": "Le café “naïve” était fermé, 5 €.",
    "cp1251": "Привет, как твои дела сегодня?",
    "cp932": "これは日本語のテキストです。",
    "euc_jp": "これは日本語のテキストです。",
    "gb18030": "这是一个中文句子，很好。",
    "cp949": "이것은 한국어 문장입니다.",
    "utf-16-le": "A plain sentence, and é.",
    "utf-16-be": "A plain sentence, and é.",
}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
@pytest.mark.parametrize("encoding", LETTERS)
def test_the_encoding_that_fits_is_named_and_works(tmp_path: Path, name: str, encoding: str) -> None:
    text = LETTERS[encoding]
    path = written(tmp_path / name, f"one\n{text}\n".encode(encoding))
    with pytest.raises(UserError) as caught:
        list(read_lines(path))
    said = str(caught.value)
    assert f"data.encoding={encoding}" in said and str(path) in said
    if not encoding.startswith("utf-16"):
        assert "line 2 is not a UTF-8 text: " in said and "é" not in said.replace(text[:20], "") and text[:12] in said
    assert list(read_lines(path, encoding=DataConfig(encoding=encoding).encoding)) == [(1, "one\n"), (2, f"{text}\n")]


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_cp1252_where_utf8_fails(tmp_path: Path, name: str) -> None:
    """As Python's own decoder reads it, from the line on that is not UTF-8; before it there is only ASCII."""
    text = "plain\n" * 9000 + f"{LETTERS['cp1252']}\nplain\nß “x”\n"
    path, told = written(tmp_path / name, text.encode("cp1252")), list[str]()
    assert list(read_lines(path, say=told.append)) == list(enumerate(text.splitlines(keepends=True), start=1))
    assert told == [
        f"line 9001 of {name} is not UTF-8, so the file is read as cp1252, in which it says 'Le café “naïve” était "
        "ferm'; if that is wrong, name the right one by data.encoding"
    ]
    told.clear()
    assert "".join(line for _, line in read_lines(written(path, text.encode()), say=told.append)) == text
    assert told == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "é\n".encode() + "café\n".encode("cp1252"),
            "line 2 is not a UTF-8 text: .* save it in one",
        ),  # both, the other way round:
        ("café\n".encode("cp1252") + b"x\n" + "né\n".encode(), "line 3 is UTF-8 and line 1 is not"),
        (codecs.BOM_UTF8 + "café\n".encode("cp1252"), "line 1 is not a UTF-8 text: "),
        (b"caf\xe9\x00\x01\n", "line 1 is not a UTF-8 text: "),
        (b"\x81 caf\xe9\n", "line 1 is not a UTF-8 text: "),  # the first is no letter in cp1252
        (b"caf\xe9\n" + b"x\n" * 40_000 + b"\x81\n", "line 40002 is not a cp1252 text: .* Line 1 is not UTF-8"),
        *((LETTERS[name].encode(name), f"data.encoding={name}") for name in ("cp1251", "cp932", "gb18030", "cp949")),
    ],
)
def test_what_is_not_taken_for_cp1252(tmp_path: Path, content: bytes, message: str) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match=message):
        list(read_lines(written(tmp_path / "x.txt", content), say=told.append))


@pytest.mark.parametrize(
    "text",
    [
        "a,ação\nb,coração",
        "a,Größe\n",
        "it’s fine",
        "“Hello”, he said",
        "für Öl",
        "Thérèse",
        "5 €",
        "5 °C, naïve",
        "Übung, öffnen",
        "école",
        "naïve;café",
        "Nº 5",
    ],
)
def test_short_tables_in_cp1252(tmp_path: Path, text: str) -> None:
    told: list[str] = []
    path = written(tmp_path / "x.csv", text.encode("cp1252"))
    assert "".join(line for _, line in read_lines(path, say=told.append)) == text and len(told) == 1


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *(("a,ネコ\nb,イヌ", "cp932"), ("a,猫\nb,犬", "cp932"), ("ソフト,表示", "cp932"), ("a,一\nb,二", "big5")),
        *(("今天,功能\n", "big5"), ("a,고양이\nb,개", "cp949"), ("a,猫\nb,狗", "gb18030"), ("a,кот\nb,я", "cp1251")),
    ],
)
def test_short_tables_of_other_scripts_are_not_taken_for_cp1252(tmp_path: Path, text: str, encoding: str) -> None:
    path = written(tmp_path / "x.csv", text.encode(encoding))
    with pytest.raises(UserError, match="is not a UTF-8 text"):
        list(read_lines(path, say=lambda sentence: None))


@pytest.mark.parametrize("text", ["Die Größe der Straße, süß", "große Füße", "œuvre, garçon, coöperatie"])
def test_neighbouring_letters_of_latin_scripts_are_no_chinese(text: str) -> None:
    assert fitting_encoding(text.encode("cp1252")) == "cp1252"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
@pytest.mark.parametrize("asked", ["utf-8", "cp1252"])
def test_byte_order_marks_go_before_what_is_asked(tmp_path: Path, mark: bytes, encoding: str, asked: str) -> None:
    text = "é \u0a0d \u2028 \U0001f600"  # U+0A0D has the bytes of a line feed and a carriage return in UTF-16
    path = written(tmp_path / "x.txt", mark + f"{text}\r\nb".encode(encoding))
    assert [line.rstrip("\r\n") for _, line in read_lines(path, encoding=asked)] == [text, "b"]


def test_where_lines_end(tmp_path: Path) -> None:
    content = "a\rb\u2028c\x85d\x0be\nf\r\ng"
    assert list(read_lines(written(tmp_path / "x.txt", content.encode()))) == [
        (1, "a\rb\u2028c\x85d\x0be\n"),
        (2, "f\r\n"),
        (3, "g"),
    ]
    for mark in (b"", codecs.BOM_UTF8):
        path = written(tmp_path / "y.txt.gz", mark + "one é\rtwo\u2028\r\rfour".encode())
        assert [line for _, line in read_lines(path)] == ["one é\n", "two\u2028\n", "\n", "four"]


def test_a_line_has_a_greatest_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "LONGEST_LINE", 1000)
    for end, encoding in (("\n", "utf-8"), ("\r", "utf-8"), ("\n", "utf-16")):
        path = written(tmp_path / "x.txt", f"{'a' * 999}{end}b{end}".encode(encoding))
        assert [len(line) for _, line in read_lines(path)] == [1000, 2]
        written(path, f"b{end}{'a' * 1000}{end}".encode(encoding))
        with pytest.raises(UserError, match=r"x\.txt line 2 is longer than 1,000 bytes"):
            list(read_lines(path))


def test_a_packed_file_that_is_mostly_one_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "_UNPACKED", 10_000)
    path = written(tmp_path / "x.txt.gz", b"\n" * 1_000_000)
    size = path.stat().st_size
    with pytest.raises(UserError, match=rf"unpacks to more than {250 * size:,} characters"):
        list(read_lines(path))
    written(path, os.urandom(40_000).hex().encode() + b"\n")
    assert [number for number, _ in read_lines(path)] == [1]


def test_hardly_anything_but_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine blank lines for each other one are read, however many; more are taken up to a number."""
    monkeypatch.setattr(lines_module, "_BLANK_LINES", 100)
    for name, end in (("x.txt", "\n"), ("x.txt.gz", "\r\n"), ("y.txt", "\r")):
        path = written(tmp_path / name, end.encode() * 100 + b"text" + end.encode())
        assert len(list(read_lines(path))) == 101
        path = written(tmp_path / name, (b"text" + end.encode() * 10) * 1000)
        assert len(list(read_lines(path))) == 10_000
        path = written(tmp_path / name, b"text" + end.encode() * 200 + b"text")
        with pytest.raises(
            UserError, match=rf"{name} holds hardly anything but blank lines \(101 of its first 102\); remove"
        ):
            list(read_lines(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"x\.txt cannot be read: a named pipe, not a regular file\.$"):
        list(read_lines(tmp_path / "x.txt"))
    (tmp_path / "y.txt").symlink_to("/proc/self/mem")  # a regular file, as the kernel says, and no byte can be read
    with pytest.raises(UserError, match=r"y\.txt cannot be read: input/output error\.$"):
        list(read_lines(tmp_path / "y.txt"))


@pytest.mark.parametrize("name", ["base64", "klingon", "undefined", "a\0b"])
def test_encodings_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="encoding"):
        DataConfig(encoding=name)
