"""IDX files: pairs, single files, compression, and damage."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_samples import idx_bytes, pixels

from sdfast.data.items import Source
from sdfast.errors import UserError

Open = Callable[..., Source]


def write_pair(folder: Path, prefix: str, labels: list[int], packed: bool, seed: int = 0) -> np.ndarray:
    images = pixels(seed, 5, 4, len(labels)).transpose(2, 0, 1).copy()
    for name, array in (("images-idx3", images), ("labels-idx1", np.asarray(labels, np.uint8))):
        data = idx_bytes(array)
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)
    return images


def test_what_is_none_is_refused_before_it_is_unpacked(tmp_path: Path, open_spec: Open) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (60_000, 2800, 2800))
    cases = {  # gzip files of 64 MB of zeros, of which some say to hold 470 GB
        bytes(4): "is not an IDX file of unsigned bytes with 3 dimensions",
        header: "says 470400000000 bytes of data, and has",
        b"\0\0\x08\x03\0\0\0\x02\0\0\0\x05\0\0\0\x04": "says 40 bytes of data and has more",
    }
    for start, message in cases.items():
        path.write_bytes(gzip.compress(start + bytes(64 << 20), 1))
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match=message):
                open_spec(path)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
def test_train_and_t10k(tmp_path: Path, open_spec: Open, packed: bool) -> None:
    images = write_pair(tmp_path, "train", [3, 0, 10], packed)
    write_pair(tmp_path, "t10k", [0, 3], packed, 1)
    source = open_spec(tmp_path)
    assert source.kind == "IDX" and source.class_names == ["0", "3", "10"]
    assert source.splits["train"].labels == [1, 0, 2] and source.splits["test"].labels == [0, 1]
    np.testing.assert_array_equal(source.splits["train"][1].read(), images[1])
    assert source.splits["train"][1].name.endswith(("images-idx3-ubyte:1", "images-idx3-ubyte.gz:1"))
    assert source.warnings == ["Classes of train without an image in test: 1 (the first: '10')."]


def test_one_file_finds_its_labels(tmp_path: Path, open_spec: Open) -> None:
    write_pair(tmp_path, "t10k", [1, 2], packed=True)
    source = open_spec(tmp_path / "t10k-images-idx3-ubyte.gz")
    assert list(source.splits) == ["train"] and source.splits["train"].labels == [0, 1]


def test_without_labels(tmp_path: Path, open_spec: Open) -> None:
    write_pair(tmp_path, "scans", [1, 2], packed=False)
    (tmp_path / "scans-labels-idx1-ubyte").unlink()
    assert open_spec(tmp_path).class_names is None


def test_plain_and_packed_copies_of_a_file_count_once(tmp_path: Path, open_spec: Open) -> None:
    for packed in (True, False):
        write_pair(tmp_path, "train", [1, 2], packed)
    assert len(open_spec(tmp_path).splits["train"]) == 2


def test_two_files_of_one_split(tmp_path: Path, open_spec: Open) -> None:
    for prefix in ("letters-train", "digits-train"):
        write_pair(tmp_path, prefix, [1, 2], packed=False)
    with pytest.raises(UserError, match=r"two files of train images, digits-train-.* and letters-train-"):
        open_spec(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train-images-idx3-ubyte", b"", "is not an IDX file of unsigned bytes with 3 dimensions"),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros(7, np.uint8)), "with 3 dimensions"),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros((2, 5, 4), np.uint8))[:-1], "says 40 bytes of data and has 39"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 12, "damaged"),
        ("train-labels-idx1-ubyte", idx_bytes(np.zeros(3, np.uint8)), "has 3 labels for the 2 images"),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b not gzip", "is not a whole gzip file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(500))[:-6], "is not a whole gzip file"),
    ],
    ids=["empty", "dimensions", "cut", "huge", "labels", "not gzip", "cut gzip"],
)
def test_damage_is_named(tmp_path: Path, open_spec: Open, name: str, data: bytes, message: str) -> None:
    write_pair(tmp_path, "train", [1, 2], packed=False)
    if name.endswith(".gz"):
        (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        open_spec(tmp_path)
    assert name in str(caught.value)


def test_counts_are_compared_before_the_images_are_read(tmp_path: Path, open_spec: Open) -> None:
    """A file of images may hold gigabytes of nothing: here it ends after its header, and is not read that far."""
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    images.write_bytes(bytes((0, 0, 8, 3)) + b"".join(size.to_bytes(4, "big") for size in (9, 1, 1)) + bytes(12))
    labels.write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(UserError, match="has 3 labels for the 9 images"):
        open_spec(tmp_path)
