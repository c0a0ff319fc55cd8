"""Seeded views of each image: the bank holds features of the very pixels that training sees again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_samples import COUNT, digests_of, make_images, make_recipe
from pipeline_fixtures import FEW_STEPS, write_images, write_model
from test_live_and_bank import interrupted_build, train

import sdfast
from sdfast.cli.main import run
from sdfast.durable import read_json
from sdfast.engine.teacher_bank import bank_targets
from sdfast.errors import UserError
from sdfast.modalities.images.augment import Augmentation, content_keys
from sdfast.modalities.images.checkpoint import load_mae
from sdfast.modalities.images.teacher import ImageRecipe
from sdfast.teacher.bank import open_bank
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.fetch import FetchedBank
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.verify import sample_errors


def with_views(kind: str = "crop", seed: int = 11, views: int = 3, **changes: Any) -> ImageRecipe:
    recipe = make_recipe(**changes)
    return replace(recipe, augment=Augmentation(kind, seed, views, content_keys(recipe.digests)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "tokens", "residency"), [("crop", "cls", "device"), ("flip", "all", "stream")])
def test_live_and_bank_see_the_same_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tokens: str, residency: Any
) -> None:
    monkeypatch.setattr("test_live_and_bank.STEPS", 60)  # more than six epochs
    recipe = with_views(kind, tokens=tokens, dtype="float64")
    bank = interrupted_build(tmp_path / "teacher", recipe)
    assert len(bank) == 3 * COUNT
    arguments = (torch.float64, 16, 0, tmp_path, 2)
    losses, weights = train(recipe, LiveTeacher(recipe.encoder, recipe.tokens).double(), *arguments)
    banked, bank_weights = train(recipe, bank_targets(bank, recipe, residency), *arguments)
    np.testing.assert_allclose(banked, losses, rtol=1e-9)
    for name, value in weights.items():
        torch.testing.assert_close(bank_weights[name], value, rtol=1e-9, atol=1e-9)
    wrong = bank_targets(bank, recipe, residency)
    wrong.bank_rows = wrong.bank_rows.roll(1, dims=0)  # type: ignore[attr-defined]
    shifted, _ = train(recipe, wrong, *arguments)
    assert isinstance(wrong, FetchedBank) == (residency == "stream") and abs(shifted[0] / losses[0] - 1) > 1e-6


def test_training_replays_the_pixels_that_the_teacher_saw(tmp_path: Path) -> None:
    recipe = with_views()
    augment, rows = recipe.augment, torch.tensor([40, 3, 149])
    assert augment is not None
    pixels = recipe.normalise(torch.from_numpy(recipe.images[rows.numpy()]))
    seen = []
    for epoch in range(6):
        entries = recipe.distinct_rows.searchsorted(rows.numpy()) * 3 + epoch % 3
        seen.append(augment(pixels, rows, epoch))
        assert torch.equal(seen[-1], recipe.seen(recipe.images[rows.numpy()], entries))
    assert torch.equal(seen[0], seen[3]) and not torch.equal(seen[0], seen[1])
    bank = prepare_bank(tmp_path / "teacher", recipe)
    features = LiveTeacher(recipe.encoder, "cls")(seen[1])
    torch.testing.assert_close(bank.load()[0][recipe.bank_rows(bank)[1, rows]], features, atol=1e-5, rtol=1e-5)
    assert sample_errors(bank, recipe, 1000, 0).rows == 3 * COUNT


def test_rows_are_found_by_content_whatever_their_order(tmp_path: Path) -> None:
    images = make_images()
    images[7] = images[100]
    recipe = with_views(images=images)
    bank = prepare_bank(tmp_path / "teacher", recipe)
    rows = recipe.bank_rows(bank)
    assert len(bank) == 3 * (COUNT - 1) and torch.equal(rows[:, 7], rows[:, 100]) and rows.min() >= 0
    order = np.random.default_rng(0).permutation(COUNT)
    shuffled = with_views(images=images[order], digests=digests_of(images[order]))
    again = prepare_bank(tmp_path / "teacher", shuffled)
    assert torch.equal(shuffled.bank_rows(again), rows[:, torch.from_numpy(order)])


OTHER: dict[str, dict[str, Any]] = {
    "augment.kind": {"kind": "flip"},
    "augment.seed": {"seed": 12},
    "rows": {"views": 4},
}


@pytest.mark.parametrize("field", list(OTHER))
def test_views_of_something_else_are_refused_by_name(tmp_path: Path, field: str) -> None:
    prepare_bank(tmp_path / "teacher", with_views())
    with pytest.raises(UserError, match=rf"something else: {field} is"):
        prepare_bank(tmp_path / "teacher", with_views(**OTHER[field]))
    with pytest.raises(UserError, match="something else:"):
        prepare_bank(tmp_path / "teacher", make_recipe())


# In a run.


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    return {"model": write_model(root / "model"), "data": write_images(root / "images")}


def pipeline(inputs: dict[str, Path], out: Path, *overrides: str) -> sdfast.Pipeline:
    return sdfast.Pipeline(**inputs, out=out, overrides=(*FEW_STEPS, "distill.steps=12", *overrides))  # type: ignore[arg-type]


def test_a_run_with_views_gives_one_result_live_or_banked(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ("pretrain.augment=crop", "teacher.views=2")
    banked = pipeline(inputs, tmp_path / "bank", *wanted).distill()
    live = pipeline(inputs, tmp_path / "live", *wanted, "teacher.mode=live").distill()
    assert banked.fingerprint == live.fingerprint
    one, other = (load_mae(str(result.model)).module.state_dict() for result in (banked, live))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=2e-5, rtol=1e-3)
    assert len(open_bank(tmp_path / "bank" / "teacher")) == 2 * 24
    assert run(["cache", "verify", "--out", str(tmp_path / "bank"), "--sample", "48"]) == 0
    assert run(["cache", "info", "--out", str(tmp_path / "bank")]) == 0
    assert "2 of each image, crop" in capsys.readouterr().out
    anew = pipeline(inputs, tmp_path / "live", "pretrain.augment=crop", "teacher.mode=live").distill()
    plain = pipeline(inputs, tmp_path / "plain").distill()
    assert len({banked.fingerprint, anew.fingerprint, plain.fingerprint}) == 3
    assert len({banked.weights, anew.weights, plain.weights}) == 3
    assert "pretrain.augment" not in read_json(plain.model.parent / "result.json")["inputs"]


REFUSED = {
    (
        "pretrain.augment=crop",
    ): r"pretrain\.augment=crop gives .* teacher\.mode=live, or teacher\.views=K .*augment=none\.",
    ("teacher.views=2",): r"teacher\.views=2 needs a transform",
    ("teacher.views=-1",): r"teacher\.views=-1 does not fit",
    ("pretrain.augment=zoom",): r"pretrain\.augment=zoom does not fit",
}


@pytest.mark.parametrize("overrides", list(REFUSED))
def test_what_does_not_go_together_is_one_sentence_before_any_training(
    inputs: dict[str, Path], tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=REFUSED[overrides]) as caught:
        pipeline(inputs, tmp_path / "run", *overrides).distill()
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "pretrain").exists()


def test_further_pretraining_alone_may_augment_as_it_likes(inputs: dict[str, Path], tmp_path: Path) -> None:
    results = [
        pipeline(inputs, tmp_path / kind, f"pretrain.augment={kind}").pretrain() for kind in ("none", "flip", "crop")
    ]
    assert len({result.weights for result in results}) == len({result.fingerprint for result in results}) == 3
    with pytest.raises(UserError, match=r"teacher\.views=K"):
        pipeline(inputs, tmp_path / "crop", "pretrain.augment=crop", "teacher.mode=live").build_bank()
