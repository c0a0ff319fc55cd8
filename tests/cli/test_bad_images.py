"""Every hard image, as a user meets it: one sentence that names the file and exit code 2, or a counted warning."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import write_texts

from sdfast.cli.main import run


def truncated(path: Path, sample: Path) -> None:
    path.write_bytes(sample.read_bytes()[:-200])


def zero_byte(path: Path, sample: Path) -> None:
    path.write_bytes(b"")


def text_with_an_images_name(path: Path, sample: Path) -> None:
    path.write_text("not a picture")


def enormous(path: Path, sample: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end)


def copy_of_a_test_image(path: Path, sample: Path) -> None:
    shutil.copy(sorted((path.parents[2] / "test").rglob("*.png"))[0], path)


def cmyk(path: Path, sample: Path) -> None:
    Image.open(sample).convert("CMYK").save(path, "JPEG")


def sixteen_bit(path: Path, sample: Path) -> None:
    Image.new("I;16", (20, 20), 40_000).save(path, "PNG")


def animated(path: Path, sample: Path) -> None:
    frames = [Image.new("L", (20, 20), level) for level in (10, 200)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def pipe(path: Path, sample: Path) -> None:
    os.mkfifo(path)


def device(path: Path, sample: Path) -> None:
    path.symlink_to("/dev/urandom")


def memory(path: Path, sample: Path) -> None:
    path.symlink_to("/proc/self/mem")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    model, data = write_model(tmp_path / "model"), write_images(tmp_path / "images")
    steps = [*FEW_STEPS, "--stage", "pretrain"]
    return ["train", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "run"), *steps]


def put(spoil: object, tmp_path: Path, name: str) -> None:
    sample = tmp_path / "images" / "train" / "class0" / "train0.png"
    spoil(sample.with_name(name), sample)  # type: ignore[operator]


@pytest.mark.parametrize(
    "spoil",
    [truncated, zero_byte, text_with_an_images_name, enormous, copy_of_a_test_image, pipe, device, memory],
)
def test_one_sentence_that_names_the_file(
    spoil: object, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(spoil, tmp_path, "spoiled.png")
    assert run([*arguments, "data.max_broken=0"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdfast: ")]
    assert len(lines) == 1
    assert "spoiled.png" in lines[0]
    assert not (tmp_path / "run" / "pretrain").exists()


@pytest.mark.parametrize("spoil", [truncated, zero_byte, text_with_an_images_name, enormous, pipe])
def test_broken_files_are_skipped_with_a_counted_warning_up_to_the_cap(
    spoil: object, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(spoil, tmp_path, "spoiled.png")
    assert run(arguments) == 0
    said = capsys.readouterr().err
    assert "Skipped 1 of 37" in said and "spoiled.png" in said
    for number in range(4):
        put(spoil, tmp_path, f"more{number}.png")
    assert run(arguments) == 2
    assert "data.max_broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "name"), [(cmyk, "c.jpg"), (sixteen_bit, "s.png"), (animated, "a.gif"), (cmyk, "jpeg.png")]
)
def test_unusual_images_are_converted(spoil: object, name: str, arguments: list[str], tmp_path: Path) -> None:
    put(spoil, tmp_path, name)
    assert run([*arguments, "data.max_broken=0"]) == 0


def test_duplicates_across_train_and_test_can_be_dropped_or_kept(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(copy_of_a_test_image, tmp_path, "copy.png")
    assert run(arguments) == 2
    assert "data.duplicates=drop" in capsys.readouterr().err
    assert run([*arguments, "data.duplicates=drop"]) == 0
    assert "24 train" in capsys.readouterr().err
    assert run([*arguments, "data.duplicates=keep"]) == 0
    assert "25 train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: write_texts(root / "texts"), "texts need a model of text: name a BERT or RoBERTa by --model"),
        (lambda root: "a\0b", "NUL"),
        (lambda root: "x" * 5000, "file name too long"),
        (lambda root: "/dev/zero", "a device, not a regular file"),
        (lambda root: "~no-such-user/x", "no such user"),
    ],
    ids=["texts", "NUL", "long", "device", "user"],
)
def test_data_that_is_none(
    make: Callable[[Path], object], words: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments[arguments.index("--data") + 1] = str(make(tmp_path))
    assert run(arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdfast: ")]
    assert len(said) == 1 and words in said[0] and said[0].isprintable()


def test_a_file_name_that_is_not_utf_8_keeps_its_bytes(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "images" / "test" / "class0"
    first = sorted(folder.iterdir())[0]
    os.rename(first, os.path.join(os.fsencode(folder), b"caf\xe9.png"))
    arguments[arguments.index("pretrain", arguments.index("--stage"))] = "finetune"
    assert run([*arguments, "finetune.start=init"]) == 0
    assert run(["eval", "--out", str(tmp_path / "run")]) == 0
    assert b"test/class0/caf\xe9.png,class0," in (tmp_path / "run" / "predictions.csv").read_bytes()
