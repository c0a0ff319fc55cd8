"""The bank of the features of texts: what it holds, what names it, and that a build that was cut ends with its bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_samples import contents
from text_fixtures import FEW_STEPS, write_text_model, write_texts

import sdfast
from sdfast.cli.main import run
from sdfast.errors import UserError
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import load_mlm
from sdfast.modalities.texts.teacher import TextRecipe
from sdfast.teacher.bank import open_bank
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.verify import sample_errors


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> TextRecipe:
    root = tmp_path_factory.mktemp("texts")
    pipe = sdfast.Pipeline(write_text_model(root / "model"), write_texts(root / "data", train=150), root / "run")
    made = pipe.modality.recipe(pipe.config, pipe.device, load_mlm(str(root / "model")), pipe.pack)
    assert isinstance(made, TextRecipe)
    return made


def test_it_holds_what_the_teacher_gives_for_each_text_alone(recipe: TextRecipe, tmp_path: Path) -> None:
    bank = prepare_bank(tmp_path / "bank", recipe)
    place = recipe.bank_rows(bank)[0]
    features = bank.load()[0]
    encoder = recipe.encoder.double().eval()
    for row in range(0, 150, 7):
        text = TokenBatch(*recipe.split.tokens(torch.tensor([row])))
        alone = encoder.features(text, "cls")[0]
        assert (features[place[row]].double() - alone).abs().max() < 1e-5
    recipe.encoder.float()
    lengths = recipe.split.lengths[recipe.distinct_rows]
    assert (np.diff(lengths) <= 0).all() and lengths[0] > lengths[-1]  # similar lengths go through it together
    assert sample_errors(bank, recipe, 64, 1).rows == 64


def test_a_build_that_was_cut_ends_with_the_same_bits(recipe: TextRecipe, tmp_path: Path) -> None:
    computed: list[int] = []
    cut = True

    class Watched(TextRecipe):
        def features(self, *arguments: Any) -> torch.Tensor:
            if cut and computed:
                raise KeyboardInterrupt
            computed.append(int(arguments[1][0]))
            return super().features(*arguments)

    watched = Watched(**{name: value for name, value in vars(recipe).items() if name in recipe.__dataclass_fields__})
    prepare_bank(tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        prepare_bank(tmp_path / "cut", watched)
    assert (tmp_path / ".partial-cut").is_dir() and not (tmp_path / "cut").exists()
    cut = False
    prepare_bank(tmp_path / "cut", watched)
    assert computed == list(range(0, len(recipe.entry_digests), 64))  # the first batch was kept
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_its_identity_is_by_content(recipe: TextRecipe, tmp_path: Path) -> None:
    prepare_bank(tmp_path / "bank", recipe)
    how = recipe.transform
    others = {
        "transform.tokenizer": replace(recipe, transform=replace(how, tokenizer="0" * 64)),
        "transform.max_length": replace(recipe, transform=replace(how, max_length=30)),
        "rows": replace(recipe, rows=recipe.rows[:-1]),
        "features.layer": replace(recipe, layer=1),
    }
    for field, other in others.items():
        with pytest.raises(UserError, match=field):
            open_bank(tmp_path / "bank", other.identity)
    open_bank(tmp_path / "bank", replace(recipe, rows=recipe.rows[::-1].copy()).identity)


def test_a_text_that_is_not_that_of_its_digest_is_refused(recipe: TextRecipe, tmp_path: Path) -> None:
    digests = recipe.digests.copy()
    digests[3, 0] ^= 1
    with pytest.raises(UserError, match="row 3 of the pack"):
        prepare_bank(tmp_path / "bank", replace(recipe, digests=digests))


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = write_text_model(tmp_path / "model"), write_texts(tmp_path / "data"), str(tmp_path / "run")
    options = ["--model", str(model), "--data", str(data), "--out", out]
    assert run(["cache", "build", *options, *FEW_STEPS]) == 0
    model.rename(tmp_path / "elsewhere")
    assert run(["cache", "verify", "--out", out, "--sample", "8"]) == 0
    assert run(["cache", "info", "--out", out]) == 0
    shown = capsys.readouterr().out
    assert "teacher run again on 8 rows" in shown and "texts        " in shown and "images" not in shown
