"""Several classes a row, and numbers, from a table to transformers: images and texts, metrics beside scikit-learn."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pipeline_fixtures import write_model
from text_fixtures import WORDS, write_text_model

import sdfast
from sdfast.cli.main import run as cli
from sdfast.errors import UserError

metrics = pytest.importorskip("sklearn.metrics")
transformers = pytest.importorskip("transformers")

ROWS, CLASSES = 120, ["red", "bright"]
STEPS = ("finetune.steps=40", "finetune.batch_size=16", "finetune.lr=3e-3", "finetune.start=init", "pretrain.steps=2")
SEVERAL, NUMBERS = "multi_label_classification", "regression"
LABELS = {SEVERAL: "data.label_separator=semicolon", NUMBERS: "data.label_key=[level,shift]"}
Run = tuple[Path, Path, str, str]


def write_rows(root: Path, kind: str) -> Path:
    """A table with a column of classes and two of numbers, of 120 images or texts that show them."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(ROWS):
        switches = random.random(2) < 0.5
        tags = [name for name, on in zip(CLASSES, switches, strict=True) if on]
        level, shift = 5000 + 40 * switches[0] + random.normal(), 0.01 * switches[1]
        content: dict[str, Any]
        if kind == "images":
            pixels = np.full((16, 16, 3), 60.0) + switches * 1 @ np.array([[90, 0, 0], [0, 80, 80]])
            image = np.clip(pixels + random.normal(0, 10, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / f"{number}.png")
            content = {"file_name": f"{number}.png"}
        else:
            words = [WORDS[place] for place in random.integers(0, 20, 6)]
            words += (
                ["word30"] * int(4 * switches[0])
                + ["word35"] * int(4 * switches[1])
                + [f"word{number % 20}"] * (number % 7)
            )
            content = {"text": f"{' '.join(words)} {number}"}
        split = ("train", "train", "val", "test")[number % 4]
        rows.append({**content, "split": split, "label": ";".join(tags) or "[]", "level": level, "shift": shift})
    pd.DataFrame(rows).to_csv(root / "list.csv", index=False)
    return root / "list.csv"


@pytest.fixture(scope="module", params=[(kind, problem) for kind in ("images", "texts") for problem in LABELS], ids=str)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    kind, problem = request.param
    root = tmp_path_factory.mktemp("run")
    data = write_rows(root, kind)
    model = (write_model if kind == "images" else write_text_model)(root / "model")
    options = (*STEPS, f"data.problem_type={problem}", LABELS[problem], "finetune.best_dev=true")
    pipe = sdfast.Pipeline(model, data, root / "out", overrides=(*options, "finetune.evaluations=2"))
    pipe.finetune()
    pipe.evaluate()
    return root / "out", data, kind, problem


def predictions(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def test_the_result_is_that_of_the_predictions(run: Run) -> None:
    """By scikit-learn, of the file that eval writes; and all pairs of a run say the same."""
    out, data, _, problem = run
    result, table = json.loads((out / "finetune/result.json").read_text()), predictions(out / "predictions.csv")
    found = result["metrics"]
    assert len(table) == ROWS // 4
    if problem == SEVERAL:
        truth, guess = (
            np.array([[name in json.loads(cell) for name in sorted(CLASSES)] for cell in table[column]])
            for column in ("labels", "predicted")
        )
        assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"), abs=1e-6)
        assert found["micro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="micro"), abs=1e-6)
        shares = table[sorted(CLASSES)].to_numpy(float)
        precision = metrics.average_precision_score(truth, shares, average="macro")
        assert found["mean_average_precision"] == pytest.approx(precision, abs=1e-4) and precision > 0.8
        assert ((shares >= found["threshold"]) == guess).all()
        assert result["best_by"] == "mean_average_precision" and set(result["per_class"]) == {"test", "val"}
        assert result["per_class"]["test"]["red"]["support"] == truth[:, 1].sum() and "confusion_matrix" not in result
    else:
        truth, guess = (table[[f"{what}_level", f"{what}_shift"]].to_numpy() for what in ("label", "predicted"))
        wanted = pd.read_csv(data).query("split == 'test'")[["level", "shift"]]
        np.testing.assert_allclose(truth, wanted, rtol=1e-6)
        assert found["r2"] == pytest.approx(metrics.r2_score(truth, guess), abs=1e-4) and found["r2"] > 0.3
        assert found["mse"] == pytest.approx(metrics.mean_squared_error(truth, guess), rel=1e-4)
        assert found["test_loss"] == found["mse"] and result["best_by"] == "r2"
        assert set(result["per_output"]["val"]) == {"level", "shift"} and "per_class" not in result
    evaluated = sdfast.Pipeline(config=out / "config.yaml").evaluation()
    assert evaluated.metrics == pytest.approx({name: found[name] for name in evaluated.metrics}, rel=1e-6)
    kind = "per_class" if problem == SEVERAL else "per_output"
    assert getattr(evaluated, kind) == {name: pytest.approx(each) for name, each in result[kind]["test"].items()}


def test_transformers_gives_the_same_outputs(run: Run) -> None:
    """In the units of the data, from the folder alone."""
    out, data, kind, problem = run
    folder, table = out / "finetune/model", predictions(out / "predictions.csv")
    config = json.loads((folder / "config.json").read_text())
    names = sorted(CLASSES) if problem == SEVERAL else ["level", "shift"]
    assert config["problem_type"] == problem and config["id2label"] == {"0": names[0], "1": names[1]}
    threshold = json.loads((out / "finetune/result.json").read_text())["metrics"].get("threshold")
    assert config.get("sdfast_threshold") == threshold and (threshold is not None) == (problem == SEVERAL)
    rows = pd.read_csv(data).query("split == 'test'")
    if kind == "images":
        model = transformers.AutoModelForImageClassification.from_pretrained(folder)
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        given = processor([Image.open(data.parent / name) for name in rows["file_name"]], return_tensors="pt")
    else:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        given = tokenizer(list(rows["text"]), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model.eval()(**given).logits.double().numpy()
    if problem == SEVERAL:
        np.testing.assert_allclose(1 / (1 + np.exp(-outputs)), table[names].to_numpy(float), atol=1e-4)
    else:
        np.testing.assert_allclose(outputs, table[[f"predicted_{name}" for name in names]], rtol=1e-5, atol=2e-4)
    card = (folder / "README.md").read_text()
    assert "fine-tuned for regression" in card if problem == NUMBERS else "may have several classes" in card


def test_another_source_is_read_as_the_model_was_trained(run: Run) -> None:
    out, data, _, problem = run
    pipe = sdfast.Pipeline(config=out / "config.yaml")
    frame = pd.read_csv(data).query("split == 'test'").drop(columns="split")
    frame.to_csv(data.parent / "more.csv", index=False)
    own = json.loads((out / "finetune/result.json").read_text())["metrics"]
    found = pipe.evaluate(data.parent / "more.csv")
    assert found == pytest.approx({name: own[name] for name in found}, rel=1e-5)
    frame["label"], frame["level"] = "new;red", frame["level"].astype(str) + "x"
    frame.to_csv(data.parent / "odd.csv", index=False)
    said = r"not trained on: 1 \(new\), of 30 rows" if problem == SEVERAL else "is no number"
    with pytest.raises(UserError, match=said):
        pipe.evaluate(data.parent / "odd.csv")


def test_a_run_again_is_done(run: Run) -> None:
    out, _, _, _ = run
    before = (out / "finetune/result.json").read_bytes()
    assert sdfast.Pipeline(config=out / "config.yaml").finetune().metrics == json.loads(before)["metrics"]
    assert (out / "finetune/result.json").read_bytes() == before


def test_an_exported_checkpoint_gives_numbers_in_their_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model, out = write_rows(tmp_path, "images"), write_model(tmp_path / "model"), tmp_path / "out"
    monkeypatch.setattr("sdfast.store.checkpoint.clear", lambda directory: None)
    options = (*STEPS, "data.problem_type=regression", "data.label_key=level", "engine.checkpoint_steps=20")
    sdfast.Pipeline(model, data, out, overrides=options).finetune()
    (out / "finetune/result.json").unlink()  # so it seems that it has not ended
    assert sdfast.Pipeline(config=out / "config.yaml").export("finetune", tmp_path / "exported") >= 20
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        assert 4900 < float(loaded(torch.zeros(1, 3, 16, 16)).logits) < 5100


def test_numbers_that_cannot_be_learnt_or_scored_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    frame = pd.read_csv(write_rows(tmp_path, "images"))
    for name, changes, said in (
        ("same", {"level": 7.0}, "the numbers of 'level' are all 7 in the 60 training rows"),
        ("few", {"level": frame["level"].mask((frame["split"] == "test") & (frame.index > 3))}, "has 1 test"),
    ):
        frame.assign(**changes).to_csv(tmp_path / f"{name}.csv", index=False)
        options = (*STEPS, "data.problem_type=regression", "data.label_key=level")
        with pytest.raises(UserError, match=said):
            sdfast.Pipeline(model, tmp_path / f"{name}.csv", tmp_path / name, overrides=options).finetune()


def test_a_study_compares_by_the_metric_of_the_labels(tmp_path: Path) -> None:
    data, model = write_rows(tmp_path, "images"), write_model(tmp_path / "model")
    for problem, labels in LABELS.items():
        out = tmp_path / problem
        options = [*STEPS[1:3], "finetune.steps=4", f"data.problem_type={problem}", labels]
        told = ["study", "compare", "--model", str(model), "--data", str(data), "--out", str(out)]
        assert cli([*told, "--seeds", "1", "--methods", "fine-tuning,r3f", *options]) == 0
        shown = ("mAP %", "macro-F1 %", "micro-F1 %") if problem == SEVERAL else ("R2", "RMSE", "Spearman")
        header = next(line for line in (out / "compare.md").read_text().splitlines() if line.startswith("| method"))
        assert [cell.strip() for cell in header.split("|")[2:]][:1] == [shown[0]]
        assert all(f"| {column} " in header for column in shown)
        metric = "mean_average_precision" if problem == SEVERAL else "r2"
        assert all(float(row[metric]) <= 1 for row in csv.DictReader((out / "compare.csv").open()))


@pytest.mark.parametrize("problem", [SEVERAL, NUMBERS])
def test_more_data_without_labels_and_a_limit_of_labelled_rows(problem: str, tmp_path: Path) -> None:
    """Fine-tuning, and what its numbers are standardised by, are of the labelled rows in the limit alone."""
    data, random = write_rows(tmp_path, "images"), np.random.default_rng(9)
    (tmp_path / "more").mkdir()
    for number in range(10):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "more" / f"{number}.png")
    options = (*STEPS, f"data.problem_type={problem}", LABELS[problem], "finetune.steps=2", "data.labelled_limit=14")
    pipe = sdfast.Pipeline(
        write_model(tmp_path / "model"), data, tmp_path / "out", overrides=options, unlabelled=tmp_path / "more"
    )
    result = pipe.finetune()
    context, table = pipe.context, pd.read_csv(data, keep_default_na=False).set_index("file_name")
    assert context.train_rows("pretrain").tolist() == list(range(70))
    rows = context.train_rows("finetune").tolist()
    names = [context.train.names[row] for row in rows]
    assert len(rows) == 14 and max(rows) < 60 and set(table.loc[names, "split"]) == {"train"}
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "70 train (60 with a label), 30 val, 30 test" in log
    assert "finetune trains on 14 of 60 labelled rows (data.labelled_limit)" in log
    assert all(np.isfinite(value) for value in result.metrics.values())
    if problem == NUMBERS:
        levels = table.loc[names, "level"].to_numpy(np.float32).astype(float)
        assert f"level {levels.mean():.4g} ± {levels.std():.4g}" in log
