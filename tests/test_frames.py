"""Results, evaluations and studies as tables of pandas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sdfast
from sdfast.errors import UserError
from sdfast.rundir import Result
from sdfast.stages.evaluate import Evaluation

SCORES = {"cat": {"precision": 1.0, "f1": 0.5}, "dog": {"precision": 0.25, "f1": 0.75}}


def test_metrics_are_rows_and_so_are_classes() -> None:
    numbers = {"stage": "finetune", "model": Path("model"), "steps": 1, "seconds": 1.0}
    result = Result(**numbers, fingerprint="", weights="", metrics={"accuracy": 0.5}, per_class={"test": SCORES})
    for found in (result, Evaluation({"accuracy": 0.5}, SCORES)):
        assert found.to_pandas().to_dict("records") == [{"metric": "accuracy", "value": 0.5}]
        each = found.to_pandas("class")
        assert list(each.columns) == ["class", "precision", "f1"] and each["f1"].tolist() == [0.5, 0.75]
    of_numbers = Evaluation({"r2": 0.5}, per_output={"age": {"r2": 0.5}})
    assert of_numbers.to_pandas("class").to_dict("records") == [{"class": "age", "r2": 0.5}]
    with pytest.raises(UserError, match="no scores of single classes"):
        Evaluation({"r2": 0.5}).to_pandas("class")


def test_a_study_is_read_from_its_directory(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text(json.dumps({"study": "compare"}))
    (tmp_path / "compare.csv").write_text("arm,seed,accuracy\nkNN,0,0.5\nLoRA,0,0.75\n")
    (tmp_path / "compare.md").write_text("# compare\n")
    study = sdfast.Study.load(tmp_path)
    assert (study.name, study.table, study.record) == ("compare", "# compare\n", {"study": "compare"})
    assert study.to_pandas()["accuracy"].tolist() == [0.5, 0.75]
    (tmp_path / "table1.json").write_text("{}")
    (tmp_path / "table1.csv").write_text("arm\n")
    with pytest.raises(UserError, match=r"several studies \(compare.json, table1.json\)"):
        sdfast.Study.load(tmp_path)
    assert sdfast.Study.load(tmp_path / "table1.json").name == "table1"
    with pytest.raises(UserError, match="holds no study that is done"):
        sdfast.Study.load(tmp_path / "elsewhere")
