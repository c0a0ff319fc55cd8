"""Tables as spreadsheets of other countries write them, through the command: named columns, what is said."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import text, write_text_model

from sdfast.cli.main import run

TUNE = ["--stage", "finetune", "finetune.start=init", *FEW_STEPS]


def written_table(folder: Path) -> Path:
    """Semicolons, cp1252, backslashes, empty cells behind, labels of several kinds."""
    images = write_images(folder / "bilder")
    files = sorted(file.relative_to(folder) for file in images.rglob("*.png"))
    lines = ["Bilddatei;Größe;Klasse;Menge;;"]
    for row, file in enumerate(files):
        number = file.parent.name[-1]  # "0" or "1"
        label = "N/A" if row % 8 == 7 else f"{number}.0" if file.parts[1] == "test" else number
        lines.append(";".join(["\\".join(file.parts), "groß", label, file.parts[1], "", ""]))
    path = folder / "liste.csv"
    path.write_bytes("\r\n".join([*lines, ";;;;;", ""]).encode("cp1252"))
    return path


def test_a_table_of_images_from_a_spreadsheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = written_table(tmp_path)
    given = ["--model", str(write_model(tmp_path / "model")), "--data", str(table), "--out", str(tmp_path / "run")]
    named = ["--file-column", "Bilddatei", "--label-column", "klasse", "data.split_key=Menge"]
    assert run(["train", *given, *named, *TUNE]) == 0
    said = capsys.readouterr().err
    by_hand = pd.read_csv(table, sep=";", encoding="cp1252").dropna(how="all")
    missing = int(by_hand["Klasse"].isna().sum())
    assert "line 1 of liste.csv is not UTF-8, so the file is read as cp1252" in said
    assert f"File names with backslashes, which are read as slashes: {len(by_hand)}" in said
    assert f"that are read as missing ('N/A'): {missing};" in said
    assert "spelled in several ways: 2 (the first: '0', '0.0' are '0')" in said

    assert (
        run(["train", *given, "data.image_key=Bilddatei", "data.label_key=klasse", "data.split_key=Menge", *TUNE]) == 0
    )
    assert "already done" in capsys.readouterr().err  # the options are the keys

    assert run(["eval", "--out", str(tmp_path / "run")]) == 0
    with open(tmp_path / "run" / "predictions.csv", newline="", encoding="utf-8") as file:
        predicted = list(csv.DictReader(file))
    test = by_hand[(by_hand["Menge"] == "test") & by_hand["Klasse"].notna()]
    wanted = {
        name.replace("\\", "/"): str(int(label)) for name, label in zip(test["Bilddatei"], test["Klasse"], strict=True)
    }
    assert {row["file_name"]: row["label"] for row in predicted} == wanted
    capsys.readouterr()

    other = tmp_path / "neu.csv"
    other.write_text("bild,art\n" + "".join(f"{name},{label}.0\n" for name, label in wanted.items()))
    columns = ["--file-column", "bild", "--label-column", "art", "data.split_key=none"]
    assert run(["eval", "--out", str(tmp_path / "run"), "--data", str(other), *columns]) == 0
    assert run(["eval", "--out", str(tmp_path / "run"), *columns]) == 2
    assert "for the source that --data names" in capsys.readouterr().err


def test_a_table_of_texts_with_named_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(text(number, number % 2), "ab"[number % 2]) for number in range(24)]
    table = tmp_path / "x.tsv"
    table.write_text(
        "\ufeffid\tbody\tkind\n" + "".join(f"{at}\t{one}\t{kind}\n" for at, (one, kind) in enumerate(rows))
    )
    given = ["--model", str(write_text_model(tmp_path / "model")), "--data", str(table), "--out", str(tmp_path / "run")]
    assert run(["train", *given, "--text-column", "body", "--label-column", "kind", *TUNE]) == 0
    capsys.readouterr()
    assert run(["train", *given, "--text-column", "bdy", *TUNE]) == 2
    assert "has no column 'bdy' (data.text_key); its columns are 'id', 'body', 'kind'" in capsys.readouterr().err
    assert run(["train", *given, "--file-column", "body", *TUNE]) == 2
    assert "data.image_key" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Klasse", "null", "7", 'a: "é" #1', "#b", "yes", "[x]"])
def test_a_column_may_have_any_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--label-column", name, "--file-column", name, "--text-column", name]
    assert run(["config", "show", *given, "data.label_key=weaker"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["data"]
    assert shown["label_key"] == shown["image_key"] == shown["text_key"] == name
