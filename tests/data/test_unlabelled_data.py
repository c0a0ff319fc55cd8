"""Sources that join train without labels: which rows a pack then holds, which it does not, and what is said."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import idx_bytes, pixels, write_classes, write_image
from PIL import Image
from text_samples import roberta_tokenizer, sentence, write_json_lines

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.rows import RowWriter
from sdfast.errors import UserError
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.texts.pack import TextPack
from sdfast.modalities.texts.tokenization import Tokenizer

Build = Callable[..., ImagePack]
NEW = 10  # images of the archive that are nowhere else
TOKENIZER = Tokenizer(roberta_tokenizer([sentence(number) for number in range(50)]), 16)


def digest_by_hand(file: Path) -> bytes:
    """SHA-256 of shape and pixels of an image at the size of the `transform` fixture."""
    with Image.open(file) as image:
        row = np.asarray(image.convert("RGB").resize((8, 6), Image.Resampling.BILINEAR))
    return hashlib.sha256(np.asarray(row.shape, "<i8").tobytes() + row.tobytes()).digest()


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "few", {"a": 12, "b": 12})


@pytest.fixture
def everything(tmp_path: Path, few: Path) -> Path:
    """All photographs: those with a label, under other names, and others, in folders by year."""
    root = tmp_path / "all"
    for number, file in enumerate(sorted(few.rglob("*.png"))):
        (root / "2019").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / "2019" / f"IMG_{number:04d}.png")
    for number in range(NEW):
        write_image(root / "2020" / f"IMG_{number:04d}.png", 500 + number)
    return root


def test_new_images_join_train_and_the_test_rows_are_as_without(
    tmp_path: Path, build: Build, few: Path, everything: Path
) -> None:
    alone = build(few)
    own_names, test_names = alone.split("train").names, alone.split("test").names
    test, own, manifest = alone.split("test"), alone.split("train"), alone.manifest
    rows = {name: np.array(alone.split(name).images) for name in ("train", "test")}
    joined = build(few, unlabelled=[str(everything)], duplicates="drop")
    said = " ".join(build.said)  # type: ignore[attr-defined]
    assert joined.split("test").names == test_names and len(test) == 6
    np.testing.assert_array_equal(joined.split("test").digests, test.digests)
    np.testing.assert_array_equal(joined.split("test").images, rows["test"])
    assert joined.manifest["split_rule"] == manifest["split_rule"] and joined.class_names == ["a", "b"]
    train = joined.split("train")
    new = sorted(f"all/2020/IMG_{number:04d}.png" for number in range(NEW))
    assert train.names == own_names + new
    assert train.labels is not None and train.labels.tolist() == [*own.labels.tolist(), *[-1] * NEW]  # type: ignore[union-attr]
    np.testing.assert_array_equal(train.images[: len(own)], rows["train"])
    assert [digest.tobytes() for digest in train.digests[len(own) :]] == [
        digest_by_hand(tmp_path / name) for name in new
    ]
    assert (
        joined.manifest["splits"]["train"]["rows"] == 18 + NEW and joined.manifest["splits"]["train"]["labelled"] == 18
    )
    assert {entry["also_in"] for entry in joined.manifest["duplicates"]["dropped_from_train"]} == {"test", "train"}
    for sentence_ in (
        "All 34 images of all are offered to train without a label",
        "Unlabelled images that are also in test and are left out: 6 (",
        "Unlabelled images that are in train already and are left out: 18 (",
        "10 unlabelled images join the rows of pretrain, distill and the bank",
        "6 of 24 images are held out of train",
    ):
        assert sentence_ in said
    assert "without a label, which take no part" not in said and "a copy has none" not in said


def test_images_of_test_among_the_unlabelled_stop_the_run_or_are_kept_on_request(
    build: Build, few: Path, everything: Path
) -> None:
    with pytest.raises(
        UserError, match=r"all/2019/IMG_\d+.png \(data.unlabelled\) and [ab]/\d+.png \(test\) are the"
    ) as caught:
        build(few, unlabelled=[str(everything)])
    assert "in all, 6 in test (" in str(caught.value) and "data.duplicates=drop" in str(caught.value)
    kept = build(few, unlabelled=[str(everything)], duplicates="keep")
    assert len(kept.split("train")) == 18 + 24 + NEW and len(kept.split("test")) == 6
    said = " ".join(build.said)  # type: ignore[attr-defined]
    assert "also in test and are kept (data.duplicates=keep): 6 (" in said
    assert "in train already and are kept (data.duplicates=keep): 18 (" in said


def test_splits_that_the_source_has_itself(tmp_path: Path, build: Build) -> None:
    root = tmp_path / "pets"
    for split, count, seed in (("train", 4, 0), ("val", 2, 100), ("test", 3, 200)):
        write_classes(root / split, {"a": count, "b": count}, first_seed=seed)
    more = tmp_path / "more"
    for seed in (0, 100, 101, 200, 900, 900):  # one of train, two of val, one of test, and two that are the same
        write_image(more / f"{len(list(more.glob('*')))}.png", seed)
    with pytest.raises(UserError, match=r"in all, 1 in test and 2 in val \(more/3.png\)"):
        build(root, unlabelled=[str(more)])
    train = build(root, unlabelled=[str(more)], duplicates="drop").split("train")
    assert train.names[8:] == ["more/4.png"] and len(train) == 9
    assert len(build(root, unlabelled=[str(more)], duplicates="keep").split("train")) == 14


def test_every_kind_of_source_joins_and_labels_and_splits_of_it_do_not_count(
    tmp_path: Path, build: Build, few: Path
) -> None:
    import pandas

    seed = iter(range(1000, 2000))
    # a folder with splits and classes that train does not have, of which test alone has one
    for name in ("train/x", "train/y", "test/z"):
        write_image(tmp_path / "folder" / name / "0.png", next(seed))
    # a table with labels of several kinds, other columns than those of the first source, and a column of splits
    for number in range(3):
        write_image(tmp_path / f"{number}.png", next(seed))
    table = pandas.DataFrame({"file_name": [f"{number}.png" for number in range(3)], "label": ["u", None, "1.5"]})
    table.assign(split=["train", "holdout", "oops"]).to_csv(tmp_path / "table.csv", index=False)
    encoded = [(tmp_path / "folder" / "train" / "x" / "0.png").read_bytes()]
    for _ in range(2):
        encoded.append(write_image(tmp_path / "one.png", next(seed)).read_bytes())
    pandas.DataFrame({"image": encoded, "label": [[1, 2], [3], []]}).to_parquet(tmp_path / "cells.parquet")
    array = np.stack([pixels(next(seed))[..., 0] for _ in range(4)])
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(array))
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as Feature

    features = Features({"image": Feature(), "label": ClassLabel(names=["q", "r"])})
    parts = {
        part: Dataset.from_dict(
            {"image": [{"bytes": write_image(tmp_path / "one.png", next(seed)).read_bytes()}], "label": [1]}, features
        )
        for part in ("train", "test")
    }
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    listed = pandas.DataFrame({"Bilddatei": sorted(str(file) for file in few.rglob("*.png"))})
    listed["Klasse"] = listed["Bilddatei"].map(lambda name: Path(name).parent.name)
    listed.to_csv(tmp_path / "few.csv", index=False)
    specs = ["folder", "table.csv", "cells.parquet", "t10k-images-idx3-ubyte", "saved"]
    options = {"image_key": "Bilddatei", "label_key": "Klasse", "unlabelled": [str(tmp_path / spec) for spec in specs]}
    pack = build(tmp_path / "few.csv", **options)
    train, test = pack.split("train"), pack.split("test")
    assert pack.class_names == ["a", "b"] and set(pack.splits) == {"train", "test"} and len(test) == 6
    counts = [sum(name.startswith((f"{spec}/", f"{spec}:")) for name in train.names) for spec in specs]
    assert counts == [3, 3, 2, 4, 2]  # the first cell of the parquet file is in the folder
    assert train.labels is not None and np.sum(train.labels >= 0) == 18 and np.sum(train.labels < 0) == 14
    said = " ".join(build.said)  # type: ignore[attr-defined]
    assert "All 3 images of folder (train 2, test 1) are offered" in said
    assert "All 2 images of saved (train 1, test 1) are offered" in said
    assert build(tmp_path / "few.csv", **options).fingerprint == pack.fingerprint and not build.said  # type: ignore[attr-defined]


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_rows_of_several_classes_and_of_numbers_are_joined(tmp_path: Path, build: Build, problem: Any) -> None:
    """What joins has no label of their kind, and is in a limit after those that have one."""
    import pandas

    random, names = np.random.default_rng(1), [f"{number}.png" for number in range(20)]
    for number, name in enumerate(names):
        write_image(tmp_path / name, 700 + number)
    for number in range(NEW):
        write_image(tmp_path / "more" / f"{'xy'[number % 2]}" / f"{number}.png", 800 + number)
    table = pandas.DataFrame({"file_name": names, "split": ["train", "train", "train", "test"] * 5})
    if problem == "regression":
        table[["a", "b"]] = random.normal(size=(20, 2)).astype(np.float32)
        options: dict[str, Any] = {"label_key": ["a", "b"]}
    else:
        switches = random.integers(0, 2, (20, 2))
        table["label"] = ["|".join(name for name, on in zip("ab", row, strict=True) if on) or "[]" for row in switches]
        table[["a", "b"]] = switches
        options = {"label_key": "label", "label_separator": "bar"}
    table.to_csv(tmp_path / "list.csv", index=False)
    spec = tmp_path / "list.csv"
    pack = build(spec, problem_type=problem, unlabelled=[str(tmp_path / "more")], **options)
    train, own = pack.split("train"), table[table["split"] == "train"][["a", "b"]].to_numpy()
    assert train.labels is not None and len(train) == 15 + NEW and pack.class_names == ["a", "b"]
    np.testing.assert_array_equal(train.labels[:15], own.astype(train.labels.dtype))
    none = np.isnan(train.labels[15:]) if problem == "regression" else train.labels[15:] == 255
    assert none.all() and train.names[15:] == [
        f"more/{'xy'[n % 2]}/{n}.png" for n in (*range(0, 10, 2), *range(1, 10, 2))
    ]
    limits = {limit: set(train.limited(limit, 0).tolist()) for limit in (4, 9, 15, 20)}
    assert limits[4] < limits[9] < limits[15] == set(range(15)) < limits[20] and len(limits[20]) == 20
    assert build(spec, problem_type=problem, **options).split("train").labels.tolist() == own.tolist()  # type: ignore[union-attr]


def test_it_is_built_again_when_an_unlabelled_file_changes(build: Build, few: Path, everything: Path) -> None:
    options: dict[str, Any] = {"unlabelled": [str(everything)], "duplicates": "drop"}
    first = build(few, **options)
    assert build(few, **options, limit=3, labelled_limit=2).manifest == first.manifest and not build.said  # type: ignore[attr-defined]
    write_image(everything / "2020" / "IMG_0003.png", 999)
    second = build(few, **options)
    assert build.said and second.fingerprint != first.fingerprint  # type: ignore[attr-defined]
    assert second.manifest["source"]["content"] != first.manifest["source"]["content"]
    assert len(build(few).split("train")) == 18  # and when there is none any more


def test_broken_files_count_in_one_budget(build: Build, few: Path, everything: Path) -> None:
    for number in range(3):
        (everything / f"bad{number}.png").write_bytes(b"no image")
    options: dict[str, Any] = {"unlabelled": [str(everything)], "duplicates": "drop"}  # 61 in all
    pack = build(few, **options, max_broken=3 / 61)
    assert [entry["name"] for entry in pack.manifest["skipped"]] == [f"all/bad{number}.png" for number in range(3)]
    with pytest.raises(UserError, match="few: 3 of 61 images cannot be used"):
        build(few, **options, max_broken=2.9 / 61)


def test_deep_images_have_one_range_for_all_sources(tmp_path: Path, build: Build) -> None:
    for name, top in (("few/a/0.png", 1000), ("few/b/0.png", 900), ("more/0.png", 4000)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.linspace(0, top, 120).reshape(10, 12).astype(np.uint16)).save(tmp_path / name)
    pack = build(tmp_path / "few", unlabelled=[str(tmp_path / "more")])
    assert pack.levels == (0, 4095) and len(pack.split("train")) == 3
    assert "the largest of the source is 4,000, in more/0.png" in " ".join(build.said)  # type: ignore[attr-defined]


def test_a_source_that_cannot_be_opened(tmp_path: Path, build: Build, few: Path) -> None:
    with pytest.raises(UserError, match=r"^data.unlabelled: .*more.csv does not exist"):
        build(few, unlabelled=[str(tmp_path / "more.csv")])
    (tmp_path / "more").mkdir()
    with pytest.raises(UserError, match=r"^data.unlabelled: no images in"):
        build(few, unlabelled=[str(tmp_path / "more")])


def test_a_folder_goes_without_its_labels_on_request(few: Path, open_spec: Callable[..., Source]) -> None:
    source = open_spec(few, label_key="none")
    assert source.class_names is None and source.splits["train"].labels == [None] * 24


def test_rows_behind_those_of_a_file(tmp_path: Path) -> None:
    rows = pixels(0, 7, 2)
    for part, onto in ((rows[:3], None), (rows[3:5], 3), (rows[5:], 5), (rows[:0], 7)):
        with RowWriter(tmp_path / "rows.npy", (2, 3), onto=onto) as writer:
            writer.extend(part)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)


def texts_pack(folder: Path, spec: Path, **options: Any) -> tuple[TextPack, list[str]]:
    said: list[str] = []
    return TextPack.prepare(str(spec), folder, TOKENIZER, DataConfig(**options), said.append), said


def test_documents_join_as_if_they_stood_behind_the_labelled_ones(tmp_path: Path) -> None:
    """Long ones too: contents, rests and offsets are those of one file that holds all."""
    labelled = [{"text": sentence(number, 4 + number % 30), "label": number % 2} for number in range(40)]
    more = [{"text": sentence(500 + number, 3 + number % 40)} for number in range(30)]
    write_json_lines(tmp_path / "few.jsonl", labelled)
    (tmp_path / "texts").mkdir()
    for number, record in enumerate(more):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(record["text"])
    alone, _ = texts_pack(tmp_path / "alone", tmp_path / "few.jsonl")
    joined, said = texts_pack(tmp_path / "joined", tmp_path / "few.jsonl", unlabelled=[str(tmp_path / "texts")])
    assert "30 unlabelled documents join the rows" in " ".join(said)
    np.testing.assert_array_equal(joined.split("test").text_digests, alone.split("test").text_digests)
    own = len(alone.split("train"))
    lines = [json.loads(line) for line in (tmp_path / "few.jsonl").read_text().splitlines()]
    kept = [lines[int(name.split(":")[1]) - 1] for name in alone.split("train").names]
    write_json_lines(tmp_path / "whole.jsonl", [*kept, *more])
    whole, _ = texts_pack(tmp_path / "whole", tmp_path / "whole.jsonl", test_fraction=0.0)
    train, expected = joined.split("train"), whole.split("train")
    assert len(train) == own + 30 and train.rest is not None and expected.rest is not None
    for name in ("ids", "offsets", "labels", "digests", "text_digests", "rest", "rest_offsets"):
        np.testing.assert_array_equal(getattr(train, name), getattr(expected, name))
    assert joined.manifest["splits"]["train"]["truncated"] == whole.manifest["splits"]["train"]["truncated"] > 0


def test_documents_of_test_and_of_train_among_the_unlabelled(tmp_path: Path) -> None:
    """In test is what the classifier would see there, its first tokens; in train already is the whole text alone."""
    long = [" ".join(sentence(number + 7 * k) for k in range(6)) for number in range(8)]
    write_json_lines(
        tmp_path / "set" / "train.jsonl", [{"text": each, "label": n % 2} for n, each in enumerate(long[:4])]
    )
    write_json_lines(
        tmp_path / "set" / "test.jsonl", [{"text": each, "label": n % 2} for n, each in enumerate(long[4:])]
    )
    more = tmp_path / "more.txt"
    more.write_text("\n".join([long[0], f"{long[1]} And more.", f"{long[4]} And more.", long[5], "The cell binds."]))
    with pytest.raises(
        UserError, match=r"more.txt:3 \(data.unlabelled\) and test.jsonl:1 \(test\) are the same document; in all, 2 in"
    ):
        texts_pack(tmp_path / "pack", tmp_path / "set", unlabelled=[str(more)])
    pack, _ = texts_pack(tmp_path / "pack", tmp_path / "set", unlabelled=[str(more)], duplicates="drop")
    assert pack.split("train").names[4:] == ["more.txt:2", "more.txt:5"]


def test_columns_of_the_unlabelled_have_names_of_their_own(tmp_path: Path) -> None:
    few = write_json_lines(tmp_path / "few.jsonl", [{"words": sentence(n), "label": n % 2} for n in range(8)])
    body = write_json_lines(tmp_path / "body.jsonl", [{"body": sentence(50 + n), "label": [n]} for n in range(3)])
    text = write_json_lines(tmp_path / "text.jsonl", [{"text": sentence(60 + n)} for n in range(2)])
    given: dict[str, Any] = {"text_key": "words", "unlabelled": [str(body), str(text)]}
    with pytest.raises(
        UserError, match=r"^data.unlabelled: .*body.jsonl line 1 has no field 'words' \(data.unlabelled_key\)"
    ):
        texts_pack(tmp_path / "pack", few, **given)
    pack, said = texts_pack(tmp_path / "pack", few, **given, unlabelled_key="body")
    assert pack.split("train").names[-5:] == [f"body.jsonl:{n}" for n in (1, 2, 3)] + [
        f"text.jsonl:{n}" for n in (1, 2)
    ]
    assert "data.unlabelled: text.jsonl has no column 'body', and another one is taken." in said
