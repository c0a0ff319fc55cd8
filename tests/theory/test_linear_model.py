"""The closed forms of the linear model against the paper's own definitions, with its Kronecker products written out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sdfast.errors import UserError
from sdfast.theory import LinearModel
from sdfast.theory.instance import Draw, draw

SHAPES = [Draw(), Draw(1, 2, 1), Draw(1, 5, 3), Draw(7, 8, 2, 0.4), Draw(4, 11, 2, 0.01, "independent")]


def paper_matrices(model: LinearModel) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """M = I_p (x) Phi, w_{0,0} = vec(W^T) and Y = vec(Y^T): vec stacks columns, so that of W^T are W's rows."""
    return np.kron(np.eye(len(model.teacher)), model.features), model.teacher.ravel(), model.targets.ravel()


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_lemma_1_is_the_minimiser_of_every_round(settings: Draw) -> None:
    model, _ = draw(settings, 3)
    wide, w, _ = paper_matrices(model)
    samples = model.features.shape[1]
    np.testing.assert_allclose(model.distilled(0).ravel(), w, rtol=1e-10, atol=1e-12)
    for t in range(1, 6):
        # the zero of the gradient of L_t, by a solve in the d p dimensions of w
        w = np.linalg.solve(wide @ wide.T + samples * model.ridge * np.eye(len(w)), wide @ (wide.T @ w))
        np.testing.assert_allclose(model.distilled(t).ravel(), w, rtol=1e-9, atol=1e-11)


def test_a_round_minimises_the_loss_that_the_paper_writes() -> None:
    model, _ = draw(Draw(), 5)
    labels = model.distilled(1) @ model.features

    def loss(weights: NDArray[np.float64]) -> float:
        errors = [((weights @ x - label) ** 2).sum() for x, label in zip(model.features.T, labels.T, strict=True)]
        return float(np.mean(errors) + model.ridge * (weights**2).sum())

    lowest = loss(model.distilled(2))
    for direction in np.random.default_rng(0).standard_normal((20, *model.teacher.shape)):
        for step in (1e-3, 0.1, -0.1):
            assert loss(model.distilled(2) + step * direction) > lowest


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_the_null_space_is_empty_after_the_first_round_and_stays_so(settings: Draw) -> None:
    model, _ = draw(settings, 1)
    outside = np.eye(model.features.shape[0]) - model.features @ np.linalg.pinv(model.features)
    assert np.linalg.norm(model.teacher @ outside) > 1e-3
    np.testing.assert_allclose(model.finetuned(0, 0.7) @ outside, model.teacher @ outside, atol=1e-11)
    for t in range(1, 4):
        assert not model.distilled_null(t).any()
        np.testing.assert_allclose(model.distilled(t) @ outside, 0, atol=1e-12)
        np.testing.assert_allclose(model.finetuned(t, 0.7) @ outside, 0, atol=1e-12)


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_equation_5_is_gradient_flow(settings: Draw) -> None:
    model, _ = draw(settings, 2)
    wide, _, labels = paper_matrices(model)

    def velocity(w: NDArray[np.float64]) -> NDArray[np.float64]:
        return -wide @ (wide.T @ w - labels)

    time, steps = 0.3, 1500
    step = time / steps
    for t in (0, 1, 3):
        w = model.distilled(t).ravel()
        for _ in range(steps):  # Runge-Kutta of fourth order
            first = velocity(w)
            second = velocity(w + step / 2 * first)
            third = velocity(w + step / 2 * second)
            w = w + step / 6 * (first + 2 * second + 2 * third + velocity(w + step * third))
        np.testing.assert_allclose(model.finetuned(t, time).ravel(), w, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_the_discrete_twin_is_gradient_descent(settings: Draw) -> None:
    model, _ = draw(settings, 2)
    wide, _, labels = paper_matrices(model)
    rate = 0.9 / np.linalg.norm(wide, 2) ** 2
    for t in (0, 2):
        w = model.distilled(t).ravel()
        for steps in range(1, 40):
            w = w - rate * wide @ (wide.T @ w - labels)
            np.testing.assert_allclose(model.finetuned_by_steps(t, rate, steps).ravel(), w, rtol=1e-9, atol=1e-10)


def test_long_flow_interpolates_the_labels_and_no_flow_changes_nothing() -> None:
    model, _ = draw(Draw(), 0)
    np.testing.assert_allclose(model.finetuned(2, 1e4) @ model.features, model.targets, atol=1e-9)
    np.testing.assert_array_equal(model.finetuned(2, 0.0), model.distilled(2))


def test_without_a_ridge_the_first_round_projects_and_the_others_do_nothing() -> None:
    model, _ = draw(Draw(ridge=0.0), 0)
    smallest = np.linalg.lstsq(model.features.T, (model.teacher @ model.features).T, rcond=None)[0].T
    for t in (1, 2, 7):
        np.testing.assert_allclose(model.distilled(t), smallest, atol=1e-12)
    nearly = LinearModel(model.features, model.teacher, model.targets, 1e-9)
    np.testing.assert_allclose(nearly.distilled(3), model.distilled(3), atol=1e-6)


def test_bad_matrices_are_one_sentence() -> None:
    good = {"features": np.eye(3)[:, :2], "teacher": np.ones((1, 3)), "targets": np.ones((1, 2)), "ridge": 0.1}
    LinearModel(**good)
    for change, words in [
        ({"features": np.eye(3), "targets": np.ones((1, 3))}, "do not outnumber"),
        ({"features": np.ones((3, 2))}, "full rank"),
        ({"features": np.zeros((3, 2))}, "full rank"),
        ({"features": np.full((3, 2), np.nan)}, "not finite"),
        ({"features": np.ones(3)}, "must be a matrix"),
        ({"teacher": np.ones((1, 2))}, "do not fit"),
        ({"targets": np.ones((2, 2))}, "do not fit"),
        ({"ridge": -0.1}, "ridge -0.1"),
        ({"ridge": float("nan")}, "ridge nan"),
    ]:
        with pytest.raises(UserError, match=words):
            LinearModel(**(good | change))
    for settings in ({"samples": 0}, {"outputs": -1}, {"targets": "far"}):
        with pytest.raises(UserError, match=next(iter(settings))):
            Draw(**settings)
    with pytest.raises(UserError, match="seed"):
        draw(Draw(), -1)
