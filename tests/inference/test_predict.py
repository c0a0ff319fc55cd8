"""`sdfast predict`: what it writes, and that it goes on where it was stopped, in bounded memory."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import write_text_model

import sdfast
from sdfast.cli.main import run as command
from sdfast.data.pack_build import Converted
from sdfast.errors import Interrupted, UserError
from sdfast.inference import predict
from sdfast.inference.rows import NewRows

transformers = pytest.importorskip("transformers")
STEPS = (*FEW_STEPS, "finetune.steps=30", "finetune.lr=3e-3", "finetune.start=init")


def pipe(out: Path) -> sdfast.Pipeline:
    return sdfast.Pipeline(out=out, config=out / "config.yaml")


def test_unlabelled_pictures_get_what_transformers_says(images: tuple[Path, Path]) -> None:
    out, loose = images
    found = pipe(out).predict(loose, top=2)
    table = found.to_pandas()
    assert [path.name for path in found.files] == ["loose.parquet", "loose.csv"] and len(table) == 24
    assert list(table.columns[:5]) == ["name", "predicted", "confidence", "predicted_2", "confidence_2"]
    classify = transformers.pipeline("image-classification", model=str(out / "finetune" / "model"))
    for row in table.to_dict("records"):
        said = {each["label"]: each["score"] for each in classify(str(loose / row["name"]), top_k=None)}
        assert row["predicted"] == max(said, key=lambda name: said[name])
        assert row["confidence"] == pytest.approx(max(said.values()), abs=1e-5)
        assert {name: row[f"probability_{name}"] for name in said} == pytest.approx(said, abs=1e-5)
    written = pd.read_csv(found.files[1])
    assert list(written.columns) == list(table.columns)
    assert written["confidence"].tolist() == pytest.approx(table["confidence"].tolist(), abs=1e-6)


def test_what_is_not_seen_of_long_texts_is_counted(texts: tuple[Path, Path], tmp_path: Path, caplog: Any) -> None:
    out, _ = texts
    (tmp_path / "new.txt").write_text("".join("word1 " * (40 if n % 2 else 4) + "\n" for n in range(30)))
    with caplog.at_level("WARNING", "sdfast"):
        pipe(out).predict(tmp_path / "new.txt", tmp_path / "said.csv")
    assert "of which the first 30 are kept (data.max_length): 15 (new.txt:2, " in caplog.text


def test_lines_of_text_get_what_transformers_says(texts: tuple[Path, Path], tmp_path: Path) -> None:
    out, new = texts
    table = pipe(out).predict(new, tmp_path / "said.csv").to_pandas()
    classify = transformers.pipeline("text-classification", model=str(out / "finetune/model"), truncation=True)
    for row, line in zip(table.to_dict("records"), new.read_text().splitlines(), strict=True):
        (best,) = classify(line)
        assert (best["label"], best["score"]) == (row["predicted"], pytest.approx(row["confidence"], abs=1e-5))


def test_labels_and_splits_are_carried_along(texts: tuple[Path, Path], tmp_path: Path) -> None:
    out, new = texts
    table = pipe(out).predict(new.parent / "data", tmp_path / "said.parquet").to_pandas()
    assert table["split"].value_counts().to_dict() == {"test": 40, "train": 24}
    assert table["label"].tolist() == [f"class{number % 2}" for number in (*range(24), *range(40))]
    assert (table["label"] == table["predicted"]).mean() > 0.4


def test_an_odd_label_column_is_passed_over(texts: tuple[Path, Path], tmp_path: Path, caplog: Any) -> None:
    """The run's own `data.label_key` is of another source."""
    out, _ = texts
    (tmp_path / "new.csv").write_text("text,stars\nword1 word2,4\nword3,1\n")
    given = sdfast.Pipeline(out=out, config=out / "config.yaml", overrides=["data.label_key=missing"])
    with caplog.at_level("WARNING", "sdfast"):
        table = given.predict(tmp_path / "new.csv", tmp_path / "said.csv").to_pandas()
    assert "label" not in table and len(table) == 2 and "without labels" in caplog.text


def test_broken_files_are_counted_and_left_out(images: tuple[Path, Path], tmp_path: Path) -> None:
    out, loose = images
    (tmp_path / "new").mkdir()
    shutil.copy(loose / "00.png", tmp_path / "new/a.png")
    (tmp_path / "new/b.png").write_bytes(b"no picture")
    found = pipe(out).predict(tmp_path / "new", tmp_path / "said.csv")
    assert (found.rows, found.skipped, found.to_pandas()["name"].tolist()) == (1, 1, ["a.png"])
    (tmp_path / "new/a.png").unlink()
    with pytest.raises(UserError, match=r"none of 1 images can be used: b\.png"):
        pipe(out).predict(tmp_path / "new", tmp_path / "said.csv")


def test_of_another_source_of_that_name_both_are_kept(images: tuple[Path, Path], tmp_path: Path) -> None:
    out, loose = images
    pipe(out).predict(loose)
    shutil.copytree(loose, tmp_path / "loose")
    (tmp_path / "loose/00.png").unlink()
    assert pipe(out).predict(tmp_path / "loose").files[0].name == "loose-2.parquet"
    assert pipe(out).predict(loose).files[0].name == "loose.parquet"
    assert json.loads((out / "predict/loose-2.json").read_text())["rows"] == 23


def test_deep_pictures_have_the_range_of_all(images: tuple[Path, Path], tmp_path: Path) -> None:
    out, loose = images
    (tmp_path / "new").mkdir()
    for number in range(3):
        picture = Image.open(loose / f"{number:02d}.png").convert("L")
        picture.convert("I").point(lambda value: value * 16).convert("I;16").save(tmp_path / f"new/{number}.png")
    assert len(pipe(out).predict(tmp_path / "new", tmp_path / "said.csv").to_pandas()) == 3


def stopped_at(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes as a part is to be computed."""
    usual, numbers = predict._work, itertools.count()

    def work(*given: Any) -> Any:
        inner = usual(*given)

        def stopped(held: Any) -> Any:
            if next(numbers) == part:
                raise KeyboardInterrupt
            return inner(held)

        return stopped

    monkeypatch.setattr(predict, "_work", work)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = NewRows.parts
    monkeypatch.setattr(NewRows, "parts", lambda self, items, begin, rows: usual(self, items, begin, 8))


def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(
    images: tuple[Path, Path], tmp_path: Path, small_parts: None, capsys: Any
) -> None:
    out, loose = images
    for name in ("whole.parquet", "whole.csv"):
        pipe(out).predict(loose, tmp_path / name)
    to = tmp_path / "said.parquet"
    with pytest.MonkeyPatch.context() as patch:
        stopped_at(2, patch)
        assert command(["predict", "--out", str(out), "--data", str(loose), "--to", str(to)]) == 130
    assert "the same command continues" in capsys.readouterr().err and not to.exists()
    with pytest.MonkeyPatch.context() as patch:
        stopped_at(1, patch)  # the third part is made, and nothing comes after it
        pipe(out).predict(loose, to)
    assert to.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not to.with_name(".partial-said.parquet").exists()


def test_what_changed_meanwhile_is_computed_again(images: tuple[Path, Path], tmp_path: Path, small_parts: None) -> None:
    out, loose = images
    new = shutil.copytree(loose, tmp_path / "new")
    with pytest.MonkeyPatch.context() as patch:
        stopped_at(2, patch)
        with pytest.raises(Interrupted):
            pipe(out).predict(new, tmp_path / "said.csv")
    shutil.copy(new / "20.png", new / "03.png")
    (tmp_path / ".partial-said.csv/part-000001.parquet").write_bytes(b"cut")
    table = pipe(out).predict(new, tmp_path / "said.csv").to_pandas().set_index("name")
    assert len(table) == 24 and table.loc["03.png", "confidence"] == table.loc["20.png", "confidence"]


def test_rows_in_memory_do_not_grow_with_the_source(
    texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4,000 documents those of a part, and what the threads read ahead."""
    out, _ = texts
    (tmp_path / "new.txt").write_text("".join(f"word{number % 40} word1\n" for number in range(4000)))
    alive, most = 0, 0

    class Counted(Converted):
        def __init__(self, *given: Any, **named: Any) -> None:
            nonlocal alive, most
            super().__init__(*given, **named)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    monkeypatch.setattr("sdfast.modalities.texts.pack.Converted", Counted)
    monkeypatch.setattr("sdfast.inference.rows.available_threads", lambda: 1)
    assert pipe(out).predict(tmp_path / "new.txt", tmp_path / "said.parquet").rows == 4000
    assert alive == 0 and 1024 <= most <= 1024 + 2 * 128
    assert pq.ParquetFile(tmp_path / "said.parquet").num_row_groups == 4


def test_several_classes_a_row_are_those_above_the_threshold(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    rows = [(f"word{n % 8} word{n % 8}", "a;b" if n % 2 else "a") for n in range(60)]
    data.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    steps = (*STEPS, "data.problem_type=multi_label_classification", "data.label_separator=semicolon")
    sdfast.Pipeline(write_text_model(tmp_path / "model"), data, tmp_path / "out", overrides=steps).run()
    table = pipe(tmp_path / "out").predict(data).to_pandas()
    threshold = json.loads((tmp_path / "out/finetune/result.json").read_text())["metrics"]["threshold"]
    for row in table.to_dict("records"):
        applying = {name: row[f"probability_{name}"] for name in ("a", "b") if row[f"probability_{name}"] >= threshold}
        assert dict(zip(row["predicted"], row["confidence"], strict=True)) == pytest.approx(applying)
    assert list(table["label"][1]) == ["a", "b"]
    with open(tmp_path / "out/predict/data.csv", newline="") as file:
        assert {tuple(json.loads(row["label"])) for row in csv.DictReader(file)} == {("a",), ("a", "b")}


def test_numbers_are_in_their_units(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"word{n % 8} word{n % 40},{1000.5 + n % 8}\n" for n in range(60)))
    steps = (*STEPS, "data.problem_type=regression")
    sdfast.Pipeline(write_text_model(tmp_path / "model"), data, tmp_path / "out", overrides=steps).run()
    table = pipe(tmp_path / "out").predict(data).to_pandas()
    assert list(table.columns) == ["name", "label", "predicted"] and table["label"].tolist()[:2] == [1000.5, 1001.5]
    assert abs(table["predicted"] - 1004).max() < 100


def test_neighbours_vote(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", train=8, test=4, side=16)
    steps = ("finetune.method=knn", "finetune.start=init", "finetune.knn.k=3")
    given = sdfast.Pipeline(write_model(tmp_path / "model"), data, tmp_path / "out", overrides=steps)
    accuracy = given.finetune().metrics["accuracy"]
    table = pipe(tmp_path / "out").predict(data / "test").to_pandas()
    assert (table["label"] == table["predicted"]).mean() == pytest.approx(accuracy)


@pytest.fixture
def read_only(images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from sdfast.locks import NotWritable

    def refuse(*given: Any) -> Any:
        raise NotWritable("no")

    monkeypatch.setattr("sdfast.stages.run_directory.locked", refuse)


def test_a_run_that_cannot_be_written_needs_a_place(images: tuple[Path, Path], tmp_path: Path, read_only: None) -> None:
    out, loose = images
    with pytest.raises(UserError, match="cannot be written; give a file for the predictions by --to"):
        pipe(out).predict(loose)
    assert pipe(out).predict(loose, tmp_path / "said.csv").rows == 24


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--to", "said.xlsx"], "--to said.xlsx: predictions are written as .csv or .parquet"),
        (["--to", "nowhere/said.csv"], "there is no folder"),
        (["--top", "0"], "--top 0 is not possible"),
        (["seed=1"], "seed=1: predict takes keys of the data section alone"),
        (["--data", "missing"], "missing"),
    ],
)
def test_mistakes_get_one_sentence(images: tuple[Path, Path], given: list[str], sentence: str, capsys: Any) -> None:
    out, loose = images
    assert command(["predict", "--out", str(out), "--data", str(loose), *given]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("sdfast: ") and sentence in said


def test_without_a_classifier_or_of_texts_it_says_so(images: tuple[Path, Path], tmp_path: Path) -> None:
    out, loose = images
    (tmp_path / "new.txt").write_text("a text\n")
    with pytest.raises(UserError, match="is a file of texts"):
        pipe(out).predict(tmp_path / "new.txt")
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/finetune")
    with pytest.raises(UserError, match="holds no fine-tuned model; run `sdfast train --stage finetune`"):
        pipe(tmp_path / "out").predict(loose)
