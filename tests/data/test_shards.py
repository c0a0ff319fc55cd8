"""Tar shards, written by webdataset's own writer and compared with its own reading; damaged ones say so."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from data_samples import pixels, write_classes, write_image
from PIL import Image

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.modality import TEXTS
from sdfast.data.shard_names import expanded
from sdfast.data.sources import open_source
from sdfast.errors import UserError
from sdfast.modalities.images.pack import ImagePack

Open = Callable[..., Source]
Members = list[tuple[str, bytes]]


@pytest.fixture
def open_texts() -> Open:
    return lambda spec, **options: open_source(str(spec), DataConfig(**options), TEXTS)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, samples: Iterable[Mapping[str, Any]]) -> Path:
    """By webdataset, which encodes ints, texts and objects by their kinds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(dict(sample))
    return path


def write_tar(path: Path, members: Members) -> Path:
    """By Python's tarfile, in this order."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(seeds: range, **more: Any) -> list[dict[str, Any]]:
    return [{"__key__": f"{seed:06d}", "png": png(seed), "cls": seed % 3, **more} for seed in seeds]


def own_reading(*paths: Path) -> list[dict[str, Any]]:
    """What webdataset reads, undecoded."""
    return list(webdataset.WebDataset(list(map(str, paths)), shardshuffle=False, empty_check=False))


def members_of(path: Path) -> Members:
    with tarfile.open(path) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive.getmembers()]  # type: ignore[union-attr]


def read_all(source: Source, split: str = "train") -> list[Any]:
    return [bytes(item.read()) for item in source.splits[split]]


def names_of(source: Source, split: str = "train") -> list[str]:
    return [item.name for item in source.splits[split]]


# Which samples, by webdataset's rule.


def test_keys_bytes_and_labels_are_webdatasets(tmp_path: Path, open_spec: Open) -> None:
    path = write_shard(tmp_path / "photos.tar", samples(range(7), **{"json": {"url": "x"}}))
    source, own = open_spec(path), own_reading(path)
    assert source.kind == "tar shards" and source.name == "photos.tar"
    assert read_all(source) == [sample["png"] for sample in own]
    assert names_of(source) == [f"photos.tar:{sample['__key__']}.png" for sample in own]
    assert source.class_names == ["0", "1", "2"]
    assert source.splits["train"].labels == [int(sample["cls"]) for sample in own]
    assert source.warnings == ["photos.tar: members that are not used: json (7)."]


@pytest.mark.parametrize("kind", ["jpg", "JPEG", "webp"])
def test_images_of_several_formats_in_folders(tmp_path: Path, open_spec: Open, kind: str) -> None:
    """Keys keep their folders, and a dot in a folder's name belongs to it."""
    image = write_image(tmp_path / f"x.{kind}", 5).read_bytes()
    members: Members = [
        *[("./v1.0/a/x.png", png(1)), ("./v1.0/a/x.cls", b"dog\n")],
        *[(f"./v1.0/a/y.{kind}", image), ("./v1.0/a/y.cls", "kät".encode())],
        *[("README", b"no suffix"), ("v1.0/._y.png", b"of a Mac")],
    ]
    path = write_tar(tmp_path / "x.tar", members)
    source = open_spec(path)
    assert names_of(source) == ["x.tar:v1.0/a/x.png", f"x.tar:v1.0/a/y.{kind.lower()}"]
    assert read_all(source) == [png(1), image]
    assert [source.class_names[label] for label in source.splits["train"].labels] == ["dog", "kät"]  # type: ignore[index]
    assert source.warnings == ["Members of x.tar without a suffix, which are not used: 1 (the first: x.tar:README)."]


def test_members_of_a_sample_need_not_follow_each_other(tmp_path: Path, open_spec: Open) -> None:
    """As `tar c` without a sorted list of files leaves them."""
    members = members_of(write_shard(tmp_path / "sorted.tar", samples(range(6))))
    order = np.random.default_rng(0).permutation(len(members))
    source = open_spec(write_tar(tmp_path / "mixed.tar", [members[at] for at in order]))
    labels = dict(zip(names_of(source), source.splits["train"].labels, strict=True))
    assert labels == {f"mixed.tar:{seed:06d}.png": seed % 3 for seed in range(6)}


def test_compound_names_are_no_images_unless_named(tmp_path: Path, open_spec: Open) -> None:
    rows = [{"__key__": f"{at}", "jpg": png(at), "seg.png": png(100 + at), "cls": at} for at in range(3)]
    path = write_shard(tmp_path / "x.tar", rows)
    assert read_all(open_spec(path)) == [png(at) for at in range(3)]
    assert read_all(open_spec(path, image_key="seg.png")) == [png(100 + at) for at in range(3)]
    with pytest.raises(UserError, match=r"has no 'mask' \(data.image_key\); its members are .*'seg.png' \(3\)"):
        open_spec(path, image_key="mask")
    bare = write_shard(tmp_path / "y.tar", [{"__key__": "a", "seg.png": png(1), "cls": 1}])
    with pytest.raises(UserError, match=r"no images in y.tar; its members are .*: name them by data.image_key="):
        open_spec(bare)
    both = write_shard(tmp_path / "z.tar", [{"__key__": "a", "jpg": png(1), "png": png(2)}])
    with pytest.raises(UserError, match=r"z.tar: a has several images \('jpg', 'png'\); choose one by data.image_key"):
        open_spec(both)
    assert read_all(open_spec(both, image_key="png")) == [png(2)]


def test_samples_without_an_image_are_counted(tmp_path: Path, open_spec: Open) -> None:
    rows = [*samples(range(2)), {"__key__": "bare", "cls": 1}]
    source = open_spec(write_shard(tmp_path / "x.tar", rows))
    assert len(source.splits["train"]) == 2
    assert source.warnings == ["Samples of x.tar without an image, which are left out: 1 (the first: x.tar:bare)."]


# Labels.


@pytest.mark.parametrize("field", ["label", "Species"])
def test_labels_in_a_field_of_json(tmp_path: Path, open_spec: Open, field: str) -> None:
    kinds = ["cat", "dog", None, "cat"]
    rows = [
        {"__key__": f"{at}", "png": png(at), "json": {"id": at, **({} if kind is None else {field: kind})}}
        for at, kind in enumerate(kinds)
    ]
    path = write_shard(tmp_path / "x.tar", rows)
    source = open_spec(path)
    own = [json.loads(sample["json"]).get(field) for sample in own_reading(path)]
    numbers = {"cat": 0, "dog": 1, None: None}
    assert source.class_names == ["cat", "dog"]
    assert source.splits["train"].labels == [numbers[kind] for kind in own]
    assert open_spec(path, label_key="id").class_names == ["0", "1", "2", "3"]
    assert open_spec(path, label_key="none").class_names is None
    with pytest.raises(
        UserError, match=rf"x.tar has no 'colour' \(data.label_key\).* fields of 'json' 'id', '{field}'"
    ):
        open_spec(path, label_key="colour")


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_lists_in_json_and_several_fields(tmp_path: Path, open_spec: Open, problem: str) -> None:
    """Of several classes or numbers; what the names of fields that are asked for are not is said."""
    several = problem != "regression"
    cells: list[Any] = [["red", "old"], [], None, ["red"]] if several else [[1, 2.5], [0, -3], None, [4, 4]]
    fields = [{"x": 1, "y": 0}, {"x": 0, "y": 0}, {"x": 1}, {"x": 1, "y": 1}]
    rows = [
        {"__key__": f"{at}", "png": png(at), "json": {"label": cell, **more}}
        for at, (cell, more) in enumerate(zip(cells, fields, strict=True))
    ]
    path = write_shard(tmp_path / "x.tar", rows)
    source = open_spec(path) if several else open_spec(path, problem_type=problem)
    assert source.problem == problem
    assert source.class_names == (["old", "red"] if several else ["label_0", "label_1"])
    assert source.splits["train"].labels == ([(0, 1), (), None, (1,)] if several else [(1, 2.5), (0, -3), None, (4, 4)])
    source = open_spec(path, label_key=["y", "x"], problem_type=problem)
    assert source.problem == problem and source.class_names == ["y", "x"]
    assert source.splits["train"].labels == ([(1,), (), None, (0, 1)] if several else [(0, 1), (0, 0), None, (1, 1)])
    with pytest.raises(UserError, match=r"x.tar has no 'z' \(data.label_key\)"):
        open_spec(path, label_key=["x", "z"])
    with pytest.raises(UserError, match="a label is a list"):
        open_spec(path, problem_type="single_label_classification")


def test_classes_of_a_member_with_a_separator(tmp_path: Path, open_spec: Open) -> None:
    tags = ["cat;dog", "dog", "", "bird; cat"]
    members = [
        (f"{at}.{kind}", body)
        for at, tag in enumerate(tags)
        for kind, body in (("png", png(at)), ("cls", tag.encode()))
    ]
    source = open_spec(write_tar(tmp_path / "x.tar", members), label_separator=";")
    assert source.class_names == ["bird", "cat", "dog"]
    assert source.splits["train"].labels == [(1, 2), (2,), None, (0, 1)]


def test_a_field_of_json_says_the_splits(tmp_path: Path, open_spec: Open) -> None:
    parts = ["train", "train", "test", "train", "test"]
    rows = [
        {"__key__": f"{at}", "png": png(at), "cls": at % 2, "json": {"split": part}} for at, part in enumerate(parts)
    ]
    source = open_spec(write_shard(tmp_path / "x.tar", rows))
    assert read_all(source, "test") == [png(2), png(4)] and read_all(source) == [png(0), png(1), png(3)]


def test_unlabelled_shards(tmp_path: Path, open_spec: Open) -> None:
    """As img2dataset writes them: a picture, its caption and what is known of it."""
    rows = [{"__key__": f"{at:09d}", "jpg": png(at), "txt": "a cat", "json": {"url": "u"}} for at in range(3)]
    source = open_spec(write_shard(tmp_path / "00000.tar", rows))
    assert source.class_names is None and source.splits["train"].labels == [None] * 3
    said = "00000.tar: no column is taken for the labels; if they are one of 'txt', 'url', say so by data.label_key."
    assert said in source.warnings


def test_an_archive_of_class_folders_is_not_taken_for_unlabelled_shards(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "pets", {"cat": 2, "dog": 2})
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(tmp_path / "pets", "pets")
    with pytest.raises(UserError, match=r"in 2 folders \(pets/cat/, pets/dog/\) and no labels .*: unpack it"):
        open_spec(tmp_path / "pets.tar")
    assert len(open_spec(tmp_path / "pets.tar", label_key="none").splits["train"]) == 4


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("a.cls", b"\xff\xfe\x00"), "a.cls is no label, the number or name of a class in UTF-8"),
        (("a.json", b"{"), "a.json is not JSON: "),
        (("a.json", b"[1]"), "a.json is not a JSON object"),
        (("a.json", b'{"label": {"cat": 1}}'), "a label is an object"),
        (("a.png", b"x"), "holds a.png twice, and a sample has one of each kind"),
    ],
)
def test_members_that_cannot_be_used(tmp_path: Path, open_spec: Open, member: tuple[str, bytes], message: str) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.png", png(0)), member])
    with pytest.raises(UserError, match=message):
        open_spec(path)


# Several shards.


@pytest.mark.parametrize(
    "pattern",
    ["a-{000..012}.tar", "{train,val}-{0..3}.tar", "x{9..11}", "{3..1}", "{00..20..5}", "{a}", "x{}y", "{a,b}{1..2}"],
)
def test_braces_are_those_of_a_shell(pattern: str) -> None:
    braceexpand = pytest.importorskip("braceexpand")  # with which webdataset does it
    assert expanded(pattern) == list(braceexpand.braceexpand(pattern))


def write_birds(root: Path) -> Path:
    for at in range(3):
        write_shard(root / f"birds-train-{at:03d}.tar", samples(range(3 * at, 3 * at + 3)))
    write_shard(root / "birds-val-000.tar", samples(range(9, 12)))
    return root


@pytest.mark.parametrize(
    "spec", ["", "birds-{train-000,train-001,train-002,val-000}.tar", "*.tar", "birds-[tv]*-00?.tar"]
)
def test_names_of_shards_say_the_splits(tmp_path: Path, open_spec: Open, spec: str) -> None:
    root = write_birds(tmp_path / "birds")
    source = open_spec(root / spec if spec else root)
    own = own_reading(*sorted(root.glob("*train*")))
    assert read_all(source) == [sample["png"] for sample in own]
    assert source.splits["train"].labels == [int(sample["cls"]) for sample in own]
    assert read_all(source, "val") == [png(seed) for seed in range(9, 12)]
    assert names_of(source)[3] == "birds-train-001.tar:000003.png"


def test_folders_say_the_splits(tmp_path: Path, open_spec: Open) -> None:
    write_shard(tmp_path / "b" / "train" / "0.tar", samples(range(3)))
    write_shard(tmp_path / "b" / "test" / "0.tar", samples(range(3, 6)))
    (tmp_path / "b" / "test" / "nshards.txt").write_text("1")
    for spec in ("b", "b/{train,test}/0.tar"):
        source = open_spec(tmp_path / spec)
        assert read_all(source) == [png(0), png(1), png(2)] and read_all(source, "test") == [png(3), png(4), png(5)]
        assert names_of(source, "test")[0] == "test/0.tar:000003.png"


def test_what_was_named_as_one_part_is_train(tmp_path: Path, open_spec: Open) -> None:
    root = write_birds(tmp_path / "birds")
    assert list(open_spec(root / "birds-val-{000..000}.tar").splits) == ["train"]
    assert list(open_spec(root / "birds-val-000.tar").splits) == ["train"]


def test_archives_beside_pictures_are_what_they_came_in(tmp_path: Path, open_spec: Open) -> None:
    write_classes(tmp_path / "pets", {"cat": 2, "dog": 2})
    write_shard(tmp_path / "pets" / "pets.tar", samples(range(3)))
    assert open_spec(tmp_path / "pets").kind == "image folder"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("birds-train-{000..012}.tar", "10 of its 13 shards do not exist (the first: "),
        ("none-{0..3}.tar", "no such shard exists (the first: "),
        ("none-*.tar", "no such shard exists (the first: "),
        ("x-{0..9999999}.tar", "stands for more than 1,000,000 shards"),
        (
            "packed",
            "birds.tar.gz is an archive: unpack it and pass the folder, or, of webdataset shards, the .tar files",
        ),
        (
            "packed/birds.tar.gz",
            "is an archive: unpack it and pass the folder, or, of webdataset shards, the .tar files",
        ),
        ("packed/really.tar", "really.tar is compressed, and shards are read in place: unpack it"),
        ("text.tar", "text.tar is not a whole tar shard"),
        ("empty.tar", "empty.tar is not a whole tar shard"),
    ],
)
def test_shards_that_are_none(tmp_path: Path, open_spec: Open, spec: str, message: str) -> None:
    root = write_birds(tmp_path)
    packed = gzip.compress((root / "birds-val-000.tar").read_bytes())
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "birds.tar.gz").write_bytes(packed)
    if spec.endswith("really.tar"):
        (tmp_path / spec).write_bytes(packed)
    (tmp_path / "text.tar").write_text("no archive" * 1000)
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(message)):
        open_spec(tmp_path / spec)


@pytest.mark.parametrize(
    "spec", ["https://a.b/x-{0..3}.tar", "pipe:curl x.tar", "s3://b/x.tar", "hf://datasets/a/b.tar"]
)
def test_addresses_are_told_so(open_spec: Open, spec: str) -> None:
    with pytest.raises(UserError, match="is an address: download what is there"):
        open_spec(spec)


# Damage, which no budget of broken files hides.


def test_a_shard_cut_anywhere_is_refused(tmp_path: Path, open_spec: Open) -> None:
    content = write_shard(tmp_path / "x.tar", samples(range(3))).read_bytes()
    end = max(at for at, byte in enumerate(content) if byte)
    whole = -(-(end + 1) // 512) * 512  # where the mark of the end begins
    for size in [*range(1, whole + 512, 256), whole, whole + 511]:
        (tmp_path / "x.tar").write_bytes(content[:size])
        with pytest.raises(UserError, match=r"x.tar is not a whole tar shard.*copy or write it again"):
            open_spec(tmp_path / "x.tar", max_broken=1.0)
    (tmp_path / "x.tar").write_bytes(content[: whole + 512])
    assert len(open_spec(tmp_path / "x.tar").splits["train"]) == 3


def test_damaged_and_joined_shards(tmp_path: Path, open_spec: Open) -> None:
    path = write_shard(tmp_path / "x.tar", samples(range(3)))
    content = path.read_bytes()
    second = content.index(b"000001.")
    path.write_bytes(content[: second + 20] + b"\xff" + content[second + 21 :])
    with pytest.raises(UserError, match=r"x.tar is not a whole tar shard \(bad checksum"):
        open_spec(path)
    plain = write_tar(tmp_path / "y.tar", [("a.png", png(0)), ("b.png", png(1))])
    damaged = bytearray(plain.read_bytes())
    second = damaged.index(b"b.png")
    damaged[second + 20] ^= 255
    plain.write_bytes(damaged)
    with pytest.raises(UserError, match=f"y.tar is damaged: byte {second:,} begins no member"):
        open_spec(plain)
    path.write_bytes(content + content)
    with pytest.raises(UserError, match=r"goes on behind its end, at byte .* as archives that were joined by cat do"):
        open_spec(path)


def test_a_shard_that_shrinks_while_it_is_read(tmp_path: Path, open_spec: Open) -> None:
    path = write_shard(tmp_path / "x.tar", samples(range(3)))
    items = list(open_spec(path).splits["train"])
    os.truncate(path, 600)
    with pytest.raises(UserError, match="became shorter while it was read"):
        items[-1].read()


def test_links_are_said(tmp_path: Path, open_spec: Open) -> None:
    path = write_shard(tmp_path / "x.tar", samples(range(2)))
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("000009.png")
        link.type, link.linkname = tarfile.LNKTYPE, "000001.png"
        archive.addfile(link)
    said = "Links, sparse files and devices in x.tar, which are not read: 1 (the first: x.tar:000009.png)."
    assert said in open_spec(path).warnings


# Packs.


def test_a_pack_of_shards_is_that_of_a_folder(tmp_path: Path, open_spec: Open, build: Callable[..., ImagePack]) -> None:
    write_shard(tmp_path / "s" / "train-0.tar", samples(range(5)))
    write_shard(tmp_path / "s" / "train-1.tar", samples(range(5, 9)))
    write_shard(tmp_path / "s" / "test-0.tar", samples(range(9, 12)))
    for seed in range(12):
        write_image(tmp_path / "f" / ("train" if seed < 9 else "test") / str(seed % 3) / f"{seed:03d}.png", seed)
    pack = build(tmp_path / "s")
    contents = {split: (rows.digests.tobytes(), rows.labels.tolist()) for split, rows in pack.splits.items()}
    order = {split: np.array(rows.images) for split, rows in pack.splits.items()}
    folder = ImagePack.prepare(str(tmp_path / "f"), tmp_path / "fp", pack.transform, DataConfig(), lambda _: None)
    assert pack.class_names == folder.class_names
    for split, rows in folder.splits.items():
        pairs = [(digest.tobytes(), label) for digest, label in zip(rows.digests, rows.labels, strict=True)]
        mine = [(contents[split][0][32 * at : 32 * at + 32], label) for at, label in enumerate(contents[split][1])]
        assert sorted(pairs) == sorted(mine) and len(order[split]) == len(pairs)
    again = build(tmp_path / "s")
    assert again.fingerprint == pack.fingerprint and not build.said  # type: ignore[attr-defined]
    write_shard(tmp_path / "s" / "train-1.tar", samples(range(20, 24)))
    assert build(tmp_path / "s").fingerprint != pack.fingerprint


def test_memory_is_bounded_by_names_and_labels(tmp_path: Path, build: Callable[..., ImagePack]) -> None:
    """24 MB in three shards, of which a pack is made with less than 6 MB at a time: a few images, and the index."""
    shards, each = 3, 40
    noise = np.random.default_rng(0)
    for shard in range(shards):
        images = []
        for _ in range(each):
            buffer = io.BytesIO()
            Image.fromarray(noise.integers(0, 256, (258, 258, 3), np.uint8)).save(buffer, "PNG", compress_level=0)
            images.append(buffer.getvalue())
        rows = [{"__key__": f"{at}", "png": image, "cls": at % 2} for at, image in enumerate(images)]
        write_shard(tmp_path / "s" / f"{shard}.tar", rows)
    size = sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    del images, rows
    open_fds = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    tracemalloc.start()
    pack = build(tmp_path / "s", test_fraction=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pack.split("train")) == shards * each
    assert size > 24e6 and peak < 6e6
    if open_fds:
        assert len(os.listdir("/proc/self/fd")) <= open_fds + 4


# Texts.


def test_texts_and_their_labels(tmp_path: Path, open_texts: Open) -> None:
    rows = [{"__key__": f"d/{at}", "txt": f"täxt {at}", "cls": at % 2, "png": png(at)} for at in range(4)]
    path = write_shard(tmp_path / "docs.tar", rows)
    source = open_texts(path)
    assert read_all(source) == [sample["txt"] for sample in own_reading(path)]
    assert names_of(source)[0] == "docs.tar:d/0.txt"
    assert source.splits["train"].labels == [0, 1, 0, 1]
    assert source.warnings == ["docs.tar: members that are not used: png (4)."]


def test_texts_in_a_field_of_json(tmp_path: Path, open_texts: Open) -> None:
    rows = [
        {"__key__": "a", "json": {"text": "one", "label": "x", "split": "train", "body": "eins"}},
        {"__key__": "b", "json": {"text": None, "label": "y", "split": "train", "body": "zwei"}},
        {"__key__": "c", "json": {"text": "three", "label": "x", "split": "test", "body": 3}},
    ]
    path = write_shard(tmp_path / "docs.tar", rows)
    source = open_texts(path)
    assert read_all(source) == [b"one", b""] and read_all(source, "test") == [b"three"]
    assert source.class_names == ["x", "y"] and source.splits["train"].labels == [0, 1]
    other = open_texts(path, text_key="body")
    assert read_all(other) == [b"eins", b"zwei"]
    with pytest.raises(UserError, match=r"c.json: field 'body' is no text"):
        read_all(other, "test")


def test_the_other_modality_is_told(tmp_path: Path, open_spec: Open, open_texts: Open) -> None:
    texts = write_shard(tmp_path / "t.tar", [{"__key__": "a", "txt": "x", "cls": 1}])
    photos = write_shard(tmp_path / "i.tar", [{"__key__": "a", "png": png(0), "cls": 1}])
    with pytest.raises(UserError, match=r"no images in t.tar; .* texts need a model of text"):
        open_spec(texts)
    with pytest.raises(UserError, match=r"no documents in i.tar; .* images need a model of images"):
        open_texts(photos)
