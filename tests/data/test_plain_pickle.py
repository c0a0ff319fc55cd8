"""Pickles of plain data are read as pickle itself reads them, and nothing that a pickle asks for is ever run."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from paper_image_samples import CIFAR, cifar_pickle, python2_array, python2_pickle, python2_text

from sdfast.data.cifar100 import read_plain_pickle
from sdfast.errors import UserError


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_python_2_wrote_is_read_as_pickle_reads_it(tmp_path: Path) -> None:
    content = cifar_pickle(*CIFAR["train"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of old dtypes
        expected = pickle.loads(content, encoding="bytes")
    found = read_plain_pickle(write(tmp_path / "train", content))
    assert {key.encode() for key in found} == set(expected)
    np.testing.assert_array_equal(found["data"], expected[b"data"])
    assert found["data"].dtype == np.uint8 and found["fine_labels"] == [2, 0, 1, 2] == expected[b"fine_labels"]
    assert found["filenames"] == [b"some.png"] * 4


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_python_3_writes_today_is_read(tmp_path: Path, order: str) -> None:
    data = np.asarray(CIFAR["test"][0], order=order)
    content = pickle.dumps({"data": data, "fine_labels": [0, 1, 2]}, protocol=4)
    found = read_plain_pickle(write(tmp_path / "test", content))
    np.testing.assert_array_equal(found["data"], data)
    assert found["fine_labels"] == [0, 1, 2]


class Evil:
    """Pickled as a call."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "call",
    [
        (os.mkdir, "made"),
        (eval, "__import__('os').mkdir('made')"),
        (np.fromfile, "x"),
        (getattr, "x", "join"),
        (bytearray, 9),
    ],
    ids=["system", "eval", "numpy", "getattr", "builtin"],
)
def test_a_pickle_that_asks_for_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[object, ...], protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "train", pickle.dumps({"data": Evil(*call)}, protocol=protocol))
    with pytest.raises(UserError, match=r"is a pickle that asks for .*, which plain data never does") as caught:
        read_plain_pickle(path)
    assert str(path) in str(caught.value) and call[0].__name__ in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "value",
    [
        b"cnumpy\nndarray\nK\x09\x85R",  # a call of the array type itself
        b"cnumpy.core.multiarray\nscalar\n",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n",
        b"ccopyreg\n_reconstructor\n",
        b"(S'ls'\nios\nsystem\n",  # INST
    ],
)
def test_the_names_of_arrays_give_nothing_away(tmp_path: Path, value: bytes) -> None:
    with pytest.raises(UserError, match="asks for"):
        read_plain_pickle(write(tmp_path / "x", python2_pickle({"data": value})))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        cifar_pickle(*CIFAR["train"])[:-100],
        pickle.dumps([1, 2]),
        pickle.dumps({1: 2}),
        python2_pickle({"data": python2_array(CIFAR["train"][0], b"O8")}),  # an array of objects
        python2_pickle({"data": python2_array(CIFAR["train"][0], b"i4")}),
        python2_pickle({"data": python2_array(CIFAR["train"][0]).replace(b"M\x00\x0c", b"M\x01\x0c")}),  # a false shape
        python2_pickle({"data": b"cnumpy.core.multiarray\n_reconstruct\n)R"}),  # an array without its state
        b"\x80\x02" + python2_text(b"id") + b"Q.",  # a persistent id
        b"\x80\x02\x82\x01.",  # a name from the extension registry
    ],
)
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "meta", content)
    with pytest.raises(UserError, match="is not a whole pickle of plain data") as caught:
        read_plain_pickle(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="meta is missing; unpack the whole archive again"):
        read_plain_pickle(tmp_path / "meta")


def test_a_disk_that_fails_is_not_called_damage(tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to("/proc/self/mem")  # a regular file, as the kernel says, and no byte can be read
    with pytest.raises(UserError, match=r"train cannot be read: input/output error\.$"):
        read_plain_pickle(tmp_path / "train")
