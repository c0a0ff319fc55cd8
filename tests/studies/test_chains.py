"""`sdfast study --chains`: what differs from chain to chain, and the numbers of the table, by scipy."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pipeline_fixtures import write_images, write_model
from scipy import stats
from study_samples import made_up

import sdfast
from sdfast.cli.main import run
from sdfast.config import Config
from sdfast.studies.declared import STUDIES
from sdfast.studies.figures import caption
from sdfast.studies.plan import Cell, Node, Plan, Target
from sdfast.studies.report import page_of
from sdfast.studies.results import Found, gather
from sdfast.studies.schedule import in_order
from sdfast.studies.store import Shared, Store
from sdfast.studies.tables import markdown, record
from sdfast.studies.units import Chain, unit_of
from sdfast.studies.verdict import verdicts

STEPS = [
    *(f"{stage}.{key}" for stage in ("pretrain", "distill", "finetune") for key in ("steps=2", "batch_size=8")),
    "engine.threads=1",
]
ARMS = "fine-tuning,further-pre-training"
RECORDED = json.loads((Path(__file__).parents[1] / "stages" / "fingerprints.json").read_text())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": str(write_model(root / "model")), "data": str(write_images(root / "images"))}


def study(inputs: dict[str, str], out: Path, *more: str, name: str = "compare") -> int:
    given = ["--model", inputs["model"], "--data", inputs["data"], "--out", str(out), *STEPS]
    return run(["study", name, *given, *(["--methods", ARMS] if name == "compare" else []), *more])


def planned(inputs: dict[str, str], out: Path, name: str, *more: str, **options: Any) -> tuple[Target, list[Node]]:
    config = Config(model=inputs["model"]).changed([f"data.source={inputs['data']}", *STEPS, *more])
    plan = Plan(STUDIES[name], protocol="full", **options)
    return plan.target(config, out), list(plan.nodes.values())


def rows(cell: Cell, out: Path) -> tuple[int, ...]:
    """Those that a cell's fine-tuning sees."""
    with Store(out, Shared()).opened(cell.config) as context:
        return tuple(context.train_rows("finetune").tolist())


def settings(target: Target) -> set[tuple[Any, ...]]:
    """Of each cell, its chain and the three seeds."""
    return {(cell.unit, cell.config.seed, cell.config.data.limit_seed, cell.seed) for cell in target.cells}


def runs_of(out: Path, name: str = "compare") -> dict[str, list[tuple[int, int]]]:
    """Chain and seed of the runs of each arm."""
    table = pd.read_csv(out / f"{name}.csv")
    return {str(arm): list(zip(each["chain"], each["seed"], strict=True)) for arm, each in table.groupby("arm")}


@pytest.mark.parametrize("limit", ["data.limit", "data.labelled_limit"])
def test_a_chain_has_seeds_and_rows_of_its_own_that_its_arms_share(
    inputs: dict[str, str], tmp_path: Path, limit: str
) -> None:
    target, nodes = planned(inputs, tmp_path, "table4", f"{limit}=8", "seed=5", seeds=[5, 6], chains=3)
    assert Counter(node.task.stage for node in nodes) == {"pretrain": 3, "distill": 3, "finetune": 12}
    assert settings(target) == {(Chain(k), 5 + k, 42 + k, 5 + 2 * k + m) for k in range(3) for m in range(2)}
    of_chains: dict[Any, set[tuple[int, ...]]] = {}
    for cell in target.cells:
        of_chains.setdefault(cell.unit, set()).add(rows(cell, tmp_path))
    assert all(len(each) == 1 for each in of_chains.values()) and len(set.union(*of_chains.values())) == 3
    assert target.sampled


def test_sizes_of_an_axis_are_drawn_anew_too(inputs: dict[str, str], tmp_path: Path) -> None:
    target, _ = planned(inputs, tmp_path, "figure3", seeds=[0], chains=2, points=[8, 24])
    assert settings(target) == {(Chain(k), k, 42 + k, k) for k in range(2)} and target.sampled
    drawn: dict[float | None, set[tuple[int, ...]]] = {}
    for cell in target.cells:
        drawn.setdefault(cell.arm.x, set()).add(rows(cell, tmp_path))
    assert {x: len(each) for x, each in drawn.items()} == {8: 2, 24: 1}  # of all rows there is one sample


def test_classes_that_few_chains_lack_are_said_of_those(inputs: dict[str, str], tmp_path: Path) -> None:
    data = {**inputs, "data": str(write_images(tmp_path / "images", classes=6, train=4))}
    target, _ = planned(data, tmp_path / "out", "figure3", seeds=[0], chains=3, points=[4, 24])
    assert target.notes == ["At n = 4 2 of 6 classes have no training row."]


def test_protocol_full_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fingerprints are those that `tests/stages/test_fingerprints.py` has kept of runs with these seeds."""
    start = RECORDED["starts"]["images"][""]
    monkeypatch.setattr("sdfast.modalities.images.checkpoint.weights_digest", lambda module: start)
    plan = Plan(STUDIES["table4"], [0, 3], protocol="full")
    overrides = RECORDED["presets"]["images"].split()
    target = plan.target(sdfast.Pipeline(device="cpu", overrides=overrides).config, tmp_path)
    keys = {cell.seed: [node.key[:12] for node in cell.stages] for cell in target.cells if cell.arm.start == "distill"}
    assert keys == {seed: [*RECORDED["images"][name].values()] for seed, name in ((0, ""), (3, "seed=3"))}
    assert {cell.unit for cell in target.cells} == {None} and target.kind == "seed"


def test_without_a_limit_chains_are_those_of_protocol_full(inputs: dict[str, str], tmp_path: Path) -> None:
    chains, stages = planned(inputs, tmp_path, "table4", seeds=[0], chains=3)
    _, of_seeds = planned(inputs, tmp_path, "table4", seeds=[0, 1, 2])
    assert {node.key for node in stages} == {node.key for node in of_seeds} and not chains.sampled
    assert settings(chains) == {(Chain(k), k, 42, k) for k in range(3)}


@pytest.fixture(scope="module")
def two_each(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chains with two fine-tunings in each."""
    out = tmp_path_factory.mktemp("two")
    assert study(inputs, out, "--chains", "3", "--seeds", "2", "data.limit=12") == 0
    return out


def test_the_unit_of_the_table_is_the_chain(two_each: Path) -> None:
    table = pd.read_csv(two_each / "compare.csv")
    assert list(table["chain"]) == [0, 0, 1, 1, 2, 2] * 2 and list(table["seed"]) == [0, 1, 2, 3, 4, 5] * 2
    stored = json.loads((two_each / "compare.json").read_text())
    assert stored["protocol"] == "full" and stored["chains"] == 3 and stored["seeds"] == [0, 1, 2, 3, 4, 5]
    data, text = stored["data"][0], (two_each / "compare.md").read_text()
    assert [unit_of(each) for each in data["arms"][0]["runs"]] == [Chain(k) for k in (0, 0, 1, 1, 2, 2)]
    assert [each["units"] for each in data["raw"]] == [[{"chain": k}] for k in range(3)]
    for column, scale, digits in (("accuracy", 100, 1), ("test_loss", 1, 3)):
        means = scale * table.groupby(["arm", "chain"])[column].mean().unstack("arm")
        for arm in means:
            assert f"{means[arm].mean():.{digits}f} ± {means[arm].std():.{digits}f}" in text
        further, plain = means["further pre-training"], means["fine-tuning"]
        found, test = data["paired"][column]["further pre-training"], stats.ttest_rel(further, plain)
        assert found["count"] == 3 and found["mean"] == pytest.approx((further - plain).mean())
        if found["p"] is None:
            assert (further - plain).std() < 1e-4
        else:
            assert found["p"] == pytest.approx(test.pvalue)
            low, high = test.confidence_interval()
            assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    assert (
        "over 3 chains: each has its own seed in pretrain, distill and finetune and its own sample of the training rows"
        " (data.limit_seed=42 to 44), and counts by the mean of its 2 fine-tunings (`--chains`)." in text
    )
    assert "paired by chain" in text and "seed" not in verdicts(stored)[0] and "chain" in verdicts(stored)[0]
    loaded = sdfast.Study.load(two_each)
    assert loaded.record["chains"] == 3 and set(loaded.to_pandas()["chain"]) == {0, 1, 2}


def test_several_stages_at_a_time_give_the_same(inputs: dict[str, str], two_each: Path, tmp_path: Path) -> None:
    assert study(inputs, tmp_path, "--chains", "2", "--seeds", "2", "--jobs", "2", "data.limit=12") == 0
    found = [
        {path.parent.name: json.loads(path.read_text())["weights"] for path in (out / "stages").rglob("result.json")}
        for out in (tmp_path, two_each)
    ]
    assert len(found[0]) == 2 * (1 + 2 + 2) and found[0].items() <= found[1].items()


def test_chain_after_chain_is_trained_and_each_stage_after_those_it_needs(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    _, nodes = planned(inputs, tmp_path, "table4", "data.limit=12", seeds=[0, 1], chains=3)
    order = in_order(nodes)
    assert [node.unit for node in order] == [Chain(k) for k in range(3) for _ in range(6)]
    assert [node.task.stage for node in order] == ["pretrain", "distill", *["finetune"] * 4] * 3
    assert all(order.index(need) < order.index(node) for node in nodes for need in node.needs)


def test_more_chains_go_on_and_fewer_leave_the_table(inputs: dict[str, str], two_each: Path) -> None:
    two = ("--seeds", "2", "data.limit=12")
    before = {path: path.stat().st_mtime_ns for path in (two_each / "stages").rglob("result.json")}
    assert study(inputs, two_each, "--chains", "4", *two) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    four = [(k, 2 * k + m) for k in range(4) for m in range(2)]
    assert runs_of(two_each) == {"fine-tuning": four, "further pre-training": four}
    text = (two_each / "compare.md").read_text()
    assert study(inputs, two_each, "--chains", "2", *two) == 0
    assert (two_each / "compare.md").read_text() == text and not list(two_each.glob("compare-*"))


def test_other_fine_tunings_or_no_chains_have_a_table_of_their_own(inputs: dict[str, str], tmp_path: Path) -> None:
    """Where chains have other seeds, one run would be of two chains."""

    def pretrained() -> set[str]:
        return {path.name for path in (tmp_path / "stages").glob("pretrain-*")}

    assert study(inputs, tmp_path, "--chains", "3") == 0
    one, stages = (tmp_path / "compare.json").read_bytes(), pretrained()
    assert runs_of(tmp_path)["fine-tuning"] == [(0, 0), (1, 1), (2, 2)]
    assert study(inputs, tmp_path, "--chains", "3", "--seeds", "2") == 0
    assert runs_of(tmp_path)["fine-tuning"] == [(k, 2 * k + m) for k in range(3) for m in range(2)]
    (aside,) = tmp_path.glob("compare-*.json")
    assert aside.read_bytes() == one and pretrained() == stages and len(stages) == 3
    assert study(inputs, tmp_path, "--protocol", "full", "--seeds", "3") == 0
    assert "chain" not in pd.read_csv(tmp_path / "compare.csv") and len([*tmp_path.glob("compare-*.json")]) == 2
    assert pretrained() == stages  # of the same seeds and rows
    assert study(inputs, tmp_path, "--chains", "2") == 0
    assert runs_of(tmp_path)["fine-tuning"] == [(0, 0), (1, 1), (2, 2)]  # the first table is there again


def of_chains(found: Found, each: int, missing: tuple[str, int]) -> Found:
    """A study's runs as those of chains with so many fine-tunings; an arm has none in one of them."""
    cells = [replace(cell, unit=Chain(cell.seed // each)) for cell in found.target.cells]
    cells = [cell for cell in cells if (cell.arm.title, cell.place[0]) != missing]
    found.target.cells, found.target.kind = cells, "chain"
    return gather(found.study, found.target)


@pytest.mark.parametrize("name", ["table1", "figure1", "labels", "figure5"])
def test_a_difference_is_over_the_chains_that_both_have_in_table_figure_and_page(name: str, tmp_path: Path) -> None:
    study = STUDIES[name]
    whole = made_up(study, range(10))
    other = next(arm.title for arm in whole.target.arms if whole.reference(arm) != arm.title)
    found = of_chains(whole, 2, (other, 3))
    column = study.tested[0]
    (against,) = {found.reference(arm) for arm in found.target.arms if arm.title == other}
    table = pd.DataFrame(
        [(run.arm.title, run.place[0], found.value(run, column)) for run in found.all_runs()],
        columns=["arm", "chain", "value"],
    )
    means = table.groupby(["chain", "arm"])["value"].mean().unstack("arm")
    both = means[[other, against]].dropna()
    test, difference = stats.ttest_rel(both[other], both[against]), found.compared(column)[other]
    assert difference.count == len(both) == 4 and difference.p == pytest.approx(test.pvalue)
    ends = tuple(test.confidence_interval())
    assert (difference.low, difference.high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))

    text = markdown(study, [found], "full")
    assert "over 4 to 5 chains: " in text and "a difference is over the chains that both have" in text
    assert "paired by chain" in text and "4 pairs" in text
    about = caption([found], "full")
    assert "points: 4 to 5 chains (each has its own seed" in about and "mean of its 2 fine-tunings" in about
    values = json.loads(json.dumps(record(study, [found], protocol="full", chains=5, seeds=[*range(10)])))
    page = page_of(tmp_path, values)
    shown = " ".join(f"{panel.lead} {panel.body}" for panel in page.panels)
    assert "chains" in page.verdict and "seeds" not in page.verdict
    assert "over 5 chains" in shown or "over the chains" in shown
    assert "paired by seed" not in shown and "over the seeds" not in shown and "chain 4" in shown


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("compare", ("--folds", "3"), "--chains trains whole chains on the data's own splits"),
        ("compare", ("--repeats", "3"), "give one or the other"),
        ("compare", ("--protocol", "paper"), "--protocol paper once"),
        ("cost", (), "leave --chains away"),
    ],
)
def test_one_sentence(
    inputs: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    more: tuple[str, ...],
    words: str,
) -> None:
    assert study(inputs, tmp_path, "--chains", "2", *more, name=name) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and words in said[0] and not (tmp_path / "stages").exists()
