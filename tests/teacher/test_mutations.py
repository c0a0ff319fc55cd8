"""More than two thousand ways to damage a bank, or what it is of: each is refused in one sentence, or does no harm.

No harm means that every image still gets exactly the features it had. Nothing may end in another exception, and no file
outside the bank may be opened.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_samples import SHAPE, TRANSFORM, digests_of, make_images, make_module, make_recipe

from sdfast.durable import sha256_json
from sdfast.errors import SdfastError, UserError
from sdfast.modalities.images.augment import Augmentation, content_keys
from sdfast.modalities.images.teacher import ImageRecipe
from sdfast.teacher.bank import open_bank
from sdfast.teacher.build import prepare_bank

ROWS = 70
KINDS: dict[str, dict[str, Any]] = {
    "cls": {"tokens": "cls", "dtype": "float32"},
    "all": {"tokens": "all", "dtype": "int8"},
    "views": {"tokens": "patch", "dtype": "bfloat16", "layer": 1, "augment": Augmentation("crop", 5, 2)},
}


def the_recipe(kind: str, images: np.ndarray) -> ImageRecipe:
    recipe = make_recipe(images=images, **KINDS[kind])
    return with_keys(recipe)


def with_keys(recipe: ImageRecipe) -> ImageRecipe:
    """A recipe whose views are keyed by its images."""
    if recipe.augment is None:
        return recipe
    return replace(recipe, augment=replace(recipe.augment, keys=content_keys(recipe.digests)))


_opened: list[str] | None = None


def _note_opening(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(arguments[0])
        if arguments[2] & os.O_NOFOLLOW:  # the system refuses a link: what counts is the folder
            path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        else:
            path = os.path.realpath(path)
        _opened.append(path)


sys.addaudithook(_note_opening)


class Judge:
    """A bank, what it gives when it is whole, and the count of what became of its damaged versions."""

    def __init__(self, root: Path, kind: str) -> None:
        self.directory = root / "run" / "teacher"
        self.recipe = the_recipe(kind, make_images(ROWS))
        prepare_bank(self.directory, self.recipe)
        self.truth = self.targets(self.recipe)
        self.counts: Counter[str] = Counter()
        prepare_bank(root / "other" / "teacher", the_recipe(kind, make_images(ROWS, 2)))
        prepare_bank(root / "taught" / "teacher", replace(self.recipe, encoder=make_module(4).encoder))
        self.others = [root / "other" / "teacher", root / "taught" / "teacher"]

    def targets(self, recipe: ImageRecipe) -> dict[bytes, bytes]:
        """What every image would be matched with, by the image's bytes."""
        bank = open_bank(self.directory, recipe.identity)
        features, scale = bank.load()
        rows = recipe.bank_rows(bank)
        assert rows.min() >= 0
        found = {}
        for image, views in zip(recipe.images, rows.T, strict=True):
            found[image.tobytes()] = bytes(features[views].view(torch.uint8).numpy()) + (
                b"" if scale is None else bytes(scale[views].numpy())
            )
        return found

    def refused(self, recipe: ImageRecipe | None = None) -> bool:
        """Whether the bank as it is now is refused; otherwise it has to be as good as it was."""
        global _opened
        _opened = opened = []
        try:
            found = self.targets(recipe or self.recipe)
        except UserError as error:
            text = str(error)
            assert "\n" not in text and text.endswith(".") and len(text) < 700
            self.counts["refused"] += 1
            return True
        finally:
            _opened = None
            inside = os.path.realpath(self.directory)
            assert all(path.startswith(inside) for path in opened), opened
        assert found == self.truth
        self.counts["harmless"] += 1
        return False

    def with_file(self, name: str, change: Callable[[Path], None]) -> bool:
        """`refused` while one file is changed."""
        path, kept = self.directory / name, self.directory.parent / "kept"
        shutil.copyfile(path, kept)
        try:
            change(path)
            return self.refused()
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            path.unlink(missing_ok=True)
            kept.rename(path)

    def with_bytes(self, name: str, data: bytes) -> bool:
        return self.with_file(name, lambda path: path.write_bytes(data) and None)

    def files(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(self.directory.iterdir()) if p.name != "built.json"}


@pytest.fixture(scope="module", params=list(KINDS))
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(tmp_path_factory.mktemp(request.param), request.param)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_flipped_bits(judge: Judge) -> None:
    chance = random.Random(0)
    for name, data in judge.files().items():
        bits = [8 * byte + chance.randrange(8) for byte in range(len(data))]
        if name != "manifest.json":
            bits = chance.sample(bits, min(150, len(bits)))
        for bit in bits:
            refused = judge.with_bytes(name, flipped(data, bit))
            assert refused or name == "manifest.json", (name, bit)
    assert judge.counts["refused"] > 1000 and judge.counts["harmless"] < 0.2 * judge.counts["refused"]


def test_cut_longer_and_absent(judge: Judge) -> None:
    for name, data in judge.files().items():
        places = {0, 1, 2, 31, 32, 33, 63, 64, 65, len(data) // 2, len(data) - 33, len(data) - 2, len(data) - 1}
        for place in sorted(place for place in places if 0 <= place < len(data)):
            harmless = name == "manifest.json" and place == len(data) - 1  # its last line break
            assert judge.with_bytes(name, data[:place]) != harmless
        for more in (b"\0", data[:64], data):
            assert judge.with_bytes(name, data + more)
        assert judge.with_file(name, Path.unlink)


def test_swapped_and_strange_files(judge: Judge, tmp_path: Path) -> None:
    for other in judge.others:
        for name in judge.files():
            here, there = (judge.directory / name).read_bytes(), (other / name).read_bytes()
            assert judge.with_bytes(name, there) == (here != there)
    names = [name for name in judge.files() if name != "manifest.json"]
    for one in names:
        for two in names:
            if one != two:
                assert judge.with_bytes(one, (judge.directory / two).read_bytes())
    for name, data in judge.files().items():
        outside = tmp_path / name
        outside.write_bytes(data)
        for target in (str(outside), "/dev/zero", "/etc/passwd", "..", "nowhere", name):

            def link(path: Path, target: str = target) -> None:
                path.unlink()
                path.symlink_to(target)

            assert judge.with_file(name, link)
        for make in (os.mkdir, os.mkfifo):
            assert judge.with_file(name, lambda path, make=make: path.unlink() or make(path))  # type: ignore[misc]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


LIES: list[Any] = [
    None, True, 0, 1, -1, 2, 64, 2**31, 2**48, 2**63, 10**40, 0.5, 1e308, "", "cls", "float64", "../../etc/passwd",
    "/etc/passwd", "0" * 64, [], [1], [2**62, 2**62], [16], {}, {"a": 1},
]  # fmt: skip


def test_lies_in_a_manifest_that_is_sealed_again(judge: Judge) -> None:
    original = json.loads((judge.directory / "manifest.json").read_text())["manifest"]
    for path in leaves(original):
        for lie in LIES if path else LIES[-3:]:
            inner = json.loads(json.dumps(original))
            if path:
                place = inner
                for key in path[:-1]:
                    place = place[key]
                if type(place[path[-1]]) is type(lie) and place[path[-1]] == lie:
                    continue
                place[path[-1]] = lie
            else:
                inner = lie
            sealed = {"sha256": sha256_json(inner), "manifest": inner}
            refused = judge.with_bytes("manifest.json", json.dumps(sealed).encode())
            assert refused or path[-1] in ("spread", "rows_per_batch", "rows_per_shard"), (path, lie)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"1", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000,
        b"1e999",
        b'{"sha256": NaN, "manifest": {}}', b'{"sha256": "", "manifest": {"x": NaN}}',
        b'{"sha256": "\\ud800", "manifest": {}}',
        b'{"sha256": "", "manifest": {"\\ud800": "\\udfff"}}', b" " * (1 << 21), b'{"manifest": {}}', b"\x80\x04K\x01.",
        b"cposix\nsystem\n(S'touch pickled'\ntR.",
    ],
    ids=range(19),
)  # fmt: skip
def test_a_manifest_that_is_none(judge: Judge, text: bytes) -> None:
    assert judge.with_bytes("manifest.json", text)
    assert not Path("pickled").exists()


def test_another_teacher_image_or_transform(judge: Judge) -> None:
    chance = random.Random(1)
    for _ in range(150):
        encoder = make_module().encoder
        tensor = chance.choice(list(encoder.state_dict().values()))
        raw = tensor.view(-1).view(torch.uint8)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        assert judge.refused(replace(judge.recipe, encoder=encoder))
    for _ in range(150):
        images = make_images(ROWS)
        images.reshape(-1)[chance.randrange(images.size)] ^= 1 << chance.randrange(8)
        assert judge.refused(with_keys(replace(judge.recipe, images=images, digests=digests_of(images))))
    keys = content_keys(judge.recipe.digests)
    augments = [Augmentation(*of, keys) for of in (("crop", 5, 3), ("crop", 6, 2), ("flip", 5, 2), ("crop", 5, 1))]
    augments += [Augmentation("crop", 5 ^ 1 << bit, 2, keys) for bit in range(63)]
    for change in (
        *({"augment": augment} for augment in (augments if judge.recipe.augment is not None else augments[:1])),
        {"augment": None if judge.recipe.augment is not None else augments[2]},
        {"layer": "last" if judge.recipe.layer == 1 else 1},
        {"shape": replace(SHAPE, norm_eps=1e-6)},
        {"shape": replace(SHAPE, encoder=replace(SHAPE.encoder, heads=4))},
        {"transform": replace(TRANSFORM, mean=(0.5, 0.4, np.nextafter(0.3, 1)))},
        {"transform": replace(TRANSFORM, std=(0.2, 0.25, 0.3))},
        {"transform": replace(TRANSFORM, resample="nearest")},
        {"transform": replace(TRANSFORM, height=16)},
        {"tokens": "all" if judge.recipe.tokens == "patch" else "patch"},
        {"dtype": "float16"},
        {"rows": np.arange(ROWS - 1)},
    ):
        assert judge.refused(replace(judge.recipe, **change))


def test_what_does_not_change_the_targets_is_accepted(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class order and file order (the pack's rows in another order), the decoder, and libraries' versions."""
    images = make_images(ROWS)[::-1].copy()
    assert not judge.refused(with_keys(replace(judge.recipe, images=images, digests=digests_of(images))))
    assert not judge.refused(replace(judge.recipe, shape=replace(SHAPE, decoder=None)))
    (judge.directory / "built.json").write_text("no note")
    monkeypatch.setattr("sdfast.__version__", "99")
    assert not judge.refused()


def test_the_folder_itself(judge: Judge, tmp_path: Path) -> None:
    for wrong in (tmp_path / "absent", judge.directory / "manifest.json", tmp_path):
        with pytest.raises(SdfastError):
            open_bank(wrong)


def test_there_were_two_thousand(judge: Judge) -> None:
    if judge.counts["harmless"] < 3:
        pytest.skip("counts what the other tests of this file did")
    assert judge.counts.total() >= 2000
