"""Stages as targets: what runs, what is kept, what is run again, and what comes out."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_fixtures import FEW_STEPS, write_images, write_model

import sdfast
from sdfast.durable import read_json
from sdfast.errors import RunError, UserError
from sdfast.modalities.images import modality as images
from sdfast.modalities.images.checkpoint import load_classifier, load_mae
from sdfast.models.blocks import Attention


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_model(root / "model"), "data": write_images(root / "images")}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str, **more: Any) -> sdfast.Pipeline:
    return sdfast.Pipeline(**inputs, out=out, overrides=(*FEW_STEPS, *overrides), **more)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def test_all_runs_every_stage_and_leaves_the_promised_files(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = pipeline(inputs, out).run()
    assert result.stage == "finetune"
    assert set(result.metrics) - {"macro_f1_classes"} == {
        *("accuracy", "majority_class_accuracy", "macro_f1", "micro_f1"),
        *("test_loss", "train_loss", "generalisation_gap", "distance"),
    }
    assert result.metrics["micro_f1"] == result.metrics["accuracy"]
    for stage in ("pretrain", "distill", "finetune"):
        stored = read_json(out / stage / "result.json")
        assert stored["stage"] == stage and stored["steps"] == 6 and stored["seconds"] > 0 and stored["img_per_s"] > 0
        assert len(stored["fingerprint"]) == 64
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(stored["files"])
        last = json.loads((out / stage / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["tflops"] > 0 and last["peak_share"] > 0 and 0 <= last["wait_share"] <= 1
    assert "pretrain" in (out / "log.txt").read_text()
    assert (out / "config.yaml").is_file()
    assert read_json(out / "finetune" / "result.json")["metrics"] == result.metrics


def test_a_named_attention_is_for_training_alone(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`varlen` trains in bf16 and cannot evaluate, which is done in float32."""
    used: list[set[str]] = []

    def predict(module: torch.nn.Module, *arguments: Any) -> torch.Tensor:
        used.append({layer.backend for layer in module.modules() if isinstance(layer, Attention)})
        return original(module, *arguments)  # type: ignore[arg-type]

    original = images.predict
    monkeypatch.setattr(images, "predict", predict)
    pipeline(inputs, tmp_path / "run", "engine.attention=reference").finetune(start="init")
    assert used == [{"auto"}, {"auto"}]


def test_each_stage_is_compiled_afresh(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages' variants of a segment would be more than torch makes of a function; then it stops compiling it."""
    events: list[str] = []

    def compiled(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        assert dynamic is False
        events.append("compile")
        return function

    monkeypatch.setattr(torch.compiler, "reset", lambda: events.append("reset"))
    monkeypatch.setattr(torch, "compile", compiled)
    pipeline(inputs, tmp_path / "run", "engine.compile=true").run()
    assert [event for event, before in zip(events, ["", *events], strict=False) if event != before] == [
        "reset",
        "compile",
    ] * 3


def test_finished_stages_are_kept_and_a_changed_input_runs_what_depends_on_it(
    inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    models = [out / stage / "model" / "model.safetensors" for stage in ("pretrain", "distill", "finetune")]
    pipeline(inputs, out).run()
    first = [stamp(model) for model in models]
    pipeline(inputs, out).run()
    assert [stamp(model) for model in models] == first

    caplog.clear()
    pipeline(inputs, out, "distill.weight=0.5").run()
    second = [stamp(model) for model in models]
    assert second[0] == first[0] and second[1] != first[1] and second[2] != first[2]
    assert "distill: runs again, because distill.weight changed" in caplog.text

    models[0].write_bytes(models[0].read_bytes()[:-1])  # a damaged model is made again, to the same bytes
    pipeline(inputs, out, "distill.weight=0.5").run()
    assert stamp(models[0]) != second[0] and stamp(models[1]) == second[1]


def test_renaming_and_touching_the_source_changes_nothing(inputs: dict[str, Path], tmp_path: Path) -> None:
    data = write_images(tmp_path / "a")
    out = tmp_path / "run"
    first = pipeline({**inputs, "data": data}, out).pretrain()
    moved = data.rename(tmp_path / "b")
    for path in moved.rglob("*.png"):
        path.touch()
    before = stamp(first.model / "model.safetensors")
    assert pipeline({**inputs, "data": moved}, out).pretrain().fingerprint == first.fingerprint
    assert stamp(first.model / "model.safetensors") == before


def test_resume_never_runs_everything_again_once(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    pipeline(inputs, out).run("distill")
    before = stamp(out / "pretrain" / "result.json")
    pipe = pipeline(inputs, out, resume="never")
    pipe.run("distill")
    after = stamp(out / "pretrain" / "result.json")
    assert after != before
    pipe.finetune()
    assert stamp(out / "pretrain" / "result.json") == after


def test_distillation_starts_from_the_initial_weights_and_keeps_the_decoder(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pipeline(inputs, out, "distill.lr=0", "distill.weight_decay=0").run("distill")
    start, teacher, student = (
        load_mae(str(path)).module.state_dict()
        for path in (inputs["model"], out / "pretrain" / "model", out / "distill" / "model")
    )
    assert all(torch.equal(start[name], student[name]) for name in start)  # nothing was learned at rate 0
    assert not torch.equal(start["decoder.pred.weight"], teacher["decoder.pred.weight"])


def test_rounds_each_restart_and_take_the_previous_student_as_teacher(inputs: dict[str, Path], tmp_path: Path) -> None:
    once = pipeline(inputs, tmp_path / "once").distill()
    twice = pipeline(inputs, tmp_path / "twice", "distill.rounds=2").distill()
    first_round = read_json(tmp_path / "twice" / "distill" / "round-1" / "result.json")
    assert first_round["weights"] == once.weights
    assert read_json(twice.model.parent / "result.json")["inputs"]["teacher"] == once.weights
    assert twice.weights != once.weights
    none = pipeline(inputs, tmp_path / "none", "distill.rounds=0").distill()
    assert none.weights == read_json(tmp_path / "none" / "pretrain" / "result.json")["weights"]
    assert none.steps == 0


def test_a_teacher_that_cannot_be_handed_on_is_one_sentence(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match=r"^cannot copy \S+ to \S+/distill/model: the disk is full; free some space"):
        pipeline(inputs, tmp_path / "run", "distill.rounds=0").distill()


@pytest.mark.parametrize("overrides", [["distill.tokens=patch"], ["distill.tokens=all"], ["distill.mae_weight=0"],
                                       ["pretrain.mask=bernoulli"], ["pretrain.norm_pix=false"]])  # fmt: skip
def test_options_of_distillation_train(inputs: dict[str, Path], tmp_path: Path, overrides: list[str]) -> None:
    result = pipeline(inputs, tmp_path / "run", *overrides).distill()
    lines = [json.loads(line) for line in (result.model.parent / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 and line["loss_distill"] > 0 for line in lines)
    assert ("loss_mae" in lines[0]) == ("distill.mae_weight=0" not in overrides)


def test_without_the_mae_part_the_decoder_stays_as_it_was(inputs: dict[str, Path], tmp_path: Path) -> None:
    result = pipeline(inputs, tmp_path / "run", "distill.mae_weight=0").distill()
    start, student = (load_mae(str(path)).module.state_dict() for path in (inputs["model"], result.model))
    for name, value in start.items():
        if name.startswith("decoder."):
            assert torch.equal(value, student[name])
    assert not torch.equal(start["encoder.norm.weight"], student["encoder.norm.weight"])


def test_baselines_start_where_they_say(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    pipe = pipeline(inputs, out, "finetune.lr=0", "finetune.weight_decay=0")
    for start, source in (
        ("init", inputs["model"]),
        ("pretrain", out / "pretrain" / "model"),
        ("distill", out / "distill" / "model"),
    ):
        result = pipe.finetune(start, name=f"finetune-{start}")  # type: ignore[arg-type]
        encoder = load_classifier(result.model)[0].encoder.state_dict()
        expected = load_mae(str(source)).module.encoder.state_dict()
        assert all(torch.equal(encoder[name], expected[name]) for name in expected)


def test_plain_finetuning_runs_no_pretraining(inputs: dict[str, Path], tmp_path: Path) -> None:
    pipeline(inputs, tmp_path / "run", "finetune.start=init").run()
    assert not (tmp_path / "run" / "pretrain").exists()


def test_seeds_change_the_result_and_the_same_seed_repeats_it(inputs: dict[str, Path], tmp_path: Path) -> None:
    digests = [
        pipeline(inputs, tmp_path / name, f"seed={seed}").pretrain().weights
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_limit_uses_fewer_rows(inputs: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline(inputs, tmp_path / "run", "data.limit=6")
    pipe.pretrain()
    last = json.loads((tmp_path / "run" / "pretrain" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 5  # one batch of six an epoch


def test_unlabelled_images_can_be_pretrained_but_not_finetuned(inputs: dict[str, Path], tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, path in enumerate(sorted((inputs["data"] / "train").rglob("*.png"))):
        (flat / f"{index}.png").write_bytes(path.read_bytes())
    pipe = pipeline({**inputs, "data": flat}, tmp_path / "run")
    assert pipe.distill().steps == 6
    with pytest.raises(UserError, match="labels"):
        pipe.finetune()


def test_images_without_a_label_are_pretrained_on_and_left_out_of_the_rest(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    lines = ["file_name,label,split"]
    for split in ("train", "test"):
        for number, path in enumerate(sorted((inputs["data"] / split).rglob("*.png"))):
            lines.append(f"{path},{path.parent.name if number % 3 else ''},{split}")
    table = tmp_path / "some.csv"
    table.write_text("\n".join(lines) + "\n")
    out = tmp_path / "run"
    pipe = pipeline({**inputs, "data": table}, out, "finetune.batch_size=100", "pretrain.batch_size=100")
    assert 0 <= pipe.run().metrics["accuracy"] <= 1
    rows = {stage: read_json(out / stage / "result.json") for stage in ("pretrain", "finetune")}
    ratio = {stage: round(stored["img_per_s"] * stored["seconds"] / 6) for stage, stored in rows.items()}
    labelled = len(pipe.pack.split("train")) - int((pipe.pack.split("train").labels < 0).sum())
    assert ratio == {"pretrain": len(pipe.pack.split("train")), "finetune": labelled}
    assert labelled < ratio["pretrain"]


def test_one_class_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    data = write_images(tmp_path / "one", classes=1)
    with pytest.raises(UserError, match="class0"):
        pipeline({**inputs, "data": data}, tmp_path / "run").finetune()


def test_evaluation_repeats_the_metrics_and_lists_predictions(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = pipeline(inputs, out).run()
    metrics = pipeline(inputs, out).evaluate()
    for name in ("accuracy", "macro_f1", "test_loss"):
        assert metrics[name] == pytest.approx(result.metrics[name], rel=1e-5)
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "file_name,label,predicted,probability" and len(lines) == 13
    other = pipeline(inputs, out).evaluate(inputs["data"] / "train")
    assert other["test_loss"] == pytest.approx(result.metrics["train_loss"], rel=1e-5)


def test_evaluation_needs_neither_the_source_nor_the_first_model(inputs: dict[str, Path], tmp_path: Path) -> None:
    moved = {"model": write_model(tmp_path / "m"), "data": write_images(tmp_path / "d")}
    out = tmp_path / "run"
    result = pipeline(moved, out).run()
    for path in moved.values():
        path.rename(path.with_name("elsewhere-" + path.name))
    assert pipeline(moved, out).evaluate()["accuracy"] == pytest.approx(result.metrics["accuracy"])


def test_evaluation_names_classes_it_does_not_know(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    pipeline(inputs, out).run()
    strange = write_images(tmp_path / "strange", classes=3)
    with pytest.raises(UserError, match="class2"):
        pipeline(inputs, out).evaluate(strange)
    with pytest.raises(UserError, match="finetune"):
        pipeline(inputs, tmp_path / "empty").evaluate()


def test_two_processes_do_not_share_a_run_directory(inputs: dict[str, Path], tmp_path: Path) -> None:
    from sdfast.locks import locked

    with locked(tmp_path / "run"), pytest.raises(UserError, match="another sdfast process"):
        pipeline(inputs, tmp_path / "run").pretrain()


def test_a_disk_without_locks_is_said(inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"--out .*/run cannot be locked: no locks available; choose another --out\."):
        pipeline(inputs, tmp_path / "run").pretrain()


def test_bad_arguments_are_one_sentence(inputs: dict[str, Path], tmp_path: Path) -> None:
    for arguments, words in (
        ({"zero": 4}, "--zero 4"),
        ({"resume": "later"}, "--resume later"),
        ({"overrides": ["pretrain.stepz=3"]}, "pretrain.steps"),
        ({"preset": "papr-vit"}, "paper-vit"),
    ):
        with pytest.raises(UserError, match=words):
            sdfast.Pipeline(**inputs, out=tmp_path, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--stage fintune"):
        pipeline(inputs, tmp_path / "run").run("fintune")  # type: ignore[arg-type]


def test_evaluation_refuses_a_pack_of_other_data(inputs: dict[str, Path], tmp_path: Path) -> None:
    out, data = tmp_path / "run", Path(shutil.copytree(inputs["data"], tmp_path / "data"))
    inputs = {**inputs, "data": data}
    pipeline(inputs, out).run()
    data.rename(tmp_path / "first")
    write_images(data, test=4, side=24)
    pipeline(inputs, out).pretrain()
    with pytest.raises(UserError, match="other data than the model"):
        pipeline(inputs, out).evaluate()
    data.rename(tmp_path / "second")
    (tmp_path / "first").rename(data)
    pipeline(inputs, out).pretrain()
    pipeline(inputs, out, "data.image_size=32").pretrain()
    with pytest.raises(UserError, match="other data than the model"):
        pipeline(inputs, out).evaluate()


def test_a_command_that_cannot_start_leaves_the_configuration(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    pipeline(inputs, out).pretrain()
    before = (out / "config.yaml").read_bytes()
    with pytest.raises(UserError):
        pipeline({**inputs, "data": tmp_path / "absent"}, out).pretrain()
    assert (out / "config.yaml").read_bytes() == before


def test_rows_that_move_are_another_input(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Masks are keyed by the row: an image that joins before the chosen ones changes the run."""
    data = write_images(tmp_path / "data")
    out = tmp_path / "run"
    first = pipeline({**inputs, "data": data}, out, "data.limit=6").pretrain()
    (data / "train" / "class0" / "aaa.png").write_bytes((data / "train" / "class0" / "train0.png").read_bytes()[:-50])
    again = pipeline({**inputs, "data": data}, out, "data.limit=6", "data.max_broken=0.5").pretrain()
    assert again.fingerprint == first.fingerprint  # a broken file takes no row
    from PIL import Image

    Image.new("RGB", (16, 16), (1, 2, 3)).save(data / "train" / "class0" / "aaa.png")
    moved = pipeline({**inputs, "data": data}, out, "data.limit=6", "data.max_broken=0.5").pretrain()
    assert moved.fingerprint != first.fingerprint


def test_damaged_results_are_made_again(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = pipeline(inputs, out).pretrain()
    path = out / "pretrain" / "result.json"
    whole = json.loads(path.read_text())
    for damaged in ({"a": 1}, [1], {**whole, "files": [1]}, {**whole, "inputs": None, "fingerprint": "x"},
                    {name: value for name, value in whole.items() if name != "steps"}):  # fmt: skip
        path.write_text(json.dumps(damaged))
        assert pipeline(inputs, out).pretrain().weights == first.weights


def test_masks_that_leave_nothing_visible_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the 16"):
        pipeline(inputs, tmp_path / "run", "pretrain.mask_ratio=0.97").pretrain()
    assert pipeline(inputs, tmp_path / "run", "pretrain.mask_ratio=1e-17").pretrain().steps == 6


def test_a_limit_keeps_rows_that_have_a_label(inputs: dict[str, Path], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    files = sorted((inputs["data"] / "train").rglob("*.png"))
    rows = [f"{path},{path.parent.name if number < 4 or number > 20 else ''}" for number, path in enumerate(files)]
    table.write_text("file_name,label\n" + "\n".join(rows) + "\n")
    for seed in range(6):
        pipe = pipeline({**inputs, "data": table}, tmp_path / "run", "data.limit=1", f"data.limit_seed={seed}")
        with pipe.session():
            assert len(pipe.context.train_rows("finetune")) == len(pipe.context.train_rows("pretrain")) == 1
