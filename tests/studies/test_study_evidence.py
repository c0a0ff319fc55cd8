"""What a study's report shows of models: made once of one run's stages, kept, shown from there, never in the way."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from study_samples import made_up
from text_fixtures import write_text_model, write_texts

from sdfast.cli.main import run
from sdfast.report.evidence import masked
from sdfast.rundir import REPORT, read_result
from sdfast.studies.declared import COST, STUDIES
from sdfast.studies.evidence import evidence_panel, example_in
from sdfast.studies.store import Store
from sdfast.studies.stored import Data, records_in
from sdfast.studies.tables import record

QUICK = (*FEW_STEPS, "pretrain.steps=2", "distill.steps=2", "finetune.steps=2")
PARTS = {"images": "d0-reconstructions", "texts": "d0-words"}
WHOSE = {"images": "self-distillation (chain 0, seed 0)", "texts": "self-distillation (seed 0)"}


@pytest.fixture(autouse=True)
def reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDFAST_REPORT", "1")


@pytest.fixture(scope="module", params=["images", "texts"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def command(kind: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A study of two chains, of images as chains and of texts as seeds; both ways a seed is of all stages."""
    root = tmp_path_factory.mktemp(kind)
    if kind == "images":
        model, data, many = write_model(root / "model"), write_images(root / "data"), ["--chains", "2"]
    else:
        model, data, many = write_text_model(root / "model"), write_texts(root / "data"), ["--protocol", "full"]
        many += ["--seeds", "2"]
    inputs = ["--model", str(model), "--data", str(data), *many, *QUICK]
    return ["study", "compare", "--out", str(root / "out"), "--methods", "fine-tuning,self-distillation", *inputs]


@pytest.fixture(scope="module")
def study(command: list[str]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDFAST_REPORT", "1")
        assert run(command) == 0
    return Path(command[3])


@pytest.fixture
def out(study: Path, tmp_path: Path) -> Path:
    """The study in another place, without its page."""
    copy = shutil.copytree(study, tmp_path / "moved")
    (copy / REPORT).unlink()
    return copy


def parts(out: Path) -> list[str]:
    return re.findall(r'<section id="([^"]+)"', (out / REPORT).read_text())


def kept(out: Path) -> list[Path]:
    return sorted(out.glob("report/*"))


def nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "opened", lambda *_: pytest.fail("something was opened"))


def test_the_page_shows_what_the_models_of_the_first_run_fill_in(study: Path, kind: str) -> None:
    found = parts(study)
    assert found.index("d0-runs") < found.index(PARTS[kind]) < found.index("d0-cost")
    page = (study / REPORT).read_text()
    assert f"The models are those of {WHOSE[kind]}. " in page
    for words in ("initial model", "after pretrain", "after distill"):
        assert words in page
    assert "after finetune" not in page and "Map" not in page


def test_it_is_of_the_stages_that_the_first_run_began_with(study: Path) -> None:
    values = next(records_in(study))
    data = Data(study, values, values["data"][0])
    (path,) = kept(study)
    models = json.loads(path.read_text())["models"]
    (arm,) = (arm for arm in data.arms if arm["title"] == "self-distillation")
    first = data.result(arm["runs"][0])
    assert first is not None and first.inputs["start"] == models["distill"]["weights"]
    results = {key: read_result(study / models[key]["stage"]) for key in ("pretrain", "distill")}
    assert results["distill"] is not None and results["distill"].inputs["teacher"] == models["pretrain"]["weights"]
    assert results["distill"].inputs["start"] == models["initial"]["weights"]


def test_it_is_made_once(command: list[str], study: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = kept(study)
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(masked, "make", lambda *_: pytest.fail("it was made again"))
    assert run(command) == 0
    assert kept(study) == [path] and path.stat().st_mtime_ns == before and PARTS[kind] in parts(study)


def test_the_report_command_shows_it_without_opening_anything(
    out: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_is_opened(monkeypatch)
    shutil.rmtree(out / "stages")
    assert run(["report", "--out", str(out)]) == 0
    assert PARTS[kind] in parts(out)


def test_the_report_command_makes_what_is_damaged_or_gone_again(out: Path, kind: str) -> None:
    (path,) = kept(out)
    before = path.read_bytes()
    path.write_bytes(before[:-40])
    assert run(["report", "--out", str(out), "--device", "cpu"]) == 0
    assert path.read_bytes() == before and PARTS[kind] in parts(out)


def test_without_its_models_it_is_left_out_with_a_warning(
    out: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(out / "report")
    values = next(records_in(out))
    for stage in values["data"][0]["stages"]:
        stage["model"] = "gone"
    (out / "compare.json").write_text(json.dumps(values))
    for folder in out.glob("stages/distill-*"):
        shutil.rmtree(folder)
    assert run(["report", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"what the models of {WHOSE[kind]} fill in: the distill of self-distillation is not there" in said
    assert PARTS[kind] not in parts(out) and "d0-results" in parts(out) and kept(out) == []


def test_a_study_does_not_fail_for_it(
    command: list[str], out: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory, say\nand more")

    shutil.rmtree(out / "report")
    again = [*command[:3], str(out), *command[4:]]
    monkeypatch.setattr(masked, "make", fails)
    assert run([*again, "engine.report=false"]) == 0
    assert "out of memory" not in capsys.readouterr().err
    assert not (out / REPORT).exists() and kept(out) == []
    assert run(again) == 0
    assert "fill in: RuntimeError: out of memory, say." in capsys.readouterr().err
    assert PARTS[kind] not in parts(out) and "d0-cost" in parts(out)


def test_of_several_data_sets_each_part_is_named(study: Path, kind: str) -> None:
    values = next(records_in(study))
    panel = evidence_panel(Data(study, values, values["data"][0]), "d1-", ": birds")
    assert panel is not None and panel.key == PARTS[kind].replace("d0", "d1") and panel.title.endswith(": birds")


def test_a_study_of_fine_tuning_alone_has_none(tmp_path: Path) -> None:
    model, data = write_model(tmp_path / "model"), write_images(tmp_path / "data")
    options = ["--model", str(model), "--data", str(data), "--methods", "fine-tuning", "--seeds", "1", *QUICK]
    out = tmp_path / "out"
    assert run(["study", "compare", "--out", str(out), *options]) == 0
    assert PARTS["images"] not in parts(out) and "d0-results" in parts(out) and kept(out) == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("compare", "self-distillation (seed 0)"),
        ("table3", "full model (seed 0)"),
        ("figure4", "t = 1 (seed 0)"),
        ("labels", "self-distillation, n = 20 (seed 0)"),
        ("cost", None),
    ],
)
def test_the_first_arm_that_distils_is_shown(name: str, title: str | None) -> None:
    found = made_up(STUDIES.get(name, COST), range(2))
    values = json.loads(json.dumps(record(found.study, [found], protocol="paper")))
    example = example_in(Data(Path("nowhere"), values, values["data"][0]))
    assert (None if example is None else str(example)) == title


def test_without_one_it_is_the_first_that_pre_trains_and_its_unit_is_said() -> None:
    found = made_up(STUDIES["compare"], range(2))
    values = json.loads(json.dumps(record(found.study, [found], protocol="paper")))
    for arm in values["data"][0]["arms"]:
        arm["runs"] = [] if arm["start"] == "distill" else [{**run, "split_seed": 42, "fold": 0} for run in arm["runs"]]
    example = example_in(Data(Path("nowhere"), values, values["data"][0]))
    assert str(example) == "further pre-training (fold 0 of split seed 42, seed 0)"
