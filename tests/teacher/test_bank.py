"""Banks are built once, opened by content, and hold what the teacher gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_samples import COUNT, SHAPE, TRANSFORM, contents, make_images, make_module, make_recipe

from sdfast.durable import sha256_json
from sdfast.errors import RunError, UserError
from sdfast.modalities.images.model import select_tokens
from sdfast.ops.attention import Group, Groups
from sdfast.store.artifact import fitted
from sdfast.store.rows import Layout
from sdfast.teacher.bank import open_bank
from sdfast.teacher.build import prepare_bank
from sdfast.teacher.storage import widen
from sdfast.teacher.verify import sample_errors


def expected(recipe, rows: np.ndarray) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """The features by the plain formula, in float64."""
    pixels = torch.from_numpy(recipe.images[rows]).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (TRANSFORM.mean, TRANSFORM.std))
    encoder = make_module().encoder.double().eval()
    pixels = (pixels - mean) / std
    with torch.no_grad():
        if recipe.layer == "last":
            return select_tokens(encoder(pixels), recipe.tokens)
        patches = encoder.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((encoder.cls_token.expand(len(pixels), -1, -1), patches), dim=1) + encoder.position_embeddings
        shape, groups = x.shape, Groups((Group(len(x), x.shape[1], x.shape[1]),))
        x = x.flatten(0, 1)
        for number in range(recipe.layer):
            x = encoder.blocks[number](x, groups)
        return select_tokens(x.view(shape), recipe.tokens)


@pytest.mark.parametrize("layer", ["last", 1])
@pytest.mark.parametrize("tokens", ["cls", "patch", "all"])
def test_a_bank_holds_the_teachers_features(tmp_path: Path, tokens: str, layer: str | int) -> None:
    recipe = make_recipe(tokens=tokens, layer=layer)
    bank = prepare_bank(tmp_path / "teacher", recipe)
    truth = expected(recipe, np.arange(COUNT))
    features, scale = bank.load()
    assert features.dtype == torch.float32 and scale is None
    torch.testing.assert_close(features.double(), truth, atol=1e-5, rtol=1e-5)
    assert bank.spread == pytest.approx(float(truth.std(dim=0, correction=0).max()), rel=1e-4)
    assert bank.rows_of(recipe.digests).tolist() == list(range(COUNT))
    mapped = np.concatenate([bank.shard(k) for k in range(bank.layout.shards)])
    assert mapped.tobytes() == features.numpy().tobytes()


# Relative to the largest feature of the token: half a unit in the last place, or half a step of 1/127.
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8, "int8": 0.5 / 127}


@pytest.mark.parametrize("tokens", ["cls", "all"])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_other_dtypes_round_and_no_more(tmp_path: Path, dtype: str, tokens: str) -> None:
    recipe = make_recipe(tokens=tokens, dtype=dtype)
    bank = prepare_bank(tmp_path / "teacher", recipe)
    features, scale = bank.load()
    truth = expected(recipe, np.arange(COUNT))
    error = (widen(features, scale) - truth).abs() / truth.abs().amax(dim=-1, keepdim=True)
    assert str(features.dtype) == f"torch.{dtype}" and features.shape == truth.shape
    assert ROUNDING[dtype] / 4 < float(error.max()) <= ROUNDING[dtype] * 1.001 + 1e-6
    if scale is not None:
        assert scale.shape == truth.shape[:-1] and int(features.abs().amax()) == 127
    assert sample_errors(bank, recipe, 50, 0).rows == 50


def test_too_large_for_float16(tmp_path: Path) -> None:
    module = make_module()
    module.encoder.norm.bias.data[0] = 1e5
    with pytest.raises(RunError, match=r"do not fit teacher\.dtype=float16; use float32"):
        prepare_bank(tmp_path / "teacher", make_recipe(encoder=module.encoder, dtype="float16"))


def test_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare_bank(tmp_path / "one", make_recipe(tokens="all", dtype="int8"))
    monkeypatch.setattr("sdfast.store.rows._SHARD_BYTES", 1)  # one batch of the build in each file
    split = prepare_bank(tmp_path / "many", make_recipe(tokens="all", dtype="int8"))
    assert (whole.layout.shards, split.layout.shards) == (1, 3)
    for one, other in zip(whole.load(), split.load(), strict=True):
        assert torch.equal(one, other)


def test_rows_are_found_by_content_not_by_order(tmp_path: Path) -> None:
    built = prepare_bank(tmp_path / "teacher", make_recipe())
    features, _ = built.load()
    order = np.random.default_rng(0).permutation(COUNT)
    shuffled = make_recipe(images=make_images()[order])
    again = prepare_bank(tmp_path / "teacher", shuffled)
    rows = again.rows_of(shuffled.digests)
    assert rows.tolist() == order.tolist()
    torch.testing.assert_close(
        features[torch.from_numpy(rows)].double(), expected(shuffled, np.arange(COUNT)), atol=1e-5, rtol=1e-5
    )
    strange = make_recipe(images=make_images(5, seed=9)).digests
    assert again.rows_of(np.concatenate([strange, shuffled.digests[:1]])).tolist() == [-1] * 5 + [order[0]]


def test_equal_images_share_a_row_and_unwanted_rows_are_left_out(tmp_path: Path) -> None:
    images = make_images()
    images[7] = images[100]
    recipe = make_recipe(images=images, rows=np.arange(0, COUNT, 2) + 1)  # 7 is in, 100 is not
    bank = prepare_bank(tmp_path / "teacher", recipe)
    rows = bank.rows_of(recipe.digests)
    assert len(bank) == COUNT // 2 and rows[100] == rows[7] and rows[2] == -1


def test_an_opened_bank_is_not_built_again(tmp_path: Path) -> None:
    prepare_bank(tmp_path / "teacher", make_recipe())
    before = (tmp_path / "teacher" / "manifest.json").stat().st_mtime_ns
    prepare_bank(tmp_path / "teacher", make_recipe())
    assert (tmp_path / "teacher" / "manifest.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher"]


OTHER = {
    "teacher.weights": {"encoder": make_module(4).encoder},
    "teacher.config.norm_eps": {"shape": replace(SHAPE, norm_eps=1e-6)},
    "rows": {"images": make_images(seed=2)},
    "transform.mean": {"transform": replace(TRANSFORM, mean=(0.5, 0.4, 0.31))},
    "transform.resample": {"transform": replace(TRANSFORM, resample="bicubic")},
    "features.tokens": {"tokens": "all"},
    "features.layer": {"layer": 1},
    "dtype": {"dtype": "float64"},
}


@pytest.mark.parametrize("field", list(OTHER))
def test_a_bank_of_something_else_is_refused_by_name_and_replaced_on_request(tmp_path: Path, field: str) -> None:
    prepare_bank(tmp_path / "teacher", make_recipe())
    before = contents(tmp_path / "teacher")
    with pytest.raises(UserError, match=rf"something else: {field} is .*--rebuild"):
        prepare_bank(tmp_path / "teacher", make_recipe(**OTHER[field]))
    assert contents(tmp_path / "teacher") == before
    wanted = make_recipe(**OTHER[field])
    prepare_bank(tmp_path / "teacher", wanted, rebuild=True)
    assert open_bank(tmp_path / "teacher").identity == wanted.identity != make_recipe().identity
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher"]


def test_a_new_teacher_may_replace_the_old_ones_bank_and_nothing_else(tmp_path: Path) -> None:
    prepare_bank(tmp_path / "teacher", make_recipe())
    with pytest.raises(UserError, match=r"features\.tokens"):
        prepare_bank(tmp_path / "teacher", make_recipe(tokens="all"), new_teacher=True)
    recipe = make_recipe(encoder=make_module(4).encoder)
    assert prepare_bank(tmp_path / "teacher", recipe, new_teacher=True).identity == recipe.identity


def test_pixels_that_are_not_those_of_their_digest_are_refused(tmp_path: Path) -> None:
    recipe = make_recipe()
    recipe.images[77, 0, 0, 0] ^= 1
    with pytest.raises(UserError, match="row 77 of the pack"):
        prepare_bank(tmp_path / "teacher", recipe)
    assert not (tmp_path / "teacher").exists()


def test_a_broken_or_collapsed_teacher_is_refused(tmp_path: Path) -> None:
    module = make_module()
    module.encoder.norm.bias.data[3] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        prepare_bank(tmp_path / "nan", make_recipe(encoder=module.encoder))
    module = make_module()
    module.encoder.norm.weight.data.zero_()
    with pytest.raises(RunError, match="collapsed"):
        prepare_bank(tmp_path / "flat", make_recipe(encoder=module.encoder))
    assert not (tmp_path / "nan").exists() and not (tmp_path / "flat").exists()


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        prepare_bank(tmp_path / "teacher", make_recipe(), rebuild=True)
    assert (tmp_path / "teacher" / "thesis.txt").read_text() == "mine"


def test_training_mode_autocast_and_precision_outside_do_not_matter(tmp_path: Path) -> None:
    module = make_module().train()
    with torch.autocast("cpu", torch.bfloat16):
        prepare_bank(tmp_path / "a", make_recipe(encoder=module.encoder))
    prepare_bank(tmp_path / "b", make_recipe())
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and module.training


def test_the_layout_covers_every_row_once() -> None:
    for rows, shape in ((1, (3,)), (64, (700,)), (1000, (17, 5000)), (150, (50, 768))):
        layout = Layout.plan(rows, shape, "float32")
        layout = layout.model_copy(update={"rows_per_shard": 128})
        filled = dict.fromkeys(range(layout.shards), 0)
        for block in range(layout.blocks):
            shard, first, count = layout.block_place(block)
            assert first == filled[shard]
            filled[shard] += count
        assert sum(filled.values()) == rows
        assert all(filled[k] * layout.row_bytes == layout.sizes()[f"features-{k:05d}.bin"] for k in filled)
        assert fitted(Layout, json.loads(json.dumps(layout.model_dump(mode="json")))) == layout


def test_what_a_kill_left_of_a_write_neither_stays_nor_stops(tmp_path: Path) -> None:
    directory = tmp_path / "teacher"
    part = tmp_path / ".partial-teacher"
    part.mkdir()
    (part / ".staging-plan.json").write_text("{")
    prepare_bank(directory, make_recipe())
    assert not list(directory.glob(".staging-*"))
    (directory / ".staging-plan.json").write_text("{")
    assert (
        prepare_bank(directory, make_recipe(tokens="all"), rebuild=True).identity == make_recipe(tokens="all").identity
    )
    assert not list(directory.glob(".staging-*"))


def test_a_bank_of_an_older_format_says_so(tmp_path: Path) -> None:
    prepare_bank(tmp_path / "teacher", make_recipe())
    path = tmp_path / "teacher" / "manifest.json"
    inner = {**json.loads(path.read_text())["manifest"], "format": 1}
    path.write_text(json.dumps({"sha256": sha256_json(inner), "manifest": inner}))
    with pytest.raises(UserError, match=rf"is of format 1, and .* format 2; .*build --out {tmp_path} --rebuild`"):
        prepare_bank(tmp_path / "teacher", make_recipe())
