"""Evidence of whole runs: what is kept is not made again, what is void is not shown, and nothing is touched."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from text_fixtures import write_text_model, write_texts
from typer.testing import CliRunner

from sdfast import Pipeline
from sdfast.report.evidence import finished_stages, make_evidence, panels
from sdfast.report.evidence.mistakes import read_predictions

QUICK = (*FEW_STEPS, "pretrain.steps=2", "distill.steps=2", "finetune.steps=2")


def run_of(folder: Path, kind: str, *overrides: str) -> Pipeline:
    if kind == "images":
        model, data = write_model(folder / "model"), write_images(folder / "data", classes=3)
    else:
        model, data = write_text_model(folder / "model"), write_texts(folder / "data", classes=3)
    return Pipeline(model, data, folder / "run", overrides=[*QUICK, *overrides])


@pytest.fixture(scope="module", params=["images", "texts"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    made = run_of(tmp_path_factory.mktemp(request.param), request.param)
    made.finetune()
    make_evidence(made.context, made.out, made.results)
    return made


def kept(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "report").iterdir())}


def keys(out: Path) -> list[str]:
    return [panel.key for panel in panels(out)]


def first_of(run: Pipeline) -> str:
    return "reconstructions" if run.modality.name == "images" else "words"


def test_everything_is_shown(run: Pipeline) -> None:
    assert keys(run.out) == [first_of(run), "layers", "map", "mistakes"]
    assert all(panel.lead and "nan" not in panel.body for panel in panels(run.out))
    names = {"features-initial.npz", "features-finetune.npz", "test-predictions.npz", "map.png", "layers.png"}
    names |= {f"{first_of(run)}.png"}
    assert names <= set(kept(run.out))


def test_what_is_kept_is_not_made_again(run: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept(run.out)
    for name in ("layer_features", "masked_examples", "predict", "reload", "read_classifier"):
        monkeypatch.setattr(type(run.modality), name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    assert make_evidence(run.context, run.out, finished_stages(run.out)) == {}
    assert kept(run.out) == before


def test_the_results_on_the_disk_are_those_of_the_run(run: Pipeline) -> None:
    assert [each.weights for each in finished_stages(run.out)] == [each.weights for each in run.results]


def test_what_lies_there_damaged_is_not_shown_and_made_again(run: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    before = kept(run.out)
    folder = run.out / "report"
    (folder / "map.json").write_bytes(before["map.json"].replace(b'"pca"', b'"pcb"', 1))
    (folder / "layers.json").write_bytes(before["layers.json"][:-40])
    (folder / "features-distill.npz").write_bytes(before["features-distill.npz"][:-400])
    (folder / "test-predictions.npz").write_bytes(b"no archive")
    (folder / "masked.json").unlink()
    assert keys(run.out) == ["mistakes"] and read_predictions(run.out) is None
    assert make_evidence(run.context, run.out, run.results).keys() >= {"layers", "map"}
    assert keys(run.out) == [first_of(run), "layers", "map", "mistakes"] and not caplog.records
    assert {name: data for name, data in kept(run.out).items() if name.endswith("json")} == {
        name: data for name, data in before.items() if name.endswith("json")
    }


def test_other_weights_make_it_void(run: Pipeline) -> None:
    result = run.out / "distill" / "result.json"
    before, folder = result.read_bytes(), run.out / "report"
    value = json.loads(before)
    value["weights"] = "0" * 64
    value.pop("sha256", None)
    result.write_text(json.dumps(value))
    try:
        found = {panel.key: panel.body for panel in panels(run.out)}
        assert "layers" not in found and "after distill" not in found["map"] + found[first_of(run)]
        assert "after pretrain" in found["map"] and "after pretrain" in found[first_of(run)]
        result.unlink()
        assert "layers" not in keys(run.out)
        assert {"map.json", "layers.json"} <= {path.name for path in folder.iterdir()}
    finally:
        result.write_bytes(before)
    assert len(keys(run.out)) == 4


def test_predictions_are_kept_with_labels_and_names(run: Pipeline) -> None:
    found, split = read_predictions(run.out), run.context.test
    assert found is not None and found.all_rows
    assert found.logits.dtype == np.float32 and found.logits.shape == (len(split), 3)
    assert (found.labels == split.labels).all() and found.names.tolist() == split.names
    accuracy = (found.logits.argmax(1) == found.labels).mean()
    assert accuracy == pytest.approx(run.results[-1].metrics["accuracy"])


def test_random_states_and_models_stay_as_they_were(run: Pipeline, tmp_path: Path) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    module = run.context.model.module
    module.train()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    make_evidence(run.context, tmp_path, run.results)
    assert (tmp_path / "report" / "map.json").is_file()
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert module.training and not torch.is_inference_mode_enabled()
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())


def test_a_failure_is_one_warning(
    run: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory, say\nand more")

    monkeypatch.setattr(type(run.modality), "layer_features", fails)
    monkeypatch.setattr(type(run.modality), "predict", fails)
    with caplog.at_level(logging.INFO, "sdfast"):
        make_evidence(run.context, tmp_path, run.results)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().count("RuntimeError: out of memory, say") == 3
    assert (tmp_path / "report" / "masked.json").is_file()


def test_another_model_is_not_shown_as_the_one_that_is_gone(
    run: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`sdfast report` of a run whose model is gone opens another one under its name."""
    other = replace(run.context.model, module=run.modality.reload(run.results[0].model).module)
    make_evidence(replace(run.context, model=other), tmp_path, run.results)
    assert caplog.text.count("the model that the run was given is not there any more") == 3
    assert {path.stem for path in (tmp_path / "report").glob("*.json")} == {"mistakes"}


@pytest.mark.parametrize("given", [False, True])
def test_the_command_asks_for_umap(given: bool, run: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdfast.cli.main import app

    asked: list[bool] = []
    monkeypatch.setattr("sdfast.report.evidence.make_evidence", lambda *given: asked.append(given[-1]))
    found = CliRunner().invoke(app, ["report", "--out", str(run.out), *["--umap"] * given])
    assert found.exit_code == 0 and asked == [given]


def made(folder: Path, kind: str, *overrides: str, stage: Any = "finetune") -> tuple[Pipeline, Sequence[str]]:
    run = run_of(folder, kind, *overrides)
    run.run(stage)
    make_evidence(run.context, run.out, run.results)
    return run, keys(run.out)


def test_stage_by_stage_is_as_all_at_once(tmp_path: Path) -> None:
    """Training goes on after evidence was made in between, and nothing is made twice."""
    run = run_of(tmp_path, "images")
    run.pretrain()
    assert make_evidence(run.context, run.out, run.results).keys() == {"reconstructions", "layers", "map"}
    run.distill()
    before = kept(run.out)["features-initial.npz"]
    make_evidence(run.context, run.out, run.results)
    run.finetune()
    assert make_evidence(run.context, run.out, run.results).keys() == {"map", "mistakes"}
    assert kept(run.out)["features-initial.npz"] == before
    make_evidence(run.context, tmp_path / "other", run.results)
    mine, theirs = ({n: v for n, v in kept(at).items() if n.endswith("json")} for at in (run.out, tmp_path / "other"))
    assert mine == theirs


def test_fine_tuning_alone_has_a_map_and_mistakes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, found = made(tmp_path, "images", "finetune.start=init")
    assert found == ["map", "mistakes"] and "report" not in caplog.text


def test_neighbours_without_a_classifier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, found = made(tmp_path, "images", "finetune.method=knn")
    assert found == ["reconstructions", "layers", "map", "mistakes"] and "report" not in caplog.text
    predictions = read_predictions(run.out)
    assert predictions is not None
    accuracy = (predictions.logits.argmax(1) == predictions.labels).mean()
    assert accuracy == pytest.approx(run.results[-1].metrics["accuracy"])


def test_several_rounds_show_the_last_teacher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, _ = made(tmp_path, "images", "distill.rounds=2", stage="distill")
    value = json.loads((run.out / "report" / "layers.json").read_text())
    assert [pair["models"] for pair in value["pairs"]] == [
        ["initial", "pretrain"],
        ["initial", "distill"],
        ["teacher", "distill"],
    ]
    assert value["of"]["models"]["teacher"]["stage"] == "distill/round-1" and "report" not in caplog.text


def test_no_round_hands_the_teacher_on_once(tmp_path: Path) -> None:
    run, found = made(tmp_path, "texts", "distill.rounds=0", stage="distill")
    assert found == ["words", "layers", "map"]
    assert list(json.loads((run.out / "report" / "masked.json").read_text())["models"]) == ["initial", "pretrain"]
