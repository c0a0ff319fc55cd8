"""Every change of a pack's manifest is one sentence, and the next run builds the pack anew, to the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from changed_json import changes
from data_samples import write_classes
from text_samples import roberta_tokenizer, sentence, write_splits

from sdfast.data.config import DataConfig
from sdfast.data.pack_files import OpenPack
from sdfast.errors import UserError
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.images.transform import Transform
from sdfast.modalities.texts.pack import TextPack
from sdfast.modalities.texts.tokenization import Tokenizer

LIES: list[Any] = [None, True, -1, 3, 10**40, 0.5, 1e308, "", "x", "../../outside", [], {}, [1], {"a": 1}]
TRANSFORM = Transform(8, 8, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Kept:
    """A pack, and what makes and opens it."""

    def __init__(self, kind: str, root: Path) -> None:
        self.directory, self.said = root / "pack", list[str]()
        self.open: Callable[[Path], OpenPack[Any]] = ImagePack.open if kind == "images" else TextPack.open
        if kind == "images":
            write_classes(root / "pets" / "train", {"a": 2, "b": 2})
            write_classes(root / "pets" / "test", {"a": 1, "b": 1}, first_seed=1000)
            source = str(root / "pets")
            self.make: Callable[[], OpenPack[Any]] = lambda: ImagePack.prepare(
                source, self.directory, TRANSFORM, DataConfig(), self.said.append
            )
        else:
            texts, raw = str(write_splits(root / "mine")), roberta_tokenizer([sentence(n) for n in range(20)])
            self.make = lambda: TextPack.prepare(
                texts, self.directory, Tokenizer(raw, 8), DataConfig(), self.said.append
            )
        self.make()
        self.manifest = self.directory / "manifest.json"
        self.original = json.loads(self.manifest.read_text())
        self.bytes = self.files()

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}

    def refused(self, value: Any) -> bool:
        self.manifest.write_text(json.dumps(value))
        try:
            self.open(self.directory)
        except UserError as error:
            said = str(error)
        else:
            return False
        assert "\n" not in said and len(said) < 700
        return True


@pytest.fixture(scope="module", params=["images", "texts"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(request.param, tmp_path_factory.mktemp(request.param))


def test_it_has_a_digest_of_itself(kept: Kept) -> None:
    inner = {name: value for name, value in kept.original.items() if name != "sha256"}
    canonical = json.dumps(inner, sort_keys=True, separators=(",", ":")).encode()
    assert kept.original["sha256"] == hashlib.sha256(canonical).hexdigest()


def test_every_change_is_refused(kept: Kept) -> None:
    count = 0
    for path, value in changes(kept.original, LIES):
        gone = path == ("sha256",) and "sha256" not in value  # then it is what an earlier version wrote
        assert kept.refused(value) != gone, (path, value)
        count += 1
    assert count > 500


def test_a_change_of_what_an_earlier_version_wrote_is_no_traceback(kept: Kept) -> None:
    earlier = {name: value for name, value in kept.original.items() if name != "sha256"}
    assert not kept.refused(earlier)
    refused = [kept.refused(value) for _, value in changes(earlier, LIES[::4])]
    assert sum(refused) > 60  # in the others it is a value that nothing depends on


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000],
    ids=range(9),
)
def test_what_is_none_is_refused_and_built_again_to_the_same_bytes(kept: Kept, text: bytes) -> None:
    kept.manifest.write_bytes(text)
    with pytest.raises(UserError, match="holds no pack"):
        kept.open(kept.directory)
    kept.make()
    assert kept.files() == kept.bytes


def test_class_names_that_were_swapped_are_noticed_and_built_again(kept: Kept) -> None:
    """With the same weights each class would have been called by the other's name."""
    kept.said.clear()
    assert kept.refused({**kept.original, "class_names": kept.original["class_names"][::-1]})
    kept.make()
    assert "differs from its own digest" in kept.said[0] and "built again" in kept.said[0]
    assert kept.files() == kept.bytes


def test_how_tables_are_read_is_not_how_a_pack_is_made() -> None:
    """What these keys decide is in the digest of the source, so that older packs stay valid."""
    how, other = TRANSFORM, DataConfig(na_labels="class", encoding="cp1251", split_key="fold")
    assert ImagePack.made(how, other, ()) == ImagePack.made(how, DataConfig(), ())
    assert not {"na_labels", "encoding"} & set(ImagePack.made(how, DataConfig(), ())["options"])
