"""Runs whose stages train little: what they leave, what is done again, and the arms of studies."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_fixtures import FEW_STEPS, SHAPE, write_images, write_model
from resuming import check_resumes
from safetensors.torch import load_file
from text_fixtures import write_text_model, write_texts

import sdfast
from sdfast.cli.main import run
from sdfast.config import Config
from sdfast.costs.measure import size
from sdfast.errors import UserError
from sdfast.modalities.images.checkpoint import load_mae
from sdfast.modalities.images.costs import ImageTask
from sdfast.models.neighbours import FeatureClassifier, Features
from sdfast.models.standardised import Standard
from sdfast.objectives.choose import finished_state
from sdfast.ranks import Ranks
from sdfast.stages.build import build_stage
from sdfast.stages.graph import finetuning
from sdfast.stages.probe import standardise_features

LORA = ("pretrain.method=lora", "distill.method=lora", "finetune.method=lora", "finetune.lora.targets=all")
PROBE = ("finetune.method=linear_probe", "finetune.start=init")
QUICK = (*FEW_STEPS, "engine.threads=1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_model(root / "model"), "data": write_images(root / "images", val=4)}


@pytest.fixture(scope="module")
def text_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_text_model(root / "model"), "data": write_texts(root / "texts")}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str) -> sdfast.Pipeline:
    return sdfast.Pipeline(**inputs, out=out, overrides=(*QUICK, *overrides))


@pytest.fixture(scope="module")
def adapted(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    keys = ("finetune.regularizer=r4f", "finetune.best_dev=true", "finetune.evaluations=2", "finetune.lr=0.01")
    pipeline(inputs, out, *LORA, *keys).run()
    return out


def test_an_adapter_on_what_it_started_from_is_the_merged_model(adapted: Path) -> None:
    """With a spectral norm that was folded, and weights that were kept at a step before the last."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    kind = transformers.ViTForImageClassification
    merged = kind.from_pretrained(adapted / "finetune" / "model").eval()
    start = kind.from_pretrained(adapted / "distill" / "model" / "encoder", num_labels=2).eval()
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    wrapped = peft.PeftModel.from_pretrained(start, adapted / "finetune" / "model" / "adapter")
    torch.testing.assert_close(wrapped(pixels).logits, merged(pixels).logits, rtol=0, atol=2e-6)

    first = load_mae(str(adapted / "pretrain" / "model")).module.encoder
    given = json.loads((adapted / "pretrain" / "result.json").read_text())["metrics"]
    assert given["distance"] > 0 and (adapted / "distill" / "model" / "adapter").is_dir()
    assert not any("lora" in name for name in first.state_dict())


def test_only_the_stage_whose_adapter_changed_runs_again(
    inputs: dict[str, Path], adapted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pipeline(inputs, out, *LORA).run()
    stamps = {stage: (out / stage / "result.json").stat().st_mtime_ns for stage in ("pretrain", "distill", "finetune")}
    pipeline(inputs, out, *LORA, "finetune.lora.rank=4").run()
    now = {stage: (out / stage / "result.json").stat().st_mtime_ns for stage in stamps}
    assert {stage for stage in stamps if now[stage] != stamps[stage]} == {"finetune"}
    pipeline(inputs, out, *LORA, "finetune.lora.rank=4", "pretrain.lora.alpha=16").run()
    assert (out / "pretrain" / "result.json").stat().st_mtime_ns != stamps["pretrain"]


def test_a_checkpoint_of_an_adapter_makes_a_plain_model(inputs: dict[str, Path], tmp_path: Path) -> None:
    """As `sdfast export` does it of a stage that has not ended."""
    from sdfast.models.low_rank import add_low_rank, merge_low_rank

    module: Any = load_mae(str(inputs["model"])).module
    add_low_rank(module, ("query", "proj"), 2, 3.0, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    state = finished_state(module.state_dict())
    merge_low_rank(module)
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_probe_keeps_its_encoder(
    kind: str, inputs: dict[str, Path], text_inputs: dict[str, Path], tmp_path: Path
) -> None:
    given = inputs if kind == "images" else text_inputs
    pipeline(given, tmp_path, "finetune.method=linear_probe", "finetune.start=init").finetune()
    before = load_file(given["model"] / "model.safetensors")
    after = load_file(tmp_path / "finetune" / "model" / "model.safetensors")
    stem = "vit." if kind == "images" else "roberta."
    shared = [name for name in after if name.startswith(stem)]
    assert len(shared) > 10 and all(torch.equal(before[name], after[name]) for name in shared)
    metrics = json.loads((tmp_path / "finetune" / "result.json").read_text())["metrics"]
    assert metrics["distance"] == 0 and not (tmp_path / "finetune" / "model" / "adapter").exists()


def probed(context: Any, directory: Path) -> Any:
    """The trainer of a linear probe as a run assembles it."""
    return build_stage(context, finetuning(context), context.model.module, directory, resume=True)


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_probes_features_are_standardised_over_the_rows_it_is_trained_on(
    kind: str, inputs: dict[str, Path], text_inputs: dict[str, Path], tmp_path: Path
) -> None:
    given = inputs if kind == "images" else text_inputs
    limits = ("data.limit=20", "data.labelled_limit=11")
    run_ = pipeline(given, tmp_path / "run", *PROBE, "finetune.flip=1" if kind == "images" else "seed=3", *limits)
    context = run_.context
    modality, train, rows = context.modality, context.train, context.train_rows("finetune")
    features = FeatureClassifier(context.model.module, Features(32))
    seen = modality.predict(features, modality.companions(context.model), train, rows, context.read(train)).double()
    assert seen.shape == (11, 32)
    standard: Any = probed(context, tmp_path / "stage").objective.module.standard
    torch.testing.assert_close(standard.mean.double(), seen.mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(standard.deviation.double(), seen.std(dim=0, correction=0), rtol=1e-4, atol=0)

    def of_process(rank: int, exchange: Any) -> Any:
        module = modality.classifier(context.config, context.model.module, 2, 1)
        standardise_features(replace(context, ranks=Ranks(rank, 2, exchange)), module)
        return module.standard

    shares: list[Any] = []
    for rank in range(2):
        of_process(rank, lambda mine: [shares.append(mine), mine][1:])
    assert [count for count, _ in shares] == [5, 6]
    of_each = [of_process(rank, lambda mine: shares) for rank in range(2)]
    for name, value in standard.state_dict().items():
        assert torch.equal(getattr(of_each[0], name), getattr(of_each[1], name))
        torch.testing.assert_close(getattr(of_each[0], name), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_probe_is_kept_as_a_plain_model_that_says_what_it_said_in_training(
    kind: str, inputs: dict[str, Path], text_inputs: dict[str, Path], tmp_path: Path
) -> None:
    given = inputs if kind == "images" else text_inputs
    run_ = pipeline(given, tmp_path / "run", *PROBE, "finetune.lr=0.03", "finetune.steps=12")
    result, context = run_.finetune(), run_.context
    trainer = probed(context, tmp_path / "stage")
    trainer.run()
    modality, module, test = context.modality, trainer.objective.module, context.test
    kept = modality.read_classifier(tmp_path / "run" / "finetune" / "model")
    assert isinstance(module.standard, Standard) and not any("standard" in name for name in kept.module.state_dict())
    said, wanted = (
        modality.predict(each, kept.companions, test, torch.arange(len(test.labels)), context.read(test))
        for each in (kept.module, module)
    )
    torch.testing.assert_close(said, wanted, rtol=0, atol=1e-4 * float(wanted.std()))
    assert sdfast.Pipeline(**given, out=tmp_path / "run").evaluate()["test_loss"] == pytest.approx(
        result.metrics["test_loss"], abs=1e-6
    )
    raw = pipeline(given, tmp_path / "raw", *PROBE, "finetune.probe.standardise=false", "finetune.lr=0.03").finetune()
    assert raw.weights != result.weights


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_probe_that_was_stopped_goes_on_bit_for_bit(
    kind: str, inputs: dict[str, Path], text_inputs: dict[str, Path], tmp_path: Path
) -> None:
    run_ = pipeline(inputs if kind == "images" else text_inputs, tmp_path / "run", *PROBE, "finetune.steps=12")
    check_resumes(lambda folder: probed(run_.context, folder), tmp_path)


def test_the_best_weights_of_a_probe_are_chosen_by_what_is_kept(inputs: dict[str, Path], tmp_path: Path) -> None:
    keys = ("finetune.best_dev=true", "finetune.evaluations=3", "finetune.lr=0.03")
    result = pipeline(inputs, tmp_path, *PROBE, *keys).finetune()
    of_val = torch.tensor(result.confusion_matrix["val"])  # type: ignore[index]
    assert result.metrics["dev_accuracy"] == pytest.approx(float(of_val.trace() / of_val.sum()))


def test_a_checkpoint_of_a_probe_is_exported_as_a_plain_model(inputs: dict[str, Path], tmp_path: Path) -> None:
    run_ = pipeline(inputs, tmp_path / "run", *PROBE)
    module = probed(run_.context, tmp_path / "stage").objective.module.eval()
    exported: Any = run_.modality.filled(module.state_dict(), run_.config, run_.context.model.shape, 2).eval()
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(exported(pixels), module(pixels), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "standardised"), [("modernbert", False), ("eurobert", True), ("bert", True)])
def test_a_head_that_cannot_take_up_a_mean_is_given_features_as_they_are(
    kind: str, standardised: bool, text_inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_text_model(tmp_path / "model", kind)
    run_ = pipeline({**text_inputs, "model": model}, tmp_path / "run", *PROBE)
    with caplog.at_level("INFO"):
        standard = probed(run_.context, tmp_path / "stage").objective.module.standard
    assert isinstance(standard, Standard) == standardised
    assert ("features stay as they are" in caplog.text) != standardised


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_neighbours_are_kept_with_their_encoder_and_evaluated_again(
    kind: str,
    inputs: dict[str, Path],
    text_inputs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = inputs if kind == "images" else text_inputs
    run_ = pipeline(given, tmp_path, "finetune.method=knn", "finetune.knn.k=3", "finetune.start=pretrain")
    result = run_.finetune()
    assert result.steps == 0 and set(result.metrics) >= {"accuracy", "macro_f1", "test_loss", "train_loss", "distance"}
    assert result.per_class is not None and result.confusion_matrix is not None
    evaluated = sdfast.Pipeline(**given, out=tmp_path).evaluate()
    for name in ("accuracy", "macro_f1", "test_loss"):
        assert evaluated[name] == pytest.approx(result.metrics[name], abs=1e-6)
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert rows and {"label", "predicted", "probability"} <= rows[0].keys()
    assert run(["eval", "--out", str(tmp_path), "--data", str(given["data"])]) == 0
    kept = load_file(tmp_path / "finetune" / "model" / "neighbours.safetensors")
    torch.testing.assert_close(kept["features"].norm(dim=1), torch.ones(len(kept["labels"])))
    capsys.readouterr()


def test_a_training_row_is_not_its_own_neighbour(inputs: dict[str, Path], tmp_path: Path) -> None:
    keys = ("finetune.method=knn", "finetune.knn.k=3", "finetune.start=init", "finetune.knn.temperature=0.5")
    result = pipeline(inputs, tmp_path, *keys).finetune()
    kept = load_file(tmp_path / "finetune" / "model" / "neighbours.safetensors")
    similar = (kept["features"] @ kept["features"].t()).fill_diagonal_(-1)
    near = similar.topk(3, dim=1)
    votes = (near.values / 0.5).softmax(dim=1) * (kept["labels"][near.indices] == kept["labels"][:, None])
    loss = -votes.sum(dim=1).clamp(1e-6, 1).log().mean()
    assert result.metrics["train_loss"] == pytest.approx(float(loss), abs=1e-3)


def test_what_does_not_fit_the_data_or_the_engine_is_said(inputs: dict[str, Path], tmp_path: Path) -> None:
    for keys, sentence in (
        (("finetune.method=lora", "finetune.lora.full_blocks=3", "finetune.start=init"), "full_blocks=3 is more than"),
        (("pretrain.method=lora", "zero.stage=2", "engine.precision=bf16-weights"), "rounds them to half precision"),
    ):
        with pytest.raises(UserError, match=sentence):
            pipeline(inputs, tmp_path / "run", *keys).run()
    rows = ["file_name,split,label"]
    for number, path in enumerate(sorted(inputs["data"].rglob("*.png"))):
        rows.append(f"{path},{path.parent.parent.name},{0.1 * number}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    numbers = {"model": inputs["model"], "data": tmp_path / "list.csv"}
    with pytest.raises(UserError, match=r"neighbours vote for one class a row, and the labels of .* are regression"):
        pipeline(numbers, tmp_path / "two", "finetune.method=knn", "data.problem_type=regression").finetune()


def test_all_three_are_arms_of_compare_with_folds_and_of_labels(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(inputs["model"]), "--data", str(inputs["data"]), *QUICK, "finetune.steps=2"]
    arms = "fine-tuning,LoRA,linear probe,kNN,LoRA pre-training"
    out = tmp_path / "compare"
    assert run(["study", "compare", *common, "--out", str(out), "--seeds", "2", "--methods", arms]) == 0
    text = (out / "compare.md").read_text()
    for arm in arms.split(","):
        assert f"| {arm} " in text
    assert "Learning rate of LoRA and linear probe: 0.001, 10 times finetune.lr" in text
    record = json.loads((out / "compare.json").read_text())["data"][0]["arms"]
    rates = {arm["title"]: arm["config"]["finetune"]["lr"] for arm in record}
    assert rates["LoRA"] == rates["linear probe"] == 10 * rates["fine-tuning"] == 10 * rates["kNN"]
    capsys.readouterr()

    few = [*common, "--out", str(tmp_path / "labels"), "--seeds", "1", "--points", "4"]
    assert run(["study", "labels", *few, "--methods", "self-distillation,kNN"]) == 0
    assert "kNN, n = 4" in (tmp_path / "labels" / "labels.md").read_text()


def test_a_plan_counts_what_is_trained() -> None:
    """By hand: two blocks of width 32 with rank 4 on query and value, and a head of 10 classes."""

    def trained(*keys: str) -> int:
        found = size(ImageTask("finetune", Config().changed(keys), SHAPE, 10))
        assert found.module >= found.trained
        return found.trained

    head = 10 * 32 + 10
    assert trained("finetune.method=lora", "finetune.lora.rank=4") == head + 2 * 2 * (4 * 32 + 32 * 4)
    assert trained("finetune.method=linear_probe") == head
    assert trained() > 19_000
