"""What the raw input says without a model: pixels, words, and a linear classifier on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_fixtures import write_images, write_model
from text_fixtures import write_text_model, write_texts

import sdfast
from sdfast.context import Context
from sdfast.data.problem import REGRESSION, SINGLE
from sdfast.errors import UserError
from sdfast.inference import raw
from sdfast.inference.linear import linear_classifier
from sdfast.inference.raw import named, raw_metrics, sample_of
from sdfast.modalities.images.pixels import SIDE, RawPixels
from sdfast.modalities.texts import words
from sdfast.modalities.texts.words import TfIdf, words_of
from sdfast.studies.store import Shared, Store

TEXTS = ["The cat sat on the mat.", "A dog, a cat and 2 dogs", "the THE the mat", "word_1 \u00e9t\u00e9 \u732b"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """Model and pack, and nothing trained."""
    root = tmp_path_factory.mktemp("images")
    data = write_images(root / "data", classes=3, train=10, test=8, side=16)
    config = sdfast.Pipeline(write_model(root / "model"), data, root / "out").config
    with Store(root / "study", Shared()).opened(config) as context:
        yield context


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    root = tmp_path_factory.mktemp("texts")
    data = write_texts(root / "data", test=40)
    config = sdfast.Pipeline(write_text_model(root / "model"), data, root / "out").config
    with Store(root / "study", Shared()).opened(config) as context:
        yield context


def metrics_of(context: Context) -> dict[str, float]:
    companions = context.modality.companions(context.model)
    return raw_metrics(sample_of(context.pack, context.config), context.modality, context.config, companions)


def split_of(images: np.ndarray) -> Any:
    return SimpleNamespace(images=images)


def test_grey_pictures_in_three_channels_count_once_and_others_with_all() -> None:
    random = np.random.default_rng(0)
    grey = np.repeat(random.integers(0, 256, (5, 4, 6, 1), np.uint8), 3, axis=3)
    read = RawPixels(split_of(grey), torch.arange(5))
    found = read(split_of(grey), torch.tensor([4, 0]))
    np.testing.assert_allclose(found, grey[[4, 0], :, :, 0].reshape(2, 24) / 255, rtol=1e-6)
    colour = grey.copy()
    colour[3, 0, 0, 2] ^= 1
    assert RawPixels(split_of(colour), torch.arange(5))(split_of(colour), torch.arange(5)).shape == (5, 72)
    assert RawPixels(split_of(colour), torch.arange(3))(split_of(colour), torch.arange(5)).shape == (5, 24)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535), (np.float16, 1)])
def test_large_pictures_are_reduced_with_antialiasing_and_keep_their_aspect(dtype: Any, white: int) -> None:
    lines = np.zeros((2, 224, 112, 1), dtype)
    lines[:, ::2] = white  # at half the height of a pixel of the reduced picture a sampled one would be black or white
    found = RawPixels(split_of(lines), torch.arange(2))(split_of(lines), torch.arange(2))
    assert found.shape == (2, SIDE * SIDE // 2)
    inner = found.view(2, SIDE, SIDE // 2)[:, 1:-1]
    assert inner.sub(0.5).abs().max() < 0.05


def test_tf_idf_by_hand_and_as_scikit_learn_has_it() -> None:
    assert words_of(TEXTS[3]) == ["word_1", "\u00e9t\u00e9", "\u732b"]
    fitted = TfIdf(TEXTS[:3])
    found = fitted(["the the cat", "nothing known"])
    the, cat = 1 + np.log(2), 1.0
    idf = np.log(4 / 3) + 1  # each of two of the three texts
    wanted = np.array([the * idf, cat * idf]) / np.hypot(the * idf, cat * idf)
    np.testing.assert_allclose(found[0, [fitted.words["the"], fitted.words["cat"]]], wanted, rtol=1e-6)
    assert found[0].count_nonzero() == 2 and not found[1].any()

    theirs = pytest.importorskip("sklearn.feature_extraction.text")
    vectorizer = theirs.TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\w+").fit(TEXTS)
    ours, order = TfIdf(TEXTS), vectorizer.vocabulary_
    assert set(ours.words) == set(order)
    columns = [ours.words[word] for word in sorted(order, key=order.__getitem__)]
    np.testing.assert_allclose(ours(TEXTS)[:, columns], vectorizer.transform(TEXTS).toarray(), atol=1e-6)


def test_of_many_words_those_in_the_most_texts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 3)
    assert list(TfIdf(TEXTS[:3]).words) == ["cat", "mat", "the"]  # in two texts each, by the alphabet


@pytest.mark.parametrize("width", [5, 80])
def test_the_classifier_is_that_of_scikit_learn(width: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    train, test = random.normal(size=(40, width)) + 1, random.normal(size=(9, width)) + 1
    labels = (train[:, 0] > 1).astype(np.int64) + (train[:, 1] > 1.5)
    given = torch.from_numpy(train), torch.from_numpy(labels)
    found = linear_classifier(*given, SINGLE, 3, strength=10.0, standardised=False)(torch.from_numpy(test))
    wanted = linear.LogisticRegression(C=10.0, tol=1e-8, max_iter=2000).fit(train, labels).predict_proba(test)
    np.testing.assert_allclose(found.softmax(dim=1), wanted, atol=1e-3)


def test_pixels_of_a_run_are_scored_as_scikit_learn_scores_them(images: Context) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    train, test = (images.pack.split(name) for name in ("train", "test"))
    flat = [
        np.asarray(split.images, np.float64).transpose(0, 3, 1, 2).reshape(len(split), -1) for split in (train, test)
    ]
    model = linear.LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(flat[0] / 255, train.labels)
    likely = model.predict_proba(flat[1] / 255)
    found = metrics_of(images)
    assert found["accuracy"] == pytest.approx((likely.argmax(axis=1) == test.labels).mean())
    assert found["test_loss"] == pytest.approx(-np.log(likely[np.arange(24), test.labels]).mean(), abs=1e-4)
    assert metrics_of(images) == found


def test_words_of_a_run_tell_its_classes(texts: Context) -> None:
    found = metrics_of(texts)
    assert found["accuracy"] > found["majority_class_accuracy"]
    assert named(SINGLE, texts.modality) == "logistic regression on the words (TF-IDF)"
    assert named(REGRESSION, texts.modality).startswith("linear regression")


def test_of_many_rows_a_choice_is_taken_and_that_is_said(images: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample_of(images.pack, images.config)
    assert (len(whole.train), len(whole.test), whole.limits) == (30, 24, ())
    monkeypatch.setattr(raw, "MOST_TRAIN", 12)
    monkeypatch.setattr(raw, "MOST_TEST", 6)
    some = sample_of(images.pack, images.config)
    assert some.limits == ("taught by 12 of 30 rows", "scored on 6 of 24")
    classes = images.pack.split("train").labels[some.train.numpy()]
    assert np.bincount(classes).tolist() == [4, 4, 4]


def test_the_fingerprint_is_of_the_rows_and_of_nothing_else(images: Context) -> None:
    def fingerprint(*changes: str) -> str:
        config = images.config.changed(changes)
        return sample_of(images.pack, config).fingerprint(images.modality, config)

    assert fingerprint() == fingerprint("finetune.steps=7", "seed=3", "data.labelled_limit=30")
    few = fingerprint("data.labelled_limit=6")
    assert few == fingerprint("data.limit=6") and few != fingerprint()
    assert few != fingerprint("data.labelled_limit=6", "data.limit_seed=1")


def test_tiles_are_not_compared(images: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.pack.split("train"), "tiles", np.ones(30, np.int64))
    with pytest.raises(UserError, match="cut into tiles"):
        metrics_of(images)


@pytest.mark.parametrize(
    ("keys", "metric"),
    [
        (("data.label_key=level", "data.problem_type=regression"), "r2"),
        (("data.label_key=tags", "data.label_separator=semicolon"), "mean_average_precision"),
    ],
)
def test_numbers_and_several_classes_are_scored_too(keys: tuple[str, ...], metric: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lines = ["file_name,split,level,tags"]
    for number in range(48):
        left, right = random.integers(40, 216, 2)
        pixels = np.repeat([[left] * 8 + [right] * 8], 16, axis=0) + random.integers(-9, 10, (16, 16))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        tags = ";".join(name for name, side in (("left", left), ("right", right)) if side > 127) or "[]"
        lines.append(f"{number}.png,{'test' if number % 3 == 0 else 'train'},{left / 100},{tags}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    config = sdfast.Pipeline(
        write_model(tmp_path / "model"), tmp_path / "list.csv", tmp_path / "out", overrides=keys
    ).config
    with Store(tmp_path / "study", Shared()).opened(config) as context:
        assert metrics_of(context)[metric] > 0.8
        assert named(context.pack.problem, context.modality).startswith("linear" if metric == "r2" else "logistic")
