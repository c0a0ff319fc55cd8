"""Whose row it is: by a column or a pattern of names, in every kind of source, and the splits that follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_samples import write_classes, write_image
from text_samples import bert_tokenizer, sentence

from sdfast.config import Config
from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.modality import TEXTS
from sdfast.data.sources import open_source
from sdfast.errors import UserError
from sdfast.modalities.images.pack import ImagePack
from sdfast.modalities.texts.pack import TextPack
from sdfast.modalities.texts.tokenization import load_tokenizer

Build = Callable[..., ImagePack]
Write = Callable[[Path, list[dict[str, Any]]], Path]

AUTHORS = ["ann", "bob", None, "ann", "cy", None]
ROWS = [{"text": sentence(row), "label": "ab"[row % 2], "author": author} for row, author in enumerate(AUTHORS)]


def as_parquet(root: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), root / "x.parquet")
    return root / "x.parquet"


def as_saved(root: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(str(root / "saved"))
    return root / "saved"


def as_csv(root: Path, rows: list[dict[str, Any]]) -> Path:
    pd.DataFrame(rows).to_csv(root / "x.csv", index=False)
    return root / "x.csv"


def as_json_lines(root: Path, rows: list[dict[str, Any]]) -> Path:
    (root / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "x.jsonl"


every_table = pytest.mark.parametrize("write", [as_parquet, as_saved, as_csv, as_json_lines])


def texts(path: Path, **options: Any) -> Source:
    return open_source(str(path), DataConfig(**options), TEXTS)


@every_table
def test_a_column_of_every_table_says_the_groups(write: Write, tmp_path: Path) -> None:
    source = texts(write(tmp_path, ROWS), group="author")
    assert source.splits["train"].groups == AUTHORS
    assert [item.group for item in source.splits["train"]] == AUTHORS
    assert source.warnings[-1].endswith(
        "are grouped by column 'author': 4 in 3 groups, at most 2 in one (ann); without one:"
        " 2, each a group of its own."
    )
    with pytest.raises(UserError, match=r"has no \w+ 'autor' \(data.group\); its \w+s are 'text', 'label', 'author'"):
        texts(tmp_path / source.name, group="autor")


@every_table
def test_groups_go_with_their_rows_into_the_splits_of_a_column(write: Write, tmp_path: Path) -> None:
    splits = ["test", "train", "train", "test", "train", "val"]
    rows = [{**row, "split": split} for row, split in zip(ROWS, splits, strict=True)]
    source = texts(write(tmp_path, rows), group="author")
    for split, items in source.splits.items():
        wanted = [author for author, each in zip(AUTHORS, splits, strict=True) if each == split]
        assert items.groups == wanted and [item.group for item in items] == wanted


def test_groups_of_a_digest(tmp_path: Path) -> None:
    path = as_csv(tmp_path, ROWS)
    plain, grouped = texts(path).content_digest(), texts(path, group="author").content_digest()
    assert plain != grouped
    as_csv(tmp_path, [{**row, "author": "bob" if row["author"] else None} for row in ROWS])
    assert texts(path).content_digest() == plain and texts(path, group="author").content_digest() != grouped


def test_numbers_in_several_spellings_and_words_for_missing(tmp_path: Path) -> None:
    rows = [{"text": sentence(row), "label": "a", "id": each} for row, each in enumerate(["1", "1.0", "NA", " 2 ", ""])]
    source = texts(as_csv(tmp_path, rows), group="id")
    assert source.splits["train"].groups == ["1", "1", None, "2", None]
    assert any("read as missing (NA): 1;" in warning for warning in source.warnings)
    assert texts(tmp_path / "x.csv", group="id", na_labels="class").splits["train"].groups == [
        "1",
        "1",
        "NA",
        "2",
        None,
    ]


def patients(root: Path, of: dict[str, int], classes: tuple[str, ...] = ("a", "b")) -> Path:
    """A folder of images of patients: so many of each, called `<class>/<patient>_<number>.png`."""
    seed = 0
    for name, count in of.items():
        for number in range(count):
            seed += 1
            write_image(root / classes[seed % len(classes)] / f"{name}_{number}.png", seed)
    return root


def test_a_pattern_of_the_names_of_files(tmp_path: Path, open_spec: Callable[..., Source]) -> None:
    folder = patients(tmp_path / "scans", {"patient1": 3, "patient12": 2, "phantom": 1})
    source = open_spec(folder, group=r"(patient\d+)_")
    names = [item.name for item in source.splits["train"]]
    wanted = pd.Series(names).str.extract(r"(patient\d+)_")[0]
    assert source.splits["train"].groups == [None if pd.isna(each) else each for each in wanted]
    assert "5 in 2 groups, at most 3 in one (patient1); without one: 1, each" in source.warnings[-1]
    for group, said in (
        (r"(case\d+)", r"data.group=\(case\\d\+\) is in none of the images' names \(the first: a/patient"),
        ("(patient", r"has no column '\(patient', and data.group=\(patient is no regular expression either: missing"),
        (r"patient\d+", r"needs one capturing group and has no capturing group: put brackets"),
        (r"(pat)(\d+)", r"has 2 capturing groups"),
    ):
        with pytest.raises(UserError, match=said):
            open_spec(folder, group=group)


def test_a_table_of_images_has_columns_and_names(tmp_path: Path, open_spec: Callable[..., Source]) -> None:
    patients(tmp_path, {"p1": 2, "p2": 2})
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    table = tmp_path / "list.csv"
    who = [name.split("/")[1].split("_")[0] for name in names]
    pd.DataFrame({"file_name": names, "label": list("abab"), "Patient ID": who}).to_csv(table, index=False)
    for group in ("Patient ID", "patient_id", r"(p\d)_"):
        assert open_spec(table, group=group).splits["train"].groups == who
    (tmp_path / "metadata.csv").write_text(table.read_text())
    assert open_spec(tmp_path, group="Patient ID").splits["train"].groups == who
    with pytest.raises(UserError, match="has no column 'patient'"):
        open_spec(table, group="patient")


def test_a_pattern_needs_no_quotes_of_yaml_on_the_command_line() -> None:
    for pattern in (r"(patient\d+)_", r"[A-Z]+_(\d+)", r"*(\d)", r"@(\w+)"):
        assert Config().changed([f"data.group={pattern}"]).data.group == pattern
    assert Config().changed(["data.group=null"]).data.group is None


def group_of(name: str) -> str:
    return Path(name).name.split("_")[0]


def test_no_patient_of_a_held_out_test_split_is_in_train(tmp_path: Path, build: Build) -> None:
    """COVID-CT, issue 11: pictures of one patient were in train and in test."""
    folder = patients(tmp_path / "ct", {f"p{number}": 1 + number % 6 for number in range(24)})
    write_image(folder / "a" / "p3_copy.png", 1)  # the content of p0_0: p0 and p3 stay together
    pack = build(folder, group=r"/(p\d+)_")
    train, test = ({group_of(name) for name in pack.split(split).names} for split in ("train", "test"))
    assert not train & test and train | test == {f"p{number}" for number in range(24)}
    assert {"p0", "p3"} <= train or {"p0", "p3"} <= test
    rows = len(pack.split("test")), len(pack.split("train")) + len(pack.split("test"))
    assert abs(rows[0] / rows[1] - 0.25) < 0.06
    said = "\n".join(pack.warnings)
    assert f"{rows[0]} of {rows[1]} images are held out of train, {len(test)} of 24 groups" in said
    assert "content of one of another group" in said and "of 'p0'" in said
    assert pack.manifest["split_rule"]["rule"].endswith("equal images and groups together")


def test_groups_on_both_sides_of_given_splits(tmp_path: Path, build: Build) -> None:
    for split, of in (("train", {"p1": 3, "p2": 3, "p3": 2}), ("val", {"p3": 2}), ("test", {"p2": 2, "p3": 1})):
        for path in patients(tmp_path / split, of).rglob("*.png"):
            target = tmp_path / "scans" / split / path.parent.name / path.name
            write_image(target, crc32(f"{split} {path.name}".encode()))
    folder, group = tmp_path / "scans", r"/(p\d+)_"
    with pytest.raises(
        UserError,
        match=r"groups \(data.group\) of train that are also in test: 2, with 5 images in train and 3 in test "
        r"\(the first: 'p\d', as train/",
    ):
        build(folder, group=group)
    kept = build(folder, group=group, shared_groups="keep")
    assert len(kept.split("train")) == 8
    assert sum("Groups (data.group)" in warning for warning in kept.warnings) == 3
    dropped = build(folder, group=group, shared_groups="drop")
    assert {group_of(name) for name in dropped.split("train").names} == {"p1"}
    assert any("(data.shared_groups=drop): 5 (" in warning for warning in dropped.warnings)
    assert any("of val that are also in test: 1" in warning for warning in dropped.warnings)
    with pytest.raises(UserError, match="also in test"):  # what is there was made in another way
        build(folder, group=group)
    assert len(build(folder).split("train")) == 8


def test_what_the_manifest_says_without_groups_and_folds_is_as_before(tmp_path: Path, build: Build) -> None:
    options = build(write_classes(tmp_path / "x", {"a": 8, "b": 8})).manifest["options"]
    assert not {"group", "shared_groups", "folds", "fold"} & options.keys()


def test_every_row_is_tested_in_one_fold(tmp_path: Path, build: Build) -> None:
    folder = patients(tmp_path / "ct", {f"p{number}": 2 + number % 3 for number in range(12)})
    for group in (None, r"/(p\d+)_"):
        tested: list[str] = []
        for fold in range(3):
            pack = build(folder, folds=3, fold=fold, group=group)
            test, train = pack.split("test"), pack.split("train")
            assert len(test) + len(train) == 36 and not set(test.names) & set(train.names)
            if group:
                assert not set(map(group_of, test.names)) & set(map(group_of, train.names))
            tested += test.names
            rule = pack.manifest["split_rule"]
            assert (rule["folds"], rule["fold"], rule["split_seed"]) == (3, fold, 42)
            assert f"(data.folds=3, data.fold={fold}, data.split_seed=42)" in "\n".join(pack.warnings)
        assert len(tested) == len(set(tested)) == 36


def test_folds_that_cannot_be_made(tmp_path: Path, build: Build) -> None:
    flat = tmp_path / "flat"
    for seed in range(4):
        write_image(flat / f"{seed}.png", seed)
    own = tmp_path / "own"
    write_classes(own / "train", {"a": 4, "b": 4})
    write_classes(own / "test", {"a": 2, "b": 2}, 50)
    few = patients(tmp_path / "few", {"p1": 6, "p2": 6})
    for folder, options, said in (
        (flat, {}, "flat has no labels, and only rows with a label are divided into folds"),
        (own, {}, "own has a test split of its own, and data.folds=5 makes the test split"),
        (few, {"group": r"/(p\d+)_"}, "too few groups of images with a label for data.folds=5; they fill 2"),
    ):
        with pytest.raises(UserError, match=said):
            build(folder, folds=5, **options)
    with pytest.raises(ValueError, match="must be 0 to 4, as there are 5 folds"):
        DataConfig(folds=5, fold=5)
    with pytest.raises(ValueError, match=r"is one of data\.folds"):
        DataConfig(fold=1)


def test_documents_of_one_author_stay_together(tmp_path: Path) -> None:
    """PyHealth, pull request 1159: samples of one patient in train and test."""
    rows = [{"text": sentence(row), "label": "ab"[row % 2], "author": f"w{row % 15}"} for row in range(60)]
    bert_tokenizer().save_pretrained(tmp_path / "model")
    how = load_tokenizer(tmp_path / "model", 16)
    spec = str(as_json_lines(tmp_path, rows))
    tested: list[str] = []
    for fold in range(3):
        options = DataConfig(group="author", folds=3, fold=fold)
        pack = TextPack.prepare(spec, tmp_path / "pack", how, options, lambda sentence: None)
        authors = [
            {rows[int(name.rsplit(":", 1)[1]) - 1]["author"] for name in pack.split(split).names}
            for split in ("train", "test")
        ]
        assert not authors[0] & authors[1]
        tested += pack.split("test").names
    assert len(tested) == len(set(tested)) == 60
